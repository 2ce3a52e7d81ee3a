//! Takes over a file that the Go server made.
//!
//! All of it happens in the migration's transaction, after a copy of the file was made beside
//! it. The Go server's data tables stay under other names; its `schema_migrations` stays and is
//! marked dirty, so that an old process refuses to start instead of making empty tables. (Its
//! early versions look at no migrations in a file that exists; they fail at every request, for
//! want of their tables.)
//!
//! Whatever the Go server cannot have written (a user id that is not 33 bytes of lower-case hex,
//! a revision below 1, an id that is no text) ends the adoption: nobody could ever reach such a
//! record, and dropping data in silence is worse than asking. A live lock of such a user, or of
//! an instance that is no UUID, is dropped with a warning: it ends by itself within minutes.

use std::path::{Path, PathBuf};

use rusqlite::{
    Connection,
    backup::{Backup, StepResult},
    named_params, params,
};
use uuid::Uuid;

use super::{
    beside,
    connection::{open_plain, reason},
};
use crate::{
    limits::SQLITE_MIGRATION_TIMEOUT,
    store::{
        UserId,
        migrate::{AdoptionReport, LegacyState, MigrateError},
    },
};

/// The Go server's tables of data, which are renamed.
const DATA_TABLES: [&str; 3] = ["records", "user_revisions", "locks"];
/// Its migration tool's table, which keeps its name.
const VERSION_TABLE: &str = "schema_migrations";
/// The newest of its schemas that is known; 1 had no locks.
const NEWEST_SCHEMA: i64 = 2;
/// What an adopted file's tables of data are called.
const ADOPTED_PREFIX: &str = "go_";
/// Most copies beside one file; more means that somebody should look.
const MAX_COPIES: u32 = 100;

/// What the file holds of the Go server's.
pub(super) fn legacy_state(connection: &Connection) -> rusqlite::Result<LegacyState> {
    for table in DATA_TABLES {
        if connection.table_exists(None, table)? {
            return Ok(LegacyState::Unadopted);
        }
    }
    for table in DATA_TABLES {
        if connection.table_exists(None, format!("{ADOPTED_PREFIX}{table}").as_str())? {
            return Ok(LegacyState::Adopted);
        }
    }
    Ok(LegacyState::None)
}

/// A copy of the file as it was; gone again unless it is kept.
pub(super) struct Copy {
    path: PathBuf,
    is_kept: bool,
}

impl Copy {
    /// Copies the file beside itself, under a name that is not taken.
    pub(super) fn make(path: &Path) -> Result<Self, MigrateError> {
        let names = (1..=MAX_COPIES).map(|nth| match nth {
            1 => beside(path, "before-adoption"),
            _ => beside(path, &format!("before-adoption-{nth}")),
        });
        let mut free = names.filter(|name| !name.exists());
        let name = free.next().ok_or_else(|| failed("too many copies lie beside the file"))?;
        let copy = Self { path: name, is_kept: false };
        copy.fill(path).map_err(|error| {
            MigrateError::Adoption(format!("cannot make a copy first: {}", reason(&error)))
        })?;
        Ok(copy)
    }

    fn fill(&self, from: &Path) -> rusqlite::Result<()> {
        let from = open_plain(from, false, SQLITE_MIGRATION_TIMEOUT)?;
        let mut to = open_plain(&self.path, true, SQLITE_MIGRATION_TIMEOUT)?;
        let backup = Backup::new(&from, &mut to)?;
        // All pages at once: the source cannot change meanwhile.
        match backup.step(-1)? {
            StepResult::Done => Ok(()),
            _ => Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
                None,
            )),
        }
    }

    /// Leaves the copy where it is.
    pub(super) fn keep(mut self) {
        self.is_kept = true;
        tracing::info!(copy = %self.path.display(), "copied the file before its adoption");
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, copy = %self.path.display(), "cannot remove an unused copy");
        }
    }
}

fn failed(reason: impl Into<String>) -> MigrateError {
    MigrateError::Adoption(reason.into())
}

/// Copies the Go server's data into our empty tables, checks it, and renames its tables.
pub(super) fn adopt(connection: &Connection, now_ms: u64) -> Result<AdoptionReport, MigrateError> {
    let sql = |error: rusqlite::Error| MigrateError::Adoption(reason(&error));
    check_schema(connection)?;
    create_missing(connection).map_err(sql)?;
    check_records(connection)?;
    let renumbered_records = copy_records(connection).map_err(sql)?;
    let (locks, expired_locks) = copy_locks(connection, now_ms).map_err(sql)?;
    let report = check_copy(connection, renumbered_records, locks, expired_locks)?;
    rename(connection).map_err(sql)?;
    Ok(report)
}

/// Refuses a schema that is unknown or half-made, and a file that has data of ours.
fn check_schema(connection: &Connection) -> Result<(), MigrateError> {
    let sql = |error: rusqlite::Error| MigrateError::Adoption(reason(&error));
    let ours: u64 = connection
        .query_row("SELECT count(*) FROM data_sync_users", [], |row| row.get(0))
        .map_err(sql)?;
    if ours > 0 {
        return Err(failed(format!(
            "the file already holds {ours} users of this server beside the go server's tables"
        )));
    }
    if !connection.table_exists(None, VERSION_TABLE).map_err(sql)? {
        return Ok(());
    }
    let mut versions =
        connection.prepare(&format!("SELECT version, dirty FROM {VERSION_TABLE}")).map_err(sql)?;
    let versions = versions
        .query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, bool>(1)?)))
        .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
        .map_err(sql)?;
    for (version, is_dirty) in versions {
        if is_dirty {
            return Err(failed(format!("a migration to version {version} was left unfinished")));
        }
        if version > NEWEST_SCHEMA {
            return Err(failed(format!(
                "the go server's schema {version} is unknown, {NEWEST_SCHEMA} is the newest known"
            )));
        }
    }
    Ok(())
}

/// Makes those of the Go server's tables and columns that its early versions lack, so that all
/// later steps find the same. Early locks were shared ones.
fn create_missing(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS records (user_id TEXT NOT NULL, id TEXT NOT NULL,
             data BLOB NOT NULL, revision INTEGER NOT NULL, schema_version TEXT,
             PRIMARY KEY (user_id, id));
         CREATE TABLE IF NOT EXISTS user_revisions (user_id TEXT NOT NULL,
             revision INTEGER NOT NULL, PRIMARY KEY (user_id, revision));
         CREATE TABLE IF NOT EXISTS locks (user_id TEXT NOT NULL, lock_name TEXT NOT NULL,
             instance_id TEXT NOT NULL, expires_at INTEGER NOT NULL,
             exclusive INTEGER NOT NULL, PRIMARY KEY (user_id, lock_name, instance_id));
         CREATE TABLE IF NOT EXISTS schema_migrations (version uint64, dirty bool)",
    )?;
    if !connection.column_exists(None, "records", "schema_version")? {
        connection.execute_batch("ALTER TABLE records ADD COLUMN schema_version TEXT")?;
    }
    if !connection.column_exists(None, "locks", "exclusive")? {
        let sql = "ALTER TABLE locks ADD COLUMN exclusive INTEGER NOT NULL DEFAULT 0";
        connection.execute_batch(sql)?;
    }
    Ok(())
}

/// Refuses rows that no client could reach.
fn check_records(connection: &Connection) -> Result<(), MigrateError> {
    let checks = [
        (
            "records whose user id is not 33 bytes of lower-case hex",
            "SELECT count(*) FROM records WHERE user_id IS NULL
                 OR user_id IS NOT lower(hex(unhex(user_id))) OR length(user_id) <> 66",
        ),
        (
            "heads whose user id is not 33 bytes of lower-case hex",
            "SELECT count(*) FROM user_revisions WHERE user_id IS NULL
                 OR user_id IS NOT lower(hex(unhex(user_id))) OR length(user_id) <> 66",
        ),
        (
            "records whose id is no text or whose revision is no number from 1 on",
            "SELECT count(*) FROM records
             WHERE typeof(id) <> 'text' OR typeof(revision) <> 'integer' OR revision < 1",
        ),
        (
            "heads that are no number from 0 on",
            "SELECT count(*) FROM user_revisions
             WHERE typeof(revision) <> 'integer' OR revision < 0",
        ),
    ];
    for (what, sql) in checks {
        let count: u64 = connection
            .query_row(sql, [], |row| row.get(0))
            .map_err(|error| failed(reason(&error)))?;
        if count > 0 {
            return Err(failed(format!("{count} {what}")));
        }
    }
    Ok(())
}

/// Copies heads and records; answers how many records got a new revision.
///
/// Two records of one user may have the same revision, since two of its processes on one file
/// could draw it at once. The first by id keeps it, the others move above the head: a client
/// that knows them by the old revision is told of a conflict, lists, and finds them.
fn copy_records(connection: &Connection) -> rusqlite::Result<u64> {
    connection.execute(
        "INSERT INTO data_sync_users (user_id, revision, record_count, byte_count)
         SELECT unhex(user_id), max(revision), 0, 0
         FROM (SELECT user_id, revision FROM user_revisions
               UNION ALL SELECT user_id, revision FROM records)
         GROUP BY user_id",
        [],
    )?;
    connection.execute(
        "WITH ranked AS (
             SELECT user_id, id, revision,
                 row_number() OVER (PARTITION BY user_id, revision ORDER BY id) AS place
             FROM records
         ), moved AS (
             SELECT user_id, id,
                 row_number() OVER (PARTITION BY user_id ORDER BY revision, id) AS step
             FROM ranked WHERE place > 1
         )
         INSERT INTO data_sync_records (user_id, id, revision, schema_version, data)
         SELECT u.user_id, r.id, coalesce(u.revision + m.step, r.revision),
             coalesce(CAST(r.schema_version AS TEXT), ''), CAST(coalesce(r.data, x'') AS BLOB)
         FROM records AS r
         JOIN data_sync_users AS u ON u.user_id = unhex(r.user_id)
         LEFT JOIN moved AS m ON m.user_id = r.user_id AND m.id = r.id
         ORDER BY r.user_id, r.revision",
        [],
    )?;
    let renumbered = connection.query_row(
        "SELECT count(*) FROM data_sync_records AS n
         JOIN records AS r ON unhex(r.user_id) = n.user_id AND r.id = n.id
         WHERE r.revision <> n.revision",
        [],
        |row| row.get(0),
    )?;
    connection.execute(
        "UPDATE data_sync_users AS u SET (revision, record_count, byte_count) =
             (SELECT max(u.revision, coalesce(max(r.revision), 0)), count(*),
                  coalesce(sum(length(r.data)), 0)
              FROM data_sync_records AS r WHERE r.user_id = u.user_id)",
        [],
    )?;
    Ok(renumbered)
}

/// Copies live locks; answers how many, and how many had expired.
fn copy_locks(connection: &Connection, now_ms: u64) -> rusqlite::Result<(u64, u64)> {
    let mut select = connection.prepare(
        "SELECT user_id, lock_name, instance_id, exclusive, expires_at * 1000 FROM locks
         ORDER BY expires_at, user_id, lock_name, instance_id",
    )?;
    // In ascending expiry, so that of two spellings of one instance the later replaces the
    // earlier.
    let mut insert = connection.prepare(
        "INSERT OR REPLACE INTO data_sync_locks
             (user_id, name, instance_id, exclusive, expires_at_ms, fencing_token)
         VALUES (:user, :name, :instance, :exclusive, :expires_at_ms, :fencing_token)",
    )?;
    let (mut token, mut expired, mut unreadable) = (0_u64, 0, 0_u64);
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let expires_at_ms: i64 = row.get(4)?;
        if i128::from(expires_at_ms) <= i128::from(now_ms) {
            expired += 1;
            continue;
        }
        let user = UserId::from_hex(&row.get::<_, String>(0)?);
        // The Go server took every case of the longer notations, too.
        let instance = Uuid::parse_str(&row.get::<_, String>(2)?.to_ascii_lowercase());
        let (Some(user), Ok(instance)) = (user, instance) else {
            unreadable += 1;
            continue;
        };
        token += 1;
        insert.execute(named_params! {
            ":user": user.as_bytes(),
            ":name": row.get::<_, String>(1)?,
            ":instance": instance.as_bytes(),
            ":exclusive": row.get::<_, bool>(3)?,
            ":expires_at_ms": expires_at_ms,
            ":fencing_token": token,
        })?;
    }
    if unreadable > 0 {
        tracing::warn!(locks = unreadable, "left live locks of unreadable holders behind");
    }
    connection
        .execute("UPDATE data_sync_meta SET value = ?1 WHERE name = 'fencing_token'", [token])?;
    let copied =
        connection.query_row("SELECT count(*) FROM data_sync_locks", [], |row| row.get(0))?;
    Ok((copied, expired))
}

/// Compares what was copied with what was there.
fn check_copy(
    connection: &Connection,
    renumbered_records: u64,
    locks: u64,
    expired_locks: u64,
) -> Result<AdoptionReport, MigrateError> {
    let count = |sql: &str| {
        connection
            .query_row(sql, [], |row| row.get::<_, u64>(0))
            .map_err(|error| failed(reason(&error)))
    };
    let pairs = [
        (
            "users",
            "SELECT count(*) FROM (SELECT user_id FROM user_revisions
                 UNION SELECT user_id FROM records)",
            "SELECT count(*) FROM data_sync_users",
        ),
        (
            "records",
            "SELECT count(*) FROM records",
            "SELECT coalesce(sum(record_count), 0) FROM data_sync_users",
        ),
        (
            "bytes",
            "SELECT coalesce(sum(length(CAST(data AS BLOB))), 0) FROM records",
            "SELECT coalesce(sum(byte_count), 0) FROM data_sync_users",
        ),
    ];
    let mut copied = [0; 3];
    for ((what, old, new), copied) in pairs.into_iter().zip(&mut copied) {
        let expected = count(old)?;
        *copied = count(new)?;
        if *copied != expected {
            return Err(failed(format!("{copied} of {expected} {what} arrived")));
        }
    }
    let [users, records, bytes] = copied;
    Ok(AdoptionReport { users, records, bytes, renumbered_records, locks, expired_locks })
}

/// Puts the Go server's tables aside and bars its processes.
fn rename(connection: &Connection) -> rusqlite::Result<()> {
    for table in DATA_TABLES {
        let sql = format!("ALTER TABLE {table} RENAME TO {ADOPTED_PREFIX}{table}");
        connection.execute_batch(&sql)?;
    }
    let marked = connection.execute("UPDATE schema_migrations SET dirty = 1", [])?;
    if marked == 0 {
        let sql = "INSERT INTO schema_migrations (version, dirty) VALUES (?1, ?2)";
        connection.execute(sql, params![NEWEST_SCHEMA, true])?;
    }
    Ok(())
}
