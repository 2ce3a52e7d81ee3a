//! ListChanges: one page of what changed since a revision.

use super::{ServiceError, SyncService, call::Call, validate};
use crate::{proto, store::PageLimit};

impl SyncService {
    pub(super) async fn handle_list_changes(
        &self,
        call: &Call,
        request: &proto::ListChangesRequest,
    ) -> Result<proto::ListChangesReply, ServiceError> {
        validate::request_time(request.request_time, self.now_seconds())?;
        let caller = self.authenticate(call, request)?;
        let parts = &self.0;

        let since = request.since_revision;
        let page =
            parts.store.list_changes(caller.user, since, PageLimit::WIRE, call.deadline).await?;
        if page.has_more {
            parts.nudger.page_was_cut(caller.user, since);
        }
        Ok(proto::ListChangesReply {
            changes: page.records.into_iter().map(proto::Record::from).collect(),
            has_more: page.has_more,
            head_revision: page.head,
        })
    }
}
