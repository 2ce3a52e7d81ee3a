//! A store that opens after the listeners do.
//!
//! A replica answers health checks and says UNAVAILABLE while its database is out of reach at
//! start, instead of being restarted again and again.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    LockOutcome, LockRequest, Page, PageLimit, RecordWrite, Store, StoreError, StoreStatus,
    StoredRecord, UserId, WriteOutcome,
};

/// Hands every call to the store it was given, and answers `Unavailable` before it was given one.
#[derive(Debug, Default)]
pub struct DeferredStore(OnceLock<Arc<dyn Store>>);

impl DeferredStore {
    /// Gives the store; only the first one counts.
    pub fn set(&self, store: Arc<dyn Store>) {
        let _ = self.0.set(store);
    }

    fn get(&self) -> Result<&dyn Store, StoreError> {
        self.0
            .get()
            .map(AsRef::as_ref)
            .ok_or_else(|| StoreError::Unavailable("the store is not open yet".to_owned()))
    }
}

#[async_trait]
impl Store for DeferredStore {
    async fn set_record(
        &self,
        write: RecordWrite,
        deadline: Instant,
    ) -> Result<WriteOutcome, StoreError> {
        self.get()?.set_record(write, deadline).await
    }

    async fn record(
        &self,
        user: UserId,
        id: &str,
        deadline: Instant,
    ) -> Result<Option<StoredRecord>, StoreError> {
        self.get()?.record(user, id, deadline).await
    }

    async fn list_changes(
        &self,
        user: UserId,
        since: u64,
        limit: PageLimit,
        deadline: Instant,
    ) -> Result<Page, StoreError> {
        self.get()?.list_changes(user, since, limit, deadline).await
    }

    async fn heads(&self, users: &[UserId], deadline: Instant) -> Result<Vec<u64>, StoreError> {
        self.get()?.heads(users, deadline).await
    }

    async fn set_lock(
        &self,
        request: LockRequest,
        deadline: Instant,
    ) -> Result<LockOutcome, StoreError> {
        self.get()?.set_lock(request, deadline).await
    }

    async fn is_locked(
        &self,
        user: UserId,
        name: &str,
        deadline: Instant,
    ) -> Result<bool, StoreError> {
        self.get()?.is_locked(user, name, deadline).await
    }

    async fn status(&self, deadline: Instant) -> Result<StoreStatus, StoreError> {
        self.get()?.status(deadline).await
    }

    fn engine(&self) -> &'static str {
        self.0.get().map_or("none", |store| store.engine())
    }

    async fn close(&self) {
        if let Some(store) = self.0.get() {
            store.close().await;
        }
    }
}
