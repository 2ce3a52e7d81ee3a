//! SetLock: takes or releases a named lock.

use super::{ServiceError, SyncService, call::Call, validate};
use crate::{
    proto,
    store::{LockOutcome, LockRequest, Quota},
};

impl SyncService {
    pub(super) async fn handle_set_lock(
        &self,
        call: &Call,
        request: proto::SetLockRequest,
    ) -> Result<proto::SetLockReply, ServiceError> {
        let (instance, action) = validate::set_lock(&request, self.now_seconds())?;
        let caller = self.authenticate(call, &request)?;
        let parts = &self.0;

        let lock = LockRequest { user: caller.user, name: request.lock_name, instance, action };
        match parts.store.set_lock(lock, call.deadline).await? {
            LockOutcome::Acquired { fencing_token, expires_at_ms } => {
                Ok(proto::SetLockReply { fencing_token, expires_at_ms })
            }
            LockOutcome::Released => Ok(proto::SetLockReply::default()),
            LockOutcome::Held => {
                parts.metrics.locks_denied.inc();
                Err(ServiceError::LockHeld)
            }
            LockOutcome::OverQuota => {
                let quota = Quota::Locks;
                parts.metrics.quota_exceeded.with_label_values(&[quota.as_str()]).inc();
                Err(ServiceError::OverQuota(quota))
            }
        }
    }
}
