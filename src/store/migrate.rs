//! What migrations are, whatever the engine.
//!
//! Scripts live in `migrations/{postgres,sqlite}/NNNN_name.sql`, are only ever appended, and keep
//! the previous release working (expand → migrate → contract). Each engine runs them itself,
//! under a lock, so that any number of processes may start at once.

use std::fmt;

use thiserror::Error;

/// One step of a schema.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// Ascending from 1 without gaps.
    pub version: u32,
    /// The script's name without number and ending.
    pub name: &'static str,
    /// The script; run in one transaction.
    pub sql: &'static str,
}

/// Where a database stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaState {
    /// Newest applied migration; 0 in an empty database.
    pub applied: u32,
    /// Newest migration this program has.
    pub latest: u32,
    /// What of the Go server's is found, if anything.
    pub legacy: LegacyState,
}

impl SchemaState {
    /// The schema serves this program: no migration is missing. A newer schema does too.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.applied >= self.latest && !matches!(self.legacy, LegacyState::Unadopted)
    }
}

/// What a database holds of the Go server's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegacyState {
    /// Nothing.
    None,
    /// Its tables, with data that was not taken over yet.
    Unadopted,
    /// Its tables, renamed after their data was taken over.
    Adopted,
}

/// What was taken over from the Go server's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AdoptionReport {
    /// Users with a head.
    pub users: u64,
    /// Records copied.
    pub records: u64,
    /// Bytes of record data.
    pub bytes: u64,
    /// Records whose revision another record of the user also had, moved above the head.
    pub renumbered_records: u64,
    /// Live locks copied.
    pub locks: u64,
    /// Locks left behind because they had expired.
    pub expired_locks: u64,
}

impl fmt::Display for AdoptionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "adopted {} users, {} records ({} bytes, {} renumbered), {} live locks ({} expired left behind)",
            self.users,
            self.records,
            self.bytes,
            self.renumbered_records,
            self.locks,
            self.expired_locks
        )
    }
}

/// Why a database could not be brought to this program's schema.
#[derive(Debug, Error)]
pub enum MigrateError {
    /// The database could not be reached or opened.
    #[error("cannot open the database: {0}")]
    Unavailable(String),
    /// A script failed; the database is as it was before that script.
    #[error("migration {version} ({name}) failed: {reason}")]
    Script {
        /// The migration's version.
        version: u32,
        /// The migration's name.
        name: &'static str,
        /// What the database said.
        reason: String,
    },
    /// The database was made by the Go server and has not been adopted.
    #[error(
        "the database was made by the Go server; stop it, back up, then run `data-sync migrate --adopt`"
    )]
    Unadopted,
    /// The Go server's data could not be taken over; the database is as it was.
    #[error("adoption failed, nothing was changed: {0}")]
    Adoption(String),
    /// Another process held the migration lock for too long.
    #[error("another process has been migrating for over {0} seconds")]
    Locked(u64),
}
