//! Whole users out of and into Postgres.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use tokio_postgres::{Row, types::Type};
use uuid::Uuid;

use super::{
    PostgresStore, bigint,
    migrate::MIGRATION_KEY,
    number, text_error,
    transaction::{self, Ended, Parameter},
};
use crate::{
    limits::{
        LIFT_TIMEOUT, MAX_PAGE_BYTES, MAX_PAGE_RECORDS, RECORD_OVERHEAD_BYTES,
        TRANSFER_STATEMENT_TIMEOUT,
    },
    store::{
        RequestDigest, StoreError, UserId,
        transfer::{
            Holdings, Lifted, Totals, Transfer, TransferLock, TransferRecord, UserCounters,
            UserSummary,
        },
    },
};

const TOTALS: &str = "SELECT
    (SELECT count(*) FROM data_sync.users WHERE revision > 0),
    count(*), coalesce(sum(octet_length(data)), 0)::int8,
    (SELECT count(*) FROM data_sync.locks WHERE expires_at > clock_timestamp())
    FROM data_sync.records";

const USERS: &str = "SELECT u.user_id, u.revision, r.records, r.bytes
    FROM data_sync.users u CROSS JOIN LATERAL (
        SELECT count(*) AS records, coalesce(sum(octet_length(data)), 0)::int8 AS bytes
        FROM data_sync.records WHERE user_id = u.user_id
    ) r
    WHERE u.revision > 0 AND u.user_id > $1 ORDER BY u.user_id LIMIT $2";

const COUNTERS: &str = "SELECT u.user_id, u.records, u.bytes, r.records, r.bytes
    FROM data_sync.users u CROSS JOIN LATERAL (
        SELECT count(*) AS records, coalesce(sum(octet_length(data)), 0)::int8 AS bytes
        FROM data_sync.records WHERE user_id = u.user_id
    ) r
    WHERE u.user_id > $1 ORDER BY u.user_id LIMIT $2";

const RECORDS: &str = "SELECT id, revision, schema_version, data, request_digest FROM (
        SELECT *, row_number() OVER w AS place,
            sum(octet_length(id) + octet_length(schema_version) + octet_length(data) + $4) OVER w
                AS bytes
        FROM (
            SELECT * FROM data_sync.records WHERE user_id = $1 AND revision > $2
            ORDER BY revision LIMIT $3
        ) page
        WINDOW w AS (ORDER BY revision ROWS UNBOUNDED PRECEDING)
    ) cut WHERE place = 1 OR bytes <= $5 ORDER BY revision";

const LOCKS: &str = "SELECT user_id, name, instance, exclusive,
        (extract(epoch FROM expires_at) * 1000)::int8, fencing_token
    FROM data_sync.locks
    WHERE expires_at > clock_timestamp() AND (user_id, name, instance) > ($1, $2, $3)
    ORDER BY user_id, name, instance LIMIT $4";

const FENCING_TOKEN: &str =
    "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM data_sync.fencing_tokens";

const RAISE_FENCING_TOKEN: &str = "SELECT setval('data_sync.fencing_tokens', $1)
    FROM data_sync.fencing_tokens WHERE $1 > CASE WHEN is_called THEN last_value ELSE 0 END";

const HEAD_FLOOR: &str = "SELECT data_sync.head_floor_v1()";

const RAISE_HEAD_FLOOR: &str = "SELECT data_sync.raise_head_floor_v1($1)";

const LIFT: &str = "SELECT lifted_users, lifted_records, head_floor, last_token
    FROM data_sync.lift_v1($1)";

const RAISE_HEAD: &str = "INSERT INTO data_sync.users AS u (user_id, revision) VALUES ($1, $2)
    ON CONFLICT (user_id) DO UPDATE SET revision = greatest(u.revision, excluded.revision)";

/// One statement, so one snapshot: what the user held before is counted as it was before.
const PUT_RECORDS: &str = "WITH incoming AS (
        SELECT * FROM unnest($2::text[], $3::int8[], $4::text[], $5::bytea[], $6::bytea[])
            AS rows (id, revision, schema_version, data, request_digest)
    ), held AS (
        SELECT count(*) AS records, coalesce(sum(octet_length(r.data)), 0)::int8 AS bytes
        FROM data_sync.records r JOIN incoming USING (id) WHERE r.user_id = $1
    ), arriving AS (
        SELECT count(*) AS records, coalesce(sum(octet_length(data)), 0)::int8 AS bytes,
               max(revision) AS head
        FROM incoming
    ), put AS (
        INSERT INTO data_sync.records
            (user_id, id, revision, schema_version, data, request_digest)
        SELECT $1, id, revision, schema_version, data, request_digest FROM incoming
        ON CONFLICT (user_id, id) DO UPDATE SET
            revision = excluded.revision, schema_version = excluded.schema_version,
            data = excluded.data, request_digest = excluded.request_digest
    )
    INSERT INTO data_sync.users AS u (user_id, revision, records, bytes)
    SELECT $1, a.head, a.records - h.records, a.bytes - h.bytes FROM arriving a, held h
    ON CONFLICT (user_id) DO UPDATE SET
        revision = greatest(u.revision, excluded.revision),
        records = u.records + excluded.records, bytes = u.bytes + excluded.bytes";

const PUT_LOCKS: &str = "INSERT INTO data_sync.locks
        (user_id, name, instance, exclusive, expires_at, fencing_token)
    SELECT user_id, name, instance, exclusive,
           timestamptz 'epoch' + expires_ms * interval '1 millisecond', token
    FROM unnest($1::bytea[], $2::text[], $3::uuid[], $4::bool[], $5::int8[], $6::int8[])
        AS rows (user_id, name, instance, exclusive, expires_ms, token)
    ON CONFLICT (user_id, name, instance) DO UPDATE SET
        exclusive = excluded.exclusive, expires_at = excluded.expires_at,
        fencing_token = excluded.fencing_token";

/// Transfers have no caller with a deadline; each statement has the one of a transfer.
const LIMIT: Duration = TRANSFER_STATEMENT_TIMEOUT;

impl PostgresStore {
    async fn fetch(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, StoreError> {
        self.lender.read_within(sql, parameters, Instant::now() + LIMIT, LIMIT).await
    }

    async fn put(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<(), StoreError> {
        let begin = transaction::begin("READ COMMITTED", LIMIT, LIMIT);
        self.call(&begin, sql, parameters, LIMIT).await.map(|_| ())
    }

    async fn call(
        &self,
        begin: &str,
        sql: &str,
        parameters: &[Parameter<'_>],
        limit: Duration,
    ) -> Result<Vec<Row>, StoreError> {
        let deadline = Instant::now() + limit;
        match self.lender.transact(begin, sql, parameters, deadline, limit).await? {
            Ended::Committed(rows) => Ok(rows),
            Ended::RolledBack(fault) => Err(fault.into_store_error()),
            Ended::Unknown(text) => Err(StoreError::Unavailable(text)),
        }
    }
}

#[async_trait]
impl Transfer for PostgresStore {
    async fn totals(&self) -> Result<Totals, StoreError> {
        let rows = self.fetch(TOTALS, &[]).await?;
        let row = only(&rows)?;
        Ok(Totals {
            users: number(row, 0)?,
            records: number(row, 1)?,
            bytes: number(row, 2)?,
            locks: number(row, 3)?,
        })
    }

    async fn users(
        &self,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<UserSummary>, StoreError> {
        let after = after.as_ref().map_or(&[][..], |user| user.as_bytes());
        let limit = bigint(limit);
        let rows = self.fetch(USERS, &[(&after, Type::BYTEA), (&limit, Type::INT8)]).await?;
        let summary = |row: &Row| {
            Ok(UserSummary {
                user: user(row)?,
                head: number(row, 1)?,
                records: number(row, 2)?,
                bytes: number(row, 3)?,
            })
        };
        rows.iter().map(summary).collect()
    }

    async fn counters(
        &self,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<UserCounters>, StoreError> {
        let after = after.as_ref().map_or(&[][..], |user| user.as_bytes());
        let limit = bigint(limit);
        let rows = self.fetch(COUNTERS, &[(&after, Type::BYTEA), (&limit, Type::INT8)]).await?;
        let counters = |row: &Row| {
            Ok(UserCounters {
                user: user(row)?,
                kept: Holdings { records: number(row, 1)?, bytes: number(row, 2)? },
                real: Holdings { records: number(row, 3)?, bytes: number(row, 4)? },
            })
        };
        rows.iter().map(counters).collect()
    }

    async fn records(
        &self,
        user: UserId,
        after_revision: u64,
    ) -> Result<Vec<TransferRecord>, StoreError> {
        let key = user.as_bytes().as_slice();
        let after = bigint(after_revision);
        let most = bigint(MAX_PAGE_RECORDS);
        let overhead = bigint(RECORD_OVERHEAD_BYTES);
        let bytes = bigint(MAX_PAGE_BYTES);
        let parameters: [Parameter<'_>; 5] = [
            (&key, Type::BYTEA),
            (&after, Type::INT8),
            (&most, Type::INT8),
            (&overhead, Type::INT8),
            (&bytes, Type::INT8),
        ];
        self.fetch(RECORDS, &parameters).await?.iter().map(record).collect()
    }

    async fn locks(
        &self,
        after: Option<(UserId, String, Uuid)>,
        limit: usize,
    ) -> Result<Vec<TransferLock>, StoreError> {
        // No user id is empty: this is before every lock.
        let first = (Vec::new(), String::new(), Uuid::nil());
        let (key, name, instance) = after
            .map_or(first, |(user, name, instance)| (user.as_bytes().to_vec(), name, instance));
        let limit = bigint(limit);
        let parameters: [Parameter<'_>; 4] = [
            (&key, Type::BYTEA),
            (&name, Type::TEXT),
            (&instance, Type::UUID),
            (&limit, Type::INT8),
        ];
        self.fetch(LOCKS, &parameters).await?.iter().map(lock).collect()
    }

    async fn fencing_token(&self) -> Result<u64, StoreError> {
        let rows = self.fetch(FENCING_TOKEN, &[]).await?;
        number(only(&rows)?, 0)
    }

    async fn put_records(
        &self,
        user: UserId,
        records: Vec<TransferRecord>,
    ) -> Result<(), StoreError> {
        if records.is_empty() {
            return Ok(());
        }
        let key = user.as_bytes().as_slice();
        let ids: Vec<&str> = records.iter().map(|r| r.id.as_str()).collect();
        let revisions: Vec<i64> =
            records.iter().map(|r| stored(r.revision)).collect::<Result<_, _>>()?;
        let versions: Vec<&str> = records.iter().map(|r| r.schema_version.as_str()).collect();
        let data: Vec<&[u8]> = records.iter().map(|r| &*r.data).collect();
        let digests: Vec<Option<&[u8]>> =
            records.iter().map(|r| r.digest.as_ref().map(|digest| digest.0.as_slice())).collect();
        let parameters: [Parameter<'_>; 6] = [
            (&key, Type::BYTEA),
            (&ids, Type::TEXT_ARRAY),
            (&revisions, Type::INT8_ARRAY),
            (&versions, Type::TEXT_ARRAY),
            (&data, Type::BYTEA_ARRAY),
            (&digests, Type::BYTEA_ARRAY),
        ];
        self.put(PUT_RECORDS, &parameters).await
    }

    async fn raise_head(&self, user: UserId, head: u64) -> Result<(), StoreError> {
        let key = user.as_bytes().as_slice();
        let head = stored(head)?;
        self.put(RAISE_HEAD, &[(&key, Type::BYTEA), (&head, Type::INT8)]).await
    }

    async fn put_locks(&self, locks: Vec<TransferLock>) -> Result<(), StoreError> {
        let users: Vec<&[u8]> = locks.iter().map(|l| l.user.as_bytes().as_slice()).collect();
        let names: Vec<&str> = locks.iter().map(|l| l.name.as_str()).collect();
        let instances: Vec<Uuid> = locks.iter().map(|l| l.instance).collect();
        let kinds: Vec<bool> = locks.iter().map(|l| l.exclusive).collect();
        let ends: Vec<i64> =
            locks.iter().map(|l| stored(l.expires_at_ms)).collect::<Result<_, _>>()?;
        let tokens: Vec<i64> =
            locks.iter().map(|l| stored(l.fencing_token)).collect::<Result<_, _>>()?;
        let parameters: [Parameter<'_>; 6] = [
            (&users, Type::BYTEA_ARRAY),
            (&names, Type::TEXT_ARRAY),
            (&instances, Type::UUID_ARRAY),
            (&kinds, Type::BOOL_ARRAY),
            (&ends, Type::INT8_ARRAY),
            (&tokens, Type::INT8_ARRAY),
        ];
        self.put(PUT_LOCKS, &parameters).await
    }

    async fn raise_fencing_token(&self, floor: u64) -> Result<(), StoreError> {
        let floor = stored(floor)?;
        self.put(RAISE_FENCING_TOKEN, &[(&floor, Type::INT8)]).await
    }

    async fn head_floor(&self) -> Result<u64, StoreError> {
        let rows = self.fetch(HEAD_FLOOR, &[]).await?;
        number(only(&rows)?, 0)
    }

    async fn raise_head_floor(&self, floor: u64) -> Result<(), StoreError> {
        let floor = stored(floor)?;
        self.put(RAISE_HEAD_FLOOR, &[(&floor, Type::INT8)]).await
    }

    async fn lift(&self, by: u64) -> Result<Lifted, StoreError> {
        let by = stored(by)?;
        let begin = format!(
            "{}; SELECT pg_advisory_xact_lock({MIGRATION_KEY})",
            transaction::begin("READ COMMITTED", LIFT_TIMEOUT, LIMIT)
        );
        let rows = self.call(&begin, LIFT, &[(&by, Type::INT8)], LIFT_TIMEOUT).await?;
        let row = only(&rows)?;
        Ok(Lifted {
            users: number(row, 0)?,
            records: number(row, 1)?,
            head_floor: number(row, 2)?,
            fencing_token: number(row, 3)?,
        })
    }
}

/// A number as a column holds it.
fn stored(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number)
        .map_err(|_too_large| StoreError::Internal(format!("{number} is too large to be stored")))
}

fn only(rows: &[Row]) -> Result<&Row, StoreError> {
    rows.first().ok_or_else(|| StoreError::Internal("a query came without an answer".to_owned()))
}

fn user(row: &Row) -> Result<UserId, StoreError> {
    let key: &[u8] = row.try_get(0).map_err(|error| text_error(&error))?;
    UserId::from_slice(key)
        .ok_or_else(|| StoreError::Internal("a stored user id has a wrong length".to_owned()))
}

fn record(row: &Row) -> Result<TransferRecord, StoreError> {
    let read = || -> Result<_, tokio_postgres::Error> {
        let data: &[u8] = row.try_get(3)?;
        let digest: Option<&[u8]> = row.try_get(4)?;
        Ok((row.try_get(0)?, row.try_get(2)?, Bytes::copy_from_slice(data), digest))
    };
    let (id, schema_version, data, digest) = read().map_err(|error| text_error(&error))?;
    let digest = digest.map(|digest| digest.try_into().map(RequestDigest)).transpose();
    let digest = digest.map_err(|_wrong_length| {
        StoreError::Internal("a stored digest has a wrong length".to_owned())
    })?;
    Ok(TransferRecord { id, revision: number(row, 1)?, schema_version, data, digest })
}

fn lock(row: &Row) -> Result<TransferLock, StoreError> {
    let read = || -> Result<_, tokio_postgres::Error> {
        Ok((row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
    };
    let (name, instance, exclusive) = read().map_err(|error| text_error(&error))?;
    Ok(TransferLock {
        user: user(row)?,
        name,
        instance,
        exclusive,
        expires_at_ms: number(row, 4)?,
        fencing_token: number(row, 5)?,
    })
}
