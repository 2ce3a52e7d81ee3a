//! Sorts what Postgres and its driver say into what the rest of the engine acts on.

use tokio_postgres::error::{DbError, Severity, SqlState};

use crate::store::StoreError;

/// A failed statement, sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// Others changed the same rows; trying again may succeed. Holds the reason for metrics.
    Contended(&'static str),
    /// Anything else, as the caller is told.
    Other(StoreError),
}

impl Fault {
    /// Sorts an error of the driver.
    pub(super) fn of(error: &tokio_postgres::Error) -> Self {
        error.as_db_error().map_or_else(
            || Self::Other(StoreError::Unavailable(connection_text(error))),
            Self::of_database,
        )
    }

    fn of_database(error: &DbError) -> Self {
        let code = error.code();
        let class = code.code().get(..2).unwrap_or_default();
        if *code == SqlState::T_R_SERIALIZATION_FAILURE {
            return Self::Contended("serialization");
        }
        if *code == SqlState::T_R_DEADLOCK_DETECTED {
            return Self::Contended("deadlock");
        }
        if *code == SqlState::LOCK_NOT_AVAILABLE {
            return Self::Contended("lock_timeout");
        }
        let text = text(error);
        let standby =
            *code == SqlState::READ_ONLY_SQL_TRANSACTION || text.contains("in a hot standby");
        Self::Other(match class {
            "53" if *code == SqlState::DISK_FULL => StoreError::StorageFull,
            // Connection, resources, operator: none of them is about this statement.
            "08" | "53" | "57" | "58" => StoreError::Unavailable(text),
            // No entry, or not this database: wrong settings, or a database being made anew.
            "28" | "3D" => StoreError::Unavailable(text),
            _ if standby => StoreError::Unavailable(text),
            _ => StoreError::Internal(text),
        })
    }

    /// What a caller is told when trying again is over.
    pub(super) fn into_store_error(self) -> StoreError {
        match self {
            Self::Contended(_) => StoreError::Contended,
            Self::Other(error) => error,
        }
    }
}

/// The connection is gone or refused: nothing is wrong with the statement itself.
pub(super) fn is_connection_fault(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_none_or(ends_connection)
}

/// After this error the server closes the connection.
pub(super) fn ends_connection(error: &DbError) -> bool {
    matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
}

/// The statement failed because an earlier one of its transaction had.
pub(super) fn is_follow_up(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION)
}

/// Code and, where it cannot quote a value of ours, message.
fn text(error: &DbError) -> String {
    let code = error.code().code();
    // Classes of data and constraint errors quote what they were given.
    match code.get(..2) {
        Some("21" | "22" | "23" | "44") | None => format!("sqlstate {code}"),
        Some(_) => format!("sqlstate {code}: {}", error.message()),
    }
}

/// What a script or a statement of ours failed with, in full: for texts that hold no user data.
pub(super) fn script_text(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| connection_text(error), text)
}

fn connection_text(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

impl From<&tokio_postgres::Error> for StoreError {
    fn from(error: &tokio_postgres::Error) -> Self {
        Fault::of(error).into_store_error()
    }
}
