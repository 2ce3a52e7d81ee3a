//! Records and heads in SQL.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use crate::{
    limits::RECORD_OVERHEAD_BYTES,
    store::{
        Page, PageLimit, Quota, Quotas, RecordWrite, RequestDigest, StoredRecord, UserId,
        WriteOutcome, transfer::TransferRecord,
    },
};

/// What a record being written replaces.
struct Held {
    row: i64,
    revision: u64,
    bytes: u64,
    is_repeat: bool,
}

/// A user's head and what quotas count.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Account {
    pub(super) revision: u64,
    pub(super) records: u64,
    pub(super) bytes: u64,
}

/// Writes one record if its condition holds. Runs inside the caller's transaction.
pub(super) fn set_record(
    connection: &Connection,
    write: &RecordWrite,
    quotas: &Quotas,
) -> rusqlite::Result<WriteOutcome> {
    let held = held(connection, write)?;
    if let Some(held) = &held {
        if held.is_repeat {
            return Ok(WriteOutcome::Repeated { revision: held.revision });
        }
        if held.revision != write.base_revision {
            return Ok(WriteOutcome::Conflict);
        }
    }

    let old = match account(connection, write.user)? {
        Some(account) => account,
        None => Account { revision: head_floor(connection)?, ..Account::default() },
    };
    let old_bytes = held.as_ref().map_or(0, |held| held.bytes);
    let new_bytes = write.data.len() as u64;
    let new = Account {
        revision: old.revision + 1,
        records: old.records + u64::from(held.is_none()),
        bytes: old.bytes.saturating_sub(old_bytes) + new_bytes,
    };
    if held.is_none() && quotas.max_records.is_some_and(|most| new.records > most) {
        return Ok(WriteOutcome::OverQuota(Quota::Records));
    }
    if new_bytes > old_bytes && quotas.max_bytes.is_some_and(|most| new.bytes > most) {
        return Ok(WriteOutcome::OverQuota(Quota::Bytes));
    }

    put_account(connection, write.user, new)?;
    match held {
        Some(held) => replace(connection, held.row, write, new.revision)?,
        None => insert(connection, write, new.revision)?,
    }
    Ok(WriteOutcome::Written { revision: new.revision })
}

fn held(connection: &Connection, write: &RecordWrite) -> rusqlite::Result<Option<Held>> {
    let mut statement = connection.prepare_cached(
        "SELECT rowid, revision, length(data), request_digest IS :digest
         FROM data_sync_records WHERE user_id = :user AND id = :id",
    )?;
    let parameters = named_params! {
        ":user": write.user.as_bytes(), ":id": write.id, ":digest": write.digest.0,
    };
    let read = |row: &Row<'_>| {
        Ok(Held {
            row: row.get(0)?,
            revision: row.get(1)?,
            bytes: row.get(2)?,
            is_repeat: row.get(3)?,
        })
    };
    statement.query_row(parameters, read).optional()
}

fn insert(connection: &Connection, write: &RecordWrite, revision: u64) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO data_sync_records
             (user_id, id, revision, schema_version, request_digest, data)
         VALUES (:user, :id, :revision, :schema_version, :digest, :data)",
    )?;
    statement.execute(named_params! {
        ":user": write.user.as_bytes(),
        ":id": write.id,
        ":revision": revision,
        ":schema_version": write.schema_version,
        ":digest": write.digest.0,
        ":data": &write.data[..],
    })?;
    Ok(())
}

fn replace(
    connection: &Connection,
    row: i64,
    write: &RecordWrite,
    revision: u64,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "UPDATE data_sync_records SET revision = :revision, schema_version = :schema_version,
             request_digest = :digest, data = :data
         WHERE rowid = :row",
    )?;
    statement.execute(named_params! {
        ":row": row,
        ":revision": revision,
        ":schema_version": write.schema_version,
        ":digest": write.digest.0,
        ":data": &write.data[..],
    })?;
    Ok(())
}

/// The user's head and counters; nothing for a user who never wrote.
pub(super) fn account(connection: &Connection, user: UserId) -> rusqlite::Result<Option<Account>> {
    let mut statement = connection.prepare_cached(
        "SELECT revision, record_count, byte_count FROM data_sync_users WHERE user_id = ?1",
    )?;
    let read = |row: &Row<'_>| {
        Ok(Account { revision: row.get(0)?, records: row.get(1)?, bytes: row.get(2)? })
    };
    statement.query_row([user.as_bytes()], read).optional()
}

/// The revision above which new users begin.
pub(super) fn head_floor(connection: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT value FROM data_sync_meta WHERE name = 'head_floor'";
    connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
}

/// Stores the user's head and counters.
pub(super) fn put_account(
    connection: &Connection,
    user: UserId,
    account: Account,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO data_sync_users (user_id, revision, record_count, byte_count)
         VALUES (:user, :revision, :records, :bytes)
         ON CONFLICT (user_id) DO UPDATE SET revision = excluded.revision,
             record_count = excluded.record_count, byte_count = excluded.byte_count",
    )?;
    statement.execute(named_params! {
        ":user": user.as_bytes(),
        ":revision": account.revision,
        ":records": account.records,
        ":bytes": account.bytes,
    })?;
    Ok(())
}

/// Reads one record.
pub(super) fn record(
    connection: &Connection,
    user: UserId,
    id: &str,
) -> rusqlite::Result<Option<StoredRecord>> {
    let mut statement = connection.prepare_cached(
        "SELECT revision, schema_version, data FROM data_sync_records
         WHERE user_id = :user AND id = :id",
    )?;
    let read = |row: &Row<'_>| {
        Ok(StoredRecord {
            id: id.to_owned(),
            revision: row.get(0)?,
            schema_version: row.get(1)?,
            data: blob(row, 2)?,
        })
    };
    let parameters = named_params! { ":user": user.as_bytes(), ":id": id };
    statement.query_row(parameters, read).optional()
}

/// Reads the heads of `users`, in their order.
pub(super) fn heads(connection: &Connection, users: &[UserId]) -> rusqlite::Result<Vec<u64>> {
    let mut statement =
        connection.prepare_cached("SELECT revision FROM data_sync_users WHERE user_id = ?1")?;
    users
        .iter()
        .map(|user| {
            let head = statement.query_row([user.as_bytes()], |row| row.get(0)).optional()?;
            Ok(head.unwrap_or(0))
        })
        .collect()
}

/// Reads a page of changes. Runs inside the caller's transaction, so that page and head are of
/// one snapshot.
pub(super) fn changes(
    connection: &Connection,
    user: UserId,
    since: u64,
    limit: PageLimit,
) -> rusqlite::Result<Page> {
    let head = account(connection, user)?.unwrap_or_default().revision;
    let (records, has_more) = page(connection, user, since, limit)?;
    let records = records
        .into_iter()
        .map(|record| StoredRecord {
            id: record.id,
            revision: record.revision,
            schema_version: record.schema_version,
            data: record.data,
        })
        .collect();
    Ok(Page { records, head, has_more })
}

/// Reads the records above `since` up to `limit`, and whether there are more.
pub(super) fn page(
    connection: &Connection,
    user: UserId,
    since: u64,
    limit: PageLimit,
) -> rusqlite::Result<(Vec<TransferRecord>, bool)> {
    // No revision lies above the largest that SQL can name.
    let since = i64::try_from(since).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(
        "SELECT id, revision, schema_version, request_digest, data FROM data_sync_records
         WHERE user_id = :user AND revision > :since ORDER BY revision",
    )?;
    let mut rows = statement.query(named_params! { ":user": user.as_bytes(), ":since": since })?;
    let mut records = Vec::new();
    let mut bytes = 0_usize;
    while let Some(row) = rows.next()? {
        let size = row.get_ref(0)?.as_bytes()?.len()
            + row.get_ref(2)?.as_bytes()?.len()
            + row.get_ref(4)?.as_bytes()?.len();
        bytes = bytes.saturating_add(size + RECORD_OVERHEAD_BYTES);
        let is_full = records.len() >= limit.max_records || bytes > limit.max_bytes;
        if is_full && !records.is_empty() {
            return Ok((records, true));
        }
        records.push(TransferRecord {
            id: row.get(0)?,
            revision: row.get(1)?,
            schema_version: row.get(2)?,
            digest: row.get::<_, Option<[u8; 32]>>(3)?.map(RequestDigest),
            data: blob(row, 4)?,
        });
    }
    Ok((records, false))
}

fn blob(row: &Row<'_>, column: usize) -> rusqlite::Result<Bytes> {
    Ok(Bytes::copy_from_slice(row.get_ref(column)?.as_blob()?))
}
