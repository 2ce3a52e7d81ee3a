//! Takes over the tables of the Go server: within the caller's transaction, so that everything
//! happens or nothing does.

use tokio_postgres::{Client, Row, error::SqlState};

use super::{error::script_text, migrate::Failure};
use crate::store::migrate::{AdoptionReport, MigrateError};

/// Tables that must be there; the Go server's first release had no locks.
const PRESENT: &str = "SELECT to_regclass('records') IS NOT NULL,
    to_regclass('schema_migrations') IS NOT NULL, to_regclass('locks') IS NOT NULL";

/// In the order in which the Go server's writes touch them: the other order invites deadlocks.
const LOCK_TABLES: &str = "LOCK TABLE records, user_revisions IN ACCESS EXCLUSIVE MODE";
const LOCK_LOCKS: &str = "LOCK TABLE locks IN ACCESS EXCLUSIVE MODE";
const LOCK_MIGRATIONS: &str = "LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE";

/// Stands in for the locks of a release that had none; gone with the transaction.
const NO_LOCKS: &str = "CREATE TEMPORARY TABLE locks (user_id text, lock_name text,
    instance_id text, expires_at bigint, exclusive boolean) ON COMMIT DROP";

/// What makes adoption impossible: a half-done migration, data of ours, users that are no keys,
/// two spellings of one key, locks held by something that is no UUID.
const OBSTACLES: &str = "WITH owners AS (
        SELECT user_id FROM user_revisions UNION SELECT user_id FROM records
        UNION SELECT user_id FROM locks WHERE expires_at > extract(epoch FROM clock_timestamp())
    )
    SELECT
        (SELECT count(*) FROM schema_migrations WHERE dirty),
        (SELECT count(*) FROM (SELECT FROM data_sync.users LIMIT 1) any_user),
        count(*) FILTER (WHERE user_id !~ '^[0-9a-fA-F]{66}$'),
        count(*) - count(DISTINCT lower(user_id)),
        (SELECT count(*) FROM locks
         WHERE expires_at > extract(epoch FROM clock_timestamp())
           AND regexp_replace(lower(instance_id), '^urn:uuid:|[{}-]', '', 'g')
               !~ '^[0-9a-f]{32}$')
    FROM owners";

/// The head is the largest number seen of a user, in either table.
const COPY_USERS: &str = "INSERT INTO data_sync.users (user_id, revision)
    SELECT decode(user_id, 'hex'), greatest(max(revision), 0)
    FROM (SELECT user_id, revision::bigint FROM user_revisions
          UNION ALL SELECT user_id, revision::bigint FROM records) seen
    GROUP BY user_id";

/// Of records that share a revision the first by id keeps it, the others move above the head, as
/// do those with a revision that no client would ever list.
const COPY_RECORDS: &str = "INSERT INTO data_sync.records
        (user_id, id, revision, schema_version, data)
    SELECT user_id, id,
        CASE WHEN moves THEN head + row_number() OVER (PARTITION BY user_id, moves
                                                       ORDER BY revision, id)
             ELSE revision END,
        schema_version, data
    FROM (
        SELECT u.user_id, r.id, coalesce(r.revision, 0)::bigint AS revision, u.revision AS head,
               coalesce(r.schema_version, '') AS schema_version, r.data,
               coalesce(r.revision, 0) < 1 OR row_number() OVER (
                   PARTITION BY r.user_id, r.revision ORDER BY r.id COLLATE \"C\") > 1 AS moves
        FROM records r JOIN data_sync.users u ON u.user_id = decode(r.user_id, 'hex')
    ) numbered";

const COUNT_HOLDINGS: &str = "UPDATE data_sync.users u
    SET revision = greatest(u.revision, held.head), records = held.records, bytes = held.bytes
    FROM (SELECT user_id, max(revision) AS head, count(*) AS records,
                 sum(octet_length(data)) AS bytes
          FROM data_sync.records GROUP BY user_id) held
    WHERE held.user_id = u.user_id";

/// One UUID may be spelled in several ways: the later expiry wins.
const COPY_LOCKS: &str = "INSERT INTO data_sync.locks
        (user_id, name, instance, exclusive, expires_at, fencing_token)
    SELECT user_id, lock_name, instance, exclusive, to_timestamp(expires_at),
           nextval('data_sync.fencing_tokens')
    FROM (
        SELECT DISTINCT ON (user_id, lock_name, instance) *
        FROM (SELECT decode(user_id, 'hex') AS user_id, lock_name, exclusive, expires_at,
                     regexp_replace(lower(instance_id), '^urn:uuid:', '')::uuid AS instance
              FROM locks WHERE expires_at > extract(epoch FROM clock_timestamp())) live
        ORDER BY user_id, lock_name, instance, expires_at DESC
    ) latest";

/// Counts of theirs and ours, side by side.
const COMPARE: &str = "SELECT
    (SELECT count(DISTINCT user_id)
     FROM (SELECT user_id FROM user_revisions UNION SELECT user_id FROM records) theirs),
    (SELECT count(*) FROM data_sync.users),
    (SELECT count(*) FROM records),
    (SELECT count(*) FROM data_sync.records),
    (SELECT coalesce(sum(octet_length(data)), 0)::bigint FROM records),
    (SELECT coalesce(sum(octet_length(data)), 0)::bigint FROM data_sync.records),
    (SELECT count(*) FROM records r JOIN data_sync.records n
        ON n.user_id = decode(r.user_id, 'hex') AND n.id = r.id
     WHERE n.revision IS DISTINCT FROM r.revision),
    (SELECT count(*) FROM data_sync.locks),
    (SELECT count(*) FROM locks WHERE expires_at <= extract(epoch FROM clock_timestamp())),
    (SELECT count(*) FROM records r JOIN data_sync.records n
        ON n.user_id = decode(r.user_id, 'hex') AND n.id = r.id AND n.data = r.data)";

/// The ledger keeps its name and is marked broken: an old replica then refuses to start, where
/// missing tables would make it create new ones and take writes into the void.
const SET_ASIDE: &str = "ALTER TABLE records RENAME TO go_records;
    ALTER TABLE user_revisions RENAME TO go_user_revisions;
    UPDATE schema_migrations SET dirty = true;
    ANALYZE data_sync.users; ANALYZE data_sync.records; ANALYZE data_sync.locks";
const SET_LOCKS_ASIDE: &str = "ALTER TABLE locks RENAME TO go_locks";

/// Copies everything, checks the copy and sets the old tables aside.
pub(super) async fn adopt(client: &Client) -> Result<AdoptionReport, Failure> {
    let present = one(client, PRESENT).await?;
    let [has_records, has_ledger, has_locks] = [0, 1, 2].map(|column| flag(&present, column));
    if !has_records {
        return Err(refuse("the table records is missing"));
    }
    if !has_ledger {
        return Err(refuse("the table schema_migrations is missing"));
    }
    run(client, LOCK_TABLES).await?;
    run(client, if has_locks { LOCK_LOCKS } else { NO_LOCKS }).await?;
    run(client, LOCK_MIGRATIONS).await?;
    check(&one(client, OBSTACLES).await?)?;
    for step in [COPY_USERS, COPY_RECORDS, COUNT_HOLDINGS, COPY_LOCKS] {
        run(client, step).await?;
    }
    let report = compare(&one(client, COMPARE).await?)?;
    run(client, SET_ASIDE).await?;
    if has_locks {
        run(client, SET_LOCKS_ASIDE).await?;
    }
    Ok(report)
}

fn check(row: &Row) -> Result<(), Failure> {
    let obstacles = [
        "migrations of the Go server were left half done (dirty)",
        "users in the schema data_sync already: it is in use",
        "user ids are not the hex of a 33-byte public key",
        "user ids differ from another only in upper and lower case",
        "live locks have an instance id that is no uuid; they expire within five minutes",
    ];
    let found: Vec<String> = obstacles
        .iter()
        .enumerate()
        .map(|(column, text)| (count(row, column), text))
        .filter(|(count, _)| *count > 0)
        .map(|(count, text)| format!("{count} {text}"))
        .collect();
    if found.is_empty() { Ok(()) } else { Err(refuse(&found.join("; "))) }
}

fn compare(row: &Row) -> Result<AdoptionReport, Failure> {
    let pairs = [("users", 0), ("records", 2), ("bytes of data", 4)];
    for (what, column) in pairs {
        let (theirs, ours) = (count(row, column), count(row, column + 1));
        if theirs != ours {
            return Err(refuse(&format!("of {theirs} {what} {ours} were copied")));
        }
    }
    let (records, equal) = (count(row, 3), count(row, 9));
    if records != equal {
        return Err(refuse(&format!("of {records} records {equal} hold the same data")));
    }
    Ok(AdoptionReport {
        users: count(row, 1),
        records,
        bytes: count(row, 5),
        renumbered_records: count(row, 6),
        locks: count(row, 7),
        expired_locks: count(row, 8),
    })
}

async fn run(client: &Client, sql: &str) -> Result<(), Failure> {
    client.batch_execute(sql).await.map_err(|error| failure(&error))
}

async fn one(client: &Client, sql: &str) -> Result<Row, Failure> {
    client.query_typed_one(sql, &[]).await.map_err(|error| failure(&error))
}

fn flag(row: &Row, column: usize) -> bool {
    row.try_get(column).unwrap_or_default()
}

fn count(row: &Row, column: usize) -> u64 {
    // Counts are never negative; an unreadable one must not pass for zero.
    row.try_get(column).ok().and_then(|count: i64| u64::try_from(count).ok()).unwrap_or(u64::MAX)
}

fn failure(error: &tokio_postgres::Error) -> Failure {
    match error.code() {
        Some(code) if *code == SqlState::T_R_DEADLOCK_DETECTED => Failure::Deadlock,
        Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE => {
            refuse("a transaction of the Go server has held its tables for too long")
        }
        _ => refuse(&script_text(error)),
    }
}

fn refuse(reason: &str) -> Failure {
    Failure::Final(MigrateError::Adoption(reason.to_owned()))
}
