//! GetLock: tells whether anybody holds a named lock.

use super::{ServiceError, SyncService, call::Call, validate};
use crate::proto;

impl SyncService {
    pub(super) async fn handle_get_lock(
        &self,
        call: &Call,
        request: &proto::GetLockRequest,
    ) -> Result<proto::GetLockReply, ServiceError> {
        validate::get_lock(request, self.now_seconds())?;
        let caller = self.authenticate(call, request)?;
        let store = &self.0.store;
        let locked = store.is_locked(caller.user, &request.lock_name, call.deadline).await?;
        Ok(proto::GetLockReply { locked })
    }
}
