//! SetRecord: one conditional write.

use super::{ServiceError, SyncService, call::Call, validate};
use crate::{
    proto::{self, SetRecordStatus},
    store::{RecordWrite, StoredRecord, WriteOutcome},
};

impl SyncService {
    pub(super) async fn handle_set_record(
        &self,
        call: &Call,
        request: proto::SetRecordRequest,
    ) -> Result<proto::SetRecordReply, ServiceError> {
        validate::set_record(&request, self.now_seconds())?;
        let caller = self.authenticate(call, &request)?;
        let parts = &self.0;

        let return_current = request.return_current;
        let record = request.record.unwrap_or_default();
        let asked_id = return_current.then(|| record.id.clone());
        let write = RecordWrite {
            user: caller.user,
            id: record.id,
            base_revision: record.revision,
            schema_version: record.schema_version,
            data: record.data,
            digest: caller.digest,
            client_id: validate::client_id(request.client_id),
        };
        match parts.store.set_record(write, call.deadline).await? {
            WriteOutcome::Written { revision } => Ok(success(revision)),
            WriteOutcome::Repeated { revision } => {
                parts.metrics.record_repeats.inc();
                Ok(success(revision))
            }
            WriteOutcome::Conflict => {
                parts.metrics.record_conflicts.inc();
                let current = match asked_id {
                    Some(id) => parts.store.record(caller.user, &id, call.deadline).await?,
                    None => None,
                };
                Ok(conflict(current))
            }
            WriteOutcome::OverQuota(quota) => {
                parts.metrics.quota_exceeded.with_label_values(&[quota.as_str()]).inc();
                Err(ServiceError::OverQuota(quota))
            }
        }
    }
}

fn success(revision: u64) -> proto::SetRecordReply {
    proto::SetRecordReply {
        status: SetRecordStatus::Success.into(),
        new_revision: revision,
        current: None,
    }
}

fn conflict(current: Option<StoredRecord>) -> proto::SetRecordReply {
    proto::SetRecordReply {
        status: SetRecordStatus::Conflict.into(),
        new_revision: 0,
        current: current.map(proto::Record::from),
    }
}

impl From<StoredRecord> for proto::Record {
    fn from(record: StoredRecord) -> Self {
        Self {
            id: record.id,
            revision: record.revision,
            schema_version: record.schema_version,
            data: record.data,
        }
    }
}
