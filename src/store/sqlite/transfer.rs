//! Moving whole users in and out of the file.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _, Row, named_params};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    SqliteStore,
    records::{account, head_floor, page, put_account},
};
use crate::{
    limits::TRANSFER_READ_TIMEOUT,
    store::{
        PageLimit, StoreError, UserId,
        transfer::{
            Holdings, Lifted, Totals, Transfer, TransferLock, TransferRecord, UserCounters,
            UserSummary,
        },
    },
};

impl SqliteStore {
    async fn transfer_read<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.read(Instant::now() + TRANSFER_READ_TIMEOUT, read).await
    }
}

#[async_trait]
impl Transfer for SqliteStore {
    async fn totals(&self) -> Result<Totals, StoreError> {
        let now_ms = self.context.clock.now_ms();
        self.transfer_read(move |connection| totals(connection, now_ms)).await
    }

    async fn users(
        &self,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<UserSummary>, StoreError> {
        self.transfer_read(move |connection| users(connection, after, limit)).await
    }

    async fn counters(
        &self,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<UserCounters>, StoreError> {
        self.transfer_read(move |connection| counters(connection, after, limit)).await
    }

    async fn records(
        &self,
        user: UserId,
        after_revision: u64,
    ) -> Result<Vec<TransferRecord>, StoreError> {
        self.transfer_read(move |connection| {
            page(connection, user, after_revision, PageLimit::WIRE).map(|(records, _)| records)
        })
        .await
    }

    async fn locks(
        &self,
        after: Option<(UserId, String, Uuid)>,
        limit: usize,
    ) -> Result<Vec<TransferLock>, StoreError> {
        let now_ms = self.context.clock.now_ms();
        self.transfer_read(move |connection| locks(connection, after, limit, now_ms)).await
    }

    async fn fencing_token(&self) -> Result<u64, StoreError> {
        self.transfer_read(|connection| {
            let sql = "SELECT value FROM data_sync_meta WHERE name = 'fencing_token'";
            connection.query_row(sql, [], |row| row.get(0))
        })
        .await
    }

    async fn put_records(
        &self,
        user: UserId,
        records: Vec<TransferRecord>,
    ) -> Result<(), StoreError> {
        self.writer.run(move |connection| put_records(connection, user, &records)).await
    }

    async fn raise_head(&self, user: UserId, head: u64) -> Result<(), StoreError> {
        self.writer
            .run(move |connection| {
                let mut account = account(connection, user)?.unwrap_or_default();
                account.revision = account.revision.max(head);
                put_account(connection, user, account)
            })
            .await
    }

    async fn put_locks(&self, locks: Vec<TransferLock>) -> Result<(), StoreError> {
        self.writer
            .run(move |connection| locks.iter().try_for_each(|lock| put_lock(connection, lock)))
            .await
    }

    async fn raise_fencing_token(&self, floor: u64) -> Result<(), StoreError> {
        self.writer
            .run(move |connection| {
                let sql = "UPDATE data_sync_meta SET value = max(value, ?1)
                           WHERE name = 'fencing_token'";
                connection.execute(sql, [floor]).map(|_| ())
            })
            .await
    }

    async fn head_floor(&self) -> Result<u64, StoreError> {
        self.transfer_read(head_floor).await
    }

    async fn raise_head_floor(&self, floor: u64) -> Result<(), StoreError> {
        self.writer
            .run(move |connection| {
                let sql = "UPDATE data_sync_meta SET value = max(value, ?1)
                           WHERE name = 'head_floor'";
                connection.execute(sql, [floor]).map(|_| ())
            })
            .await
    }

    async fn lift(&self, by: u64) -> Result<Lifted, StoreError> {
        if self.is_served_elsewhere() {
            let reason = "another process serves this file: stop it first";
            return Err(StoreError::Unavailable(reason.to_owned()));
        }
        self.writer.run(move |connection| lift(connection, by)).await
    }
}

/// Every new revision lies above every old one of its user, so no two ever meet on the way.
fn lift(connection: &Connection, by: u64) -> rusqlite::Result<Lifted> {
    let records = connection.execute(
        "UPDATE data_sync_records SET revision = n.revision
         FROM (SELECT old.rowid AS place, u.revision + ?1
                   + row_number() OVER (PARTITION BY old.user_id ORDER BY old.revision) AS revision
               FROM data_sync_records AS old JOIN data_sync_users AS u USING (user_id)) AS n
         WHERE data_sync_records.rowid = n.place",
        [by],
    )?;
    let users = connection.execute(
        "UPDATE data_sync_users AS u SET revision = revision + ?1
             + (SELECT count(*) FROM data_sync_records AS r WHERE r.user_id = u.user_id)",
        [by],
    )?;
    connection.execute(
        "UPDATE data_sync_meta SET value = value + ?1
         WHERE name IN ('head_floor', 'fencing_token')",
        [by],
    )?;
    let token = "SELECT value FROM data_sync_meta WHERE name = 'fencing_token'";
    Ok(Lifted {
        users: users as u64,
        records: records as u64,
        head_floor: head_floor(connection)?,
        fencing_token: connection.query_row(token, [], |row| row.get(0))?,
    })
}

fn totals(connection: &Connection, now_ms: u64) -> rusqlite::Result<Totals> {
    let sql = "SELECT (SELECT count(*) FROM data_sync_users WHERE revision > 0),
                   (SELECT count(*) FROM data_sync_records),
                   (SELECT coalesce(sum(length(data)), 0) FROM data_sync_records),
                   (SELECT count(*) FROM data_sync_locks WHERE expires_at_ms > ?1)";
    connection.query_row(sql, [now_ms], |row| {
        Ok(Totals {
            users: row.get(0)?,
            records: row.get(1)?,
            bytes: row.get(2)?,
            locks: row.get(3)?,
        })
    })
}

fn users(
    connection: &Connection,
    after: Option<UserId>,
    limit: usize,
) -> rusqlite::Result<Vec<UserSummary>> {
    let mut statement = connection.prepare_cached(
        "SELECT u.user_id, u.revision, count(r.id), coalesce(sum(length(r.data)), 0)
         FROM (SELECT user_id, revision FROM data_sync_users
               WHERE revision > 0 AND user_id > :after ORDER BY user_id LIMIT :limit) AS u
         LEFT JOIN data_sync_records AS r ON r.user_id = u.user_id
         GROUP BY u.user_id, u.revision ORDER BY u.user_id",
    )?;
    let after = after.as_ref().map_or(&[][..], |user| &user.as_bytes()[..]);
    let parameters = named_params! { ":after": after, ":limit": limit };
    let rows = statement.query_map(parameters, |row| {
        Ok(UserSummary {
            user: UserId::new(row.get(0)?),
            head: row.get(1)?,
            records: row.get(2)?,
            bytes: row.get(3)?,
        })
    })?;
    rows.collect()
}

fn counters(
    connection: &Connection,
    after: Option<UserId>,
    limit: usize,
) -> rusqlite::Result<Vec<UserCounters>> {
    let mut statement = connection.prepare_cached(
        "SELECT u.user_id, u.record_count, u.byte_count,
             count(r.id), coalesce(sum(length(r.data)), 0)
         FROM (SELECT * FROM data_sync_users
               WHERE user_id > :after ORDER BY user_id LIMIT :limit) AS u
         LEFT JOIN data_sync_records AS r ON r.user_id = u.user_id
         GROUP BY u.user_id ORDER BY u.user_id",
    )?;
    let after = after.as_ref().map_or(&[][..], |user| &user.as_bytes()[..]);
    let parameters = named_params! { ":after": after, ":limit": limit };
    let rows = statement.query_map(parameters, |row| {
        Ok(UserCounters {
            user: UserId::new(row.get(0)?),
            kept: Holdings { records: row.get(1)?, bytes: row.get(2)? },
            real: Holdings { records: row.get(3)?, bytes: row.get(4)? },
        })
    })?;
    rows.collect()
}

fn locks(
    connection: &Connection,
    after: Option<(UserId, String, Uuid)>,
    limit: usize,
    now_ms: u64,
) -> rusqlite::Result<Vec<TransferLock>> {
    let mut statement = connection.prepare_cached(
        "SELECT user_id, name, instance_id, exclusive, expires_at_ms, fencing_token
         FROM data_sync_locks
         WHERE expires_at_ms > :now
             AND (:user IS NULL OR (user_id, name, instance_id) > (:user, :name, :instance))
         ORDER BY user_id, name, instance_id LIMIT :limit",
    )?;
    let (user, name, instance) = match after {
        Some((user, name, instance)) => (Some(*user.as_bytes()), name, *instance.as_bytes()),
        None => (None, String::new(), [0; 16]),
    };
    let parameters = named_params! {
        ":now": now_ms, ":user": user, ":name": name, ":instance": instance, ":limit": limit,
    };
    let rows = statement.query_map(parameters, |row: &Row<'_>| {
        Ok(TransferLock {
            user: UserId::new(row.get(0)?),
            name: row.get(1)?,
            instance: Uuid::from_bytes(row.get(2)?),
            exclusive: row.get(3)?,
            expires_at_ms: row.get(4)?,
            fencing_token: row.get(5)?,
        })
    })?;
    rows.collect()
}

fn put_records(
    connection: &Connection,
    user: UserId,
    records: &[TransferRecord],
) -> rusqlite::Result<()> {
    let mut account = account(connection, user)?.unwrap_or_default();
    let mut old_size = connection.prepare_cached(
        "SELECT length(data) FROM data_sync_records WHERE user_id = ?1 AND id = ?2",
    )?;
    let mut put = connection.prepare_cached(
        "INSERT INTO data_sync_records
             (user_id, id, revision, schema_version, request_digest, data)
         VALUES (:user, :id, :revision, :schema_version, :digest, :data)
         ON CONFLICT (user_id, id) DO UPDATE SET revision = excluded.revision,
             schema_version = excluded.schema_version,
             request_digest = excluded.request_digest, data = excluded.data",
    )?;
    for record in records {
        let old: Option<u64> =
            old_size.query_row((user.as_bytes(), &record.id), |row| row.get(0)).optional()?;
        put.execute(named_params! {
            ":user": user.as_bytes(),
            ":id": record.id,
            ":revision": record.revision,
            ":schema_version": record.schema_version,
            ":digest": record.digest.map(|digest| digest.0),
            ":data": &record.data[..],
        })?;
        account.revision = account.revision.max(record.revision);
        account.records += u64::from(old.is_none());
        account.bytes = account.bytes.saturating_sub(old.unwrap_or(0)) + record.data.len() as u64;
    }
    put_account(connection, user, account)
}

fn put_lock(connection: &Connection, lock: &TransferLock) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT OR REPLACE INTO data_sync_locks
             (user_id, name, instance_id, exclusive, expires_at_ms, fencing_token)
         VALUES (:user, :name, :instance, :exclusive, :expires_at_ms, :fencing_token)",
    )?;
    statement.execute(named_params! {
        ":user": lock.user.as_bytes(),
        ":name": lock.name,
        ":instance": lock.instance.as_bytes(),
        ":exclusive": lock.exclusive,
        ":expires_at_ms": lock.expires_at_ms,
        ":fencing_token": lock.fencing_token,
    })?;
    Ok(())
}
