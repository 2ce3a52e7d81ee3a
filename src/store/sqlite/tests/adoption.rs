//! Files of the Go server.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::*;
use crate::{
    limits::MAX_RECORD_ID_BYTES,
    store::{
        LockAction,
        conformance::{instance, new_write, soon, user},
        migrate::AdoptionReport,
        transfer::{Totals, Transfer as _},
    },
};

/// The tables as the Go server's migrations leave them, at version 2.
const GO_SCHEMA: &str = "
    CREATE TABLE records (user_id TEXT NOT NULL, id TEXT NOT NULL, data BLOB,
        revision INTEGER NOT NULL, schema_version TEXT, PRIMARY KEY (user_id, id));
    CREATE TABLE user_revisions (user_id TEXT NOT NULL, revision INTEGER NOT NULL,
        PRIMARY KEY (user_id, revision));
    CREATE TABLE locks (user_id TEXT NOT NULL, lock_name TEXT NOT NULL,
        instance_id TEXT NOT NULL, expires_at BIGINT NOT NULL,
        exclusive BOOLEAN NOT NULL, PRIMARY KEY (user_id, lock_name, instance_id));
    CREATE TABLE schema_migrations (version uint64, dirty bool);
    CREATE UNIQUE INDEX version_unique ON schema_migrations (version);
    INSERT INTO schema_migrations VALUES (2, 0);";

fn go_file(directory: &Path) -> Connection {
    let connection = Connection::open(config_in(directory).path).unwrap();
    connection.execute_batch(GO_SCHEMA).unwrap();
    connection
}

fn go_record(file: &Connection, user: UserId, id: &str, revision: u64, data: Option<&[u8]>) {
    file.execute(
        "INSERT INTO records VALUES (?1, ?2, ?3, ?4, '1.0.0')",
        params![user.to_hex(), id, data, revision],
    )
    .unwrap();
}

fn go_head(file: &Connection, user: UserId, revision: u64) {
    let sql = "INSERT INTO user_revisions VALUES (?1, ?2)";
    file.execute(sql, params![user.to_hex(), revision]).unwrap();
}

fn go_lock(file: &Connection, user: UserId, name: &str, instance: &str, expires_at: u64) {
    let sql = "INSERT INTO locks VALUES (?1, ?2, ?3, ?4, 1)";
    file.execute(sql, params![user.to_hex(), name, instance, expires_at]).unwrap();
}

fn adopt(directory: &Path) -> Result<Option<AdoptionReport>, MigrateError> {
    migrate(&config_in(directory), &ManualClock::at(NOW_MS))
}

fn adopted(directory: &Path) -> AdoptionReport {
    adopt(directory).unwrap().unwrap()
}

async fn by_id(store: &SqliteStore, user: UserId) -> BTreeMap<String, u64> {
    let page = store.list_changes(user, 0, PageLimit::WIRE, soon()).await.unwrap();
    page.records.into_iter().map(|record| (record.id, record.revision)).collect()
}

#[tokio::test]
async fn a_hundred_thousand_records_arrive_as_they_were() {
    let directory = TempDir::new().unwrap();
    let mut file = go_file(directory.path());
    let transaction = file.transaction().unwrap();
    for number in 0..100 {
        for revision in 1..=1_000_u64 {
            let data = format!("{number}-{revision}");
            let id = format!("r{revision}");
            go_record(&transaction, user(number), &id, revision, Some(data.as_bytes()));
        }
        go_head(&transaction, user(number), 1_000);
    }
    transaction.commit().unwrap();
    drop(file);

    let report = adopted(directory.path());
    assert_eq!((report.users, report.records, report.renumbered_records), (100, 100_000, 0));
    let (store, _) = opened(directory.path(), &ManualClock::at(NOW_MS));
    let totals = store.totals().await.unwrap();
    assert_eq!(totals, Totals { users: 100, records: 100_000, bytes: report.bytes, locks: 0 });
    for number in [0, 57, 99] {
        let page = store.list_changes(user(number), 0, PageLimit::WIRE, soon()).await.unwrap();
        assert_eq!((page.records.len(), page.head), (1_000, 1_000));
        for (record, revision) in page.records.iter().zip(1_u64..) {
            assert_eq!(record.revision, revision);
            assert_eq!(record.id, format!("r{revision}"));
            assert_eq!(record.data, format!("{number}-{revision}"));
        }
    }
    let next = store.set_record(new_write(user(5), "r1", 1, b"x"), soon()).await.unwrap();
    assert_eq!(next, WriteOutcome::Written { revision: 1_001 });
}

#[tokio::test]
async fn odd_contents_arrive() {
    let directory = TempDir::new().unwrap();
    let file = go_file(directory.path());
    let long_id = "é".repeat(MAX_RECORD_ID_BYTES / 2);
    go_record(&file, user(1), "", 1, Some(b""));
    go_record(&file, user(1), &long_id, 2, None);
    go_record(&file, user(1), "nul\0id", 3, Some(&[0, 255]));
    file.execute_batch("UPDATE records SET schema_version = NULL WHERE revision = 3").unwrap();
    drop(file);

    adopted(directory.path());
    let (store, _) = opened(directory.path(), &ManualClock::at(NOW_MS));
    let page = store.list_changes(user(1), 0, PageLimit::WIRE, soon()).await.unwrap();
    let rows: Vec<_> = page
        .records
        .iter()
        .map(|r| (r.id.as_str(), r.schema_version.as_str(), r.data.as_ref()))
        .collect();
    let expected: [(&str, &str, &[u8]); 3] =
        [("", "1.0.0", b""), (&long_id, "1.0.0", b""), ("nul\0id", "", &[0, 255])];
    assert_eq!(rows, expected);
    assert_eq!(page.head, 3);
}

#[tokio::test]
async fn the_head_is_the_largest_revision_seen() {
    let directory = TempDir::new().unwrap();
    let file = go_file(directory.path());
    for revision in [3, 9, 4] {
        go_head(&file, user(1), revision);
    }
    go_record(&file, user(1), "r", 2, Some(b"x"));
    go_head(&file, user(2), 1);
    go_record(&file, user(2), "r", 5, Some(b"x"));
    go_head(&file, user(3), 7);
    drop(file);

    assert_eq!(adopted(directory.path()).users, 3);
    let (store, _) = opened(directory.path(), &ManualClock::at(NOW_MS));
    let users = [user(1), user(2), user(3), user(4)];
    assert_eq!(store.heads(&users, soon()).await.unwrap(), [9, 5, 7, 0]);
}

#[tokio::test]
async fn doubled_revisions_move_above_the_head() {
    let directory = TempDir::new().unwrap();
    let file = go_file(directory.path());
    for (id, revision) in [("a", 4), ("b", 4), ("c", 4), ("d", 2), ("e", 2), ("f", 1)] {
        go_record(&file, user(1), id, revision, Some(b"x"));
    }
    go_head(&file, user(1), 6);
    go_record(&file, user(2), "a", 4, Some(b"x"));
    drop(file);

    let report = adopted(directory.path());
    assert_eq!((report.records, report.renumbered_records), (7, 3));
    let (store, _) = opened(directory.path(), &ManualClock::at(NOW_MS));
    let expected = [("a", 4), ("b", 8), ("c", 9), ("d", 2), ("e", 7), ("f", 1)];
    let expected: BTreeMap<_, _> = expected.map(|(id, r)| (id.to_owned(), r)).into();
    assert_eq!(by_id(&store, user(1)).await, expected);
    assert_eq!(store.heads(&[user(1), user(2)], soon()).await.unwrap(), [9, 4]);
    let next = store.set_record(new_write(user(1), "b", 8, b"y"), soon()).await.unwrap();
    assert_eq!(next, WriteOutcome::Written { revision: 10 });
}

#[tokio::test]
async fn live_locks_arrive_once_per_instance() {
    let now = NOW_MS / 1_000;
    let directory = TempDir::new().unwrap();
    let file = go_file(directory.path());
    let spelled = instance(0xabc).to_string();
    go_lock(&file, user(1), "l", &spelled, now + 20);
    go_lock(&file, user(1), "l", &spelled.to_uppercase(), now + 50);
    go_lock(&file, user(1), "l", &format!("{{{spelled}}}"), now + 30);
    go_lock(&file, user(1), "m", &format!("URN:UUID:{spelled}"), now + 20);
    go_lock(&file, user(1), "gone", &spelled, now);
    go_lock(&file, user(1), "odd", "no uuid", now + 20);
    drop(file);

    let report = adopted(directory.path());
    assert_eq!((report.locks, report.expired_locks, report.users), (2, 1, 0));
    let (store, _) = opened(directory.path(), &ManualClock::at(NOW_MS));
    let locks = store.locks(None, 10).await.unwrap();
    let expiries: Vec<_> = locks.iter().map(|l| (l.name.as_str(), l.expires_at_ms)).collect();
    assert_eq!(expiries, [("l", NOW_MS + 50_000), ("m", NOW_MS + 20_000)]);
    assert!(locks.iter().all(|lock| lock.exclusive && lock.instance == instance(0xabc)));

    let newest = locks.iter().map(|lock| lock.fencing_token).max().unwrap();
    let action = LockAction::Acquire { exclusive: true, ttl_ms: 1_000 };
    let name = "new".to_owned();
    let request = LockRequest { user: user(1), name, instance: instance(1), action };
    let taken = store.set_lock(request, soon()).await.unwrap();
    assert!(matches!(taken, LockOutcome::Acquired { fencing_token, .. } if fencing_token > newest));
}

#[test]
fn early_schemas_are_adopted() {
    let now = NOW_MS / 1_000;
    for (drop, locks) in [
        ("DROP TABLE locks; UPDATE schema_migrations SET version = 1", 0),
        ("ALTER TABLE records DROP COLUMN schema_version", 1),
        ("ALTER TABLE locks DROP COLUMN exclusive", 1),
        ("DROP TABLE schema_migrations", 1),
    ] {
        let directory = TempDir::new().unwrap();
        let file = go_file(directory.path());
        go_record(&file, user(1), "r", 1, Some(b"x"));
        go_lock(&file, user(1), "l", &instance(1).to_string(), now + 9);
        file.execute_batch(drop).unwrap();
        file.close().unwrap();
        let report = adopted(directory.path());
        assert_eq!((report.records, report.locks), (1, locks), "{drop}");
    }
}

#[test]
fn an_adopted_file_bars_the_go_server_and_keeps_its_tables() {
    let directory = TempDir::new().unwrap();
    let file = go_file(directory.path());
    go_record(&file, user(1), "r", 1, Some(b"x"));
    drop(file);
    let config = config_in(directory.path());
    assert_eq!(schema_state(&config).unwrap().legacy, LegacyState::Unadopted);
    adopted(directory.path());
    assert_eq!(schema_state(&config).unwrap().legacy, LegacyState::Adopted);
    assert!(schema_state(&config).unwrap().is_ready());
    assert_eq!(adopt(directory.path()).unwrap(), None, "adopted a second time");

    let file = Connection::open(&config.path).unwrap();
    // The query that the Go server's migration tool starts with; a dirty version ends it.
    let (version, is_dirty): (i64, bool) = file
        .query_row("SELECT version, dirty FROM schema_migrations LIMIT 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!((version, is_dirty), (2, true));
    let kept: u64 =
        file.query_row("SELECT count(*) FROM go_records", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, 1);
    assert!(!file.table_exists(None, "records").unwrap());
}

#[test]
fn a_copy_of_the_file_as_it_was_stays_beside_it() {
    let directory = TempDir::new().unwrap();
    let file = go_file(directory.path());
    go_record(&file, user(1), "r", 1, Some(b"x"));
    drop(file);
    let older = directory.path().join("db.sqlite.before-adoption");
    std::fs::write(&older, "an older copy").unwrap();
    adopted(directory.path());

    assert_eq!(std::fs::read(&older).unwrap(), b"an older copy");
    let copy = directory.path().join("db.sqlite.before-adoption-2");
    let copy = Connection::open(copy).unwrap();
    let kept: u64 = copy.query_row("SELECT count(*) FROM records", [], |row| row.get(0)).unwrap();
    let is_dirty: bool =
        copy.query_row("SELECT dirty FROM schema_migrations", [], |row| row.get(0)).unwrap();
    assert_eq!((kept, is_dirty), (1, false));
    assert!(!copy.table_exists(None, "data_sync_users").unwrap());
}

#[test]
fn a_failed_adoption_leaves_the_file_as_it_was() {
    let bad_rows = [
        ("INSERT INTO records VALUES ('02ff', 'r', x'', 1, '')", "1 records whose user id"),
        ("INSERT INTO user_revisions VALUES ('not hex', 1)", "1 heads whose user id"),
        ("UPDATE records SET revision = 0", "1 records whose id is no text or whose revision"),
        ("UPDATE user_revisions SET revision = 'x'", "1 heads that are no number"),
        ("UPDATE schema_migrations SET dirty = 1", "left unfinished"),
        ("UPDATE schema_migrations SET version = 3", "schema 3 is unknown"),
    ];
    for (bad_row, expected) in bad_rows {
        let directory = TempDir::new().unwrap();
        let file = go_file(directory.path());
        go_record(&file, user(1), "r", 1, Some(b"x"));
        go_head(&file, user(1), 1);
        file.execute_batch(bad_row).unwrap();
        drop(file);
        let path = config_in(directory.path()).path;
        let before = std::fs::read(&path).unwrap();

        let failed = adopt(directory.path()).unwrap_err();
        assert!(matches!(failed, MigrateError::Adoption(_)), "{failed}");
        assert!(failed.to_string().contains(expected), "{failed}");
        assert!(std::fs::read(&path).unwrap() == before, "the file changed");
        let names: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["db.sqlite"], "something was left beside the file");
    }
}

#[tokio::test]
async fn data_of_both_servers_in_one_file_is_refused() {
    let directory = TempDir::new().unwrap();
    let (store, _) = opened(directory.path(), &ManualClock::at(NOW_MS));
    store.set_record(new_write(user(1), "r", 0, b"x"), soon()).await.unwrap();
    store.close().await;
    go_record(&go_file(directory.path()), user(1), "r", 1, Some(b"x"));
    let failed = adopt(directory.path()).unwrap_err();
    assert!(failed.to_string().contains("already holds 1 users"), "{failed}");
}

#[test]
fn an_unadopted_file_is_not_served() {
    let directory = TempDir::new().unwrap();
    drop(go_file(directory.path()));
    let clock = ManualClock::at(NOW_MS);
    let context = context(Arc::new(RecordingFeed::new()), Quotas::default(), &clock);
    let refused = SqliteStore::open(&config_in(directory.path()), context).unwrap_err();
    assert!(matches!(refused, MigrateError::Unadopted), "{refused}");
}

/// The way back, by the statements of the book: the Go server finds everything that was written
/// since, and the file can be adopted again.
#[tokio::test]
async fn the_way_back_takes_along_what_was_written_since() {
    let page = include_str!("../../../../docs/migrate.md");
    let (_, rest) = page.split_once("<!-- tried: sqlite-back -->\n```sql\n").unwrap();
    let (statements, _) = rest.split_once("```").unwrap();

    let directory = TempDir::new().unwrap();
    let file = go_file(directory.path());
    go_record(&file, user(1), "kept", 1, Some(b"k"));
    go_record(&file, user(1), "old", 2, Some(b"o"));
    go_head(&file, user(1), 2);
    go_head(&file, user(2), 7);
    drop(file);
    adopted(directory.path());
    let (store, _) = opened(directory.path(), &ManualClock::at(NOW_MS));
    for (user, id, base, revision) in
        [(user(1), "old", 2, 3), (user(1), "new", 0, 4), (user(3), "first", 0, 1)]
    {
        let written = store.set_record(new_write(user, id, base, b"since"), soon()).await;
        assert_eq!(written, Ok(WriteOutcome::Written { revision }));
    }
    store.close().await;

    let file = Connection::open(config_in(directory.path()).path).unwrap();
    file.execute_batch(statements).unwrap();
    let lines = |sql: &str| -> Vec<String> {
        let mut statement = file.prepare(sql).unwrap();
        let lines = statement.query_map([], |row| row.get(0)).unwrap();
        lines.collect::<rusqlite::Result<_>>().unwrap()
    };
    let records = "SELECT concat_ws(' ', substr(user_id, -1), id, revision, schema_version,
                       CAST(data AS TEXT)) FROM records ORDER BY user_id, revision";
    let expected =
        ["1 kept 1 1.0.0 k", "1 old 3 1.0.0 since", "1 new 4 1.0.0 since", "3 first 1 1.0.0 since"];
    assert_eq!(lines(records), expected);
    let heads = "SELECT concat_ws(' ', substr(user_id, -1), revision) FROM user_revisions
                 ORDER BY user_id";
    assert_eq!(lines(heads), ["1 4", "2 7", "3 1"]);
    assert_eq!(lines("SELECT CAST(dirty AS TEXT) FROM schema_migrations"), ["0"]);
    drop(file);

    let report = adopted(directory.path());
    assert_eq!((report.users, report.records, report.renumbered_records), (3, 4, 0));
}
