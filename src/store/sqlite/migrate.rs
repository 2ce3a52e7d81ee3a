//! Brings a file to this program's schema.
//!
//! Everything happens in one write transaction: other processes that start at the same time wait
//! for it and then find nothing left to do.

use std::{path::Path, thread, time::Duration};

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, TransactionBehavior, params};

use super::{
    adopt,
    connection::{open_plain, reason},
    unavailable,
};
use crate::{
    clock::Clock,
    config::SqliteConfig,
    limits::{SQLITE_BUSY_TIMEOUT, SQLITE_MIGRATION_TIMEOUT},
    store::migrate::{AdoptionReport, LegacyState, MigrateError, Migration, SchemaState},
};

/// Every migration of this engine, ascending.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "initial",
        sql: include_str!("../../../migrations/sqlite/0001_initial.sql"),
    },
    Migration {
        version: 2,
        name: "after_restore",
        sql: include_str!("../../../migrations/sqlite/0002_after_restore.sql"),
    },
];

/// Pause between two tries to turn the log on, while another process does something else.
const LOG_RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Tells where the file stands, without changing or creating it. Blocks on the file system.
///
/// # Errors
/// [`MigrateError::Unavailable`] if the file cannot be read.
pub fn schema_state(config: &SqliteConfig) -> Result<SchemaState, MigrateError> {
    if !config.path.exists() {
        return Ok(state_of(0, LegacyState::None));
    }
    let connection = open_plain(&config.path, false, SQLITE_BUSY_TIMEOUT).map_err(unavailable)?;
    let applied = applied(&connection).map_err(unavailable)?;
    let legacy = adopt::legacy_state(&connection).map_err(unavailable)?;
    Ok(state_of(applied, legacy))
}

/// Creates the file if need be, applies missing migrations, and takes over the data of the Go
/// server if the file is its; then a copy as it was stays beside the file
/// (`db.sqlite.before-adoption`). Blocks on the file system.
///
/// # Errors
/// Any [`MigrateError`] but `Unadopted`; the data is then as it was.
pub fn migrate(
    config: &SqliteConfig,
    clock: &dyn Clock,
) -> Result<Option<AdoptionReport>, MigrateError> {
    let path = &config.path;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)
            .map_err(|error| MigrateError::Unavailable(error.to_string()))?;
    }
    let mut connection = open_plain(path, true, SQLITE_MIGRATION_TIMEOUT).map_err(unavailable)?;
    let report = migrate_open(&mut connection, path, clock.now_ms())?;
    turn_on_log(&connection)?;
    Ok(report)
}

fn migrate_open(
    connection: &mut Connection,
    path: &Path,
    now_ms: u64,
) -> Result<Option<AdoptionReport>, MigrateError> {
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(locked_or_unavailable)?;
    let applied = applied(&transaction).map_err(unavailable)?;
    let legacy = adopt::legacy_state(&transaction).map_err(unavailable)?;
    // The write lock is held: nobody changes the file between the copy and the commit.
    let copy = match legacy {
        LegacyState::Unadopted => Some(adopt::Copy::make(path)?),
        LegacyState::None | LegacyState::Adopted => None,
    };
    let missing = MIGRATIONS.iter().filter(|migration| migration.version > applied);
    for migration in missing {
        apply(&transaction, migration, now_ms).map_err(|error| MigrateError::Script {
            version: migration.version,
            name: migration.name,
            reason: reason(&error),
        })?;
    }
    let report = copy.as_ref().map(|_| adopt::adopt(&transaction, now_ms)).transpose()?;
    transaction.commit().map_err(unavailable)?;
    if let Some(copy) = copy {
        copy.keep();
    }
    Ok(report)
}

/// Newest applied migration; 0 in a file without our tables.
pub(super) fn applied(connection: &Connection) -> rusqlite::Result<u32> {
    if !connection.table_exists(None, "data_sync_migrations")? {
        return Ok(0);
    }
    let mut statement =
        connection.prepare_cached("SELECT max(version) FROM data_sync_migrations")?;
    Ok(statement.query_row([], |row| row.get::<_, Option<u32>>(0))?.unwrap_or(0))
}

fn apply(connection: &Connection, migration: &Migration, now_ms: u64) -> rusqlite::Result<()> {
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS data_sync_migrations (
             version INTEGER NOT NULL PRIMARY KEY,
             name TEXT NOT NULL,
             applied_at_ms INTEGER NOT NULL
         ) STRICT",
    )?;
    connection.execute_batch(migration.sql)?;
    connection.execute(
        "INSERT INTO data_sync_migrations (version, name, applied_at_ms) VALUES (?1, ?2, ?3)",
        params![migration.version, migration.name, now_ms],
    )?;
    Ok(())
}

/// Switches the file to a log written ahead. SQLite does not wait by itself for the moment
/// without other users that the switch needs.
fn turn_on_log(connection: &Connection) -> Result<(), MigrateError> {
    let tries = SQLITE_MIGRATION_TIMEOUT.as_millis() / LOG_RETRY_PAUSE.as_millis();
    connection.busy_timeout(LOG_RETRY_PAUSE).map_err(unavailable)?;
    for _ in 0..tries {
        let mode = connection
            .query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0))
            .optional();
        match mode {
            Ok(Some(mode)) if mode == "wal" => return Ok(()),
            Ok(mode) => {
                let mode = mode.unwrap_or_default();
                let reason = format!("the file system allows no shared log, only {mode}");
                return Err(MigrateError::Unavailable(reason));
            }
            Err(error) if is_busy(&error) => thread::sleep(LOG_RETRY_PAUSE),
            Err(error) => return Err(unavailable(error)),
        }
    }
    Err(MigrateError::Locked(SQLITE_MIGRATION_TIMEOUT.as_secs()))
}

fn is_busy(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn locked_or_unavailable(error: rusqlite::Error) -> MigrateError {
    if is_busy(&error) {
        return MigrateError::Locked(SQLITE_MIGRATION_TIMEOUT.as_secs());
    }
    unavailable(error)
}

fn state_of(applied: u32, legacy: LegacyState) -> SchemaState {
    let latest = MIGRATIONS.last().map_or(0, |migration| migration.version);
    SchemaState { applied, latest, legacy }
}
