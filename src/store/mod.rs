//! Where records, heads and locks live.
//!
//! [`Store`] is the whole of it for the service; each engine passes the suite in [`conformance`].
//! An engine tells its [`ChangeFeed`](crate::notify::ChangeFeed) of every committed write *before*
//! it answers the writer, so a caller that hangs up cannot take the announcement with it.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use tokio::time::Instant;

use crate::{clock::Clock, notify::ChangeFeed, telemetry::metrics::Metrics};

#[cfg(feature = "test-util")]
pub mod conformance;
pub mod deferred;
mod error;
mod instrumented;
#[cfg(feature = "test-util")]
pub mod memory;
pub mod migrate;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod transfer;
mod types;

pub use error::StoreError;
pub use instrumented::Instrumented;
pub use types::{
    LockAction, LockOutcome, LockRequest, Page, PageLimit, Quota, Quotas, RecordWrite,
    RequestDigest, StoreStatus, StoredRecord, UserId, WriteOutcome,
};

/// Versioned records, per-user heads and named locks.
///
/// Every method may be dropped at any await point: a write that was handed over still happens
/// and is still announced.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Writes one record if its condition holds; see [`RecordWrite`] for the rule.
    ///
    /// # Errors
    /// Any [`StoreError`]; after `Unavailable` and `DeadlineExceeded` the write may have happened.
    async fn set_record(
        &self,
        write: RecordWrite,
        deadline: Instant,
    ) -> Result<WriteOutcome, StoreError>;

    /// Reads one record; `None` where the user holds none of that id.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn record(
        &self,
        user: UserId,
        id: &str,
        deadline: Instant,
    ) -> Result<Option<StoredRecord>, StoreError>;

    /// Reads the records with a revision above `since`, ascending, cut by `limit`, together with
    /// the head, all from one snapshot. Any `since` is valid; one at or above the head lists
    /// nothing.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn list_changes(
        &self,
        user: UserId,
        since: u64,
        limit: PageLimit,
        deadline: Instant,
    ) -> Result<Page, StoreError>;

    /// Reads the heads of `users`, in their order; 0 for a user who never wrote.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn heads(&self, users: &[UserId], deadline: Instant) -> Result<Vec<u64>, StoreError>;

    /// Takes or releases a lock.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn set_lock(
        &self,
        request: LockRequest,
        deadline: Instant,
    ) -> Result<LockOutcome, StoreError>;

    /// Tells whether any instance holds the lock, shared or exclusive.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn is_locked(
        &self,
        user: UserId,
        name: &str,
        deadline: Instant,
    ) -> Result<bool, StoreError>;

    /// Asks the database how it is, without waiting for a place in the pool.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn status(&self, deadline: Instant) -> Result<StoreStatus, StoreError>;

    /// The engine's name, `sqlite` or `postgres`.
    fn engine(&self) -> &'static str;

    /// Finishes what waits, within a bound, and lets the database go. Later calls answer
    /// [`StoreError::Unavailable`].
    async fn close(&self);
}

/// What every engine is given beside its own options.
#[derive(Clone)]
pub struct StoreContext {
    /// Is told of every committed write, in commit order per user, before the writer is answered.
    pub feed: Arc<dyn ChangeFeed>,
    /// How much one user may hold.
    pub quotas: Quotas,
    /// The clock of engines whose database has none of its own.
    pub clock: Arc<dyn Clock>,
    /// Where the engine counts retries, batches and waits.
    pub metrics: Arc<Metrics>,
}

impl fmt::Debug for StoreContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreContext").field("quotas", &self.quotas).finish_non_exhaustive()
    }
}
