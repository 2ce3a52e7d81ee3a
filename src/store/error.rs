//! Why a store could not answer. A short closed list: engines sort their faults into it.

use thiserror::Error;

/// Why an operation of a store failed. Conflicts and held locks are outcomes, not errors.
///
/// The texts are for logs. They never hold record data, user ids, SQL parameters or URLs.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum StoreError {
    /// The database cannot be reached, is starting or stopping, or lost the connection. When a
    /// write ends so, it may or may not have happened; sent again unchanged it heals.
    #[error("database unavailable: {0}")]
    Unavailable(String),
    /// Too many operations wait already; this one was not tried.
    #[error("too many operations wait for the store")]
    Overloaded,
    /// Others kept changing the same rows until the deadline; nothing was written.
    #[error("contention did not end before the deadline")]
    Contended,
    /// The caller's deadline passed first. The operation may still happen.
    #[error("deadline exceeded")]
    DeadlineExceeded,
    /// The storage is full; nothing was written.
    #[error("storage is full")]
    StorageFull,
    /// A fault of this program or of the database's schema.
    #[error("internal store error: {0}")]
    Internal(String),
}
