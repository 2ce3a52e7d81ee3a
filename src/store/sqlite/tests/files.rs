//! The file itself: migrations, reopening, several processes.

use std::thread;

use super::*;
use crate::store::{
    LockAction,
    conformance::{instance, new_write, soon, user},
};

#[tokio::test]
async fn everything_is_found_again_after_reopening() {
    let directory = TempDir::new().unwrap();
    let clock = ManualClock::at(NOW_MS);
    let (store, _) = opened(directory.path(), &clock);
    let write = new_write(user(1), "r", 0, b"data");
    store.set_record(write.clone(), soon()).await.unwrap();
    let action = LockAction::Acquire { exclusive: true, ttl_ms: 60_000 };
    let lock = LockRequest { user: user(1), name: "l".to_owned(), instance: instance(1), action };
    let taken = store.set_lock(lock.clone(), soon()).await.unwrap();
    store.close().await;
    assert!(!directory.path().join("db.sqlite-wal").exists(), "the log was not moved in");

    let (store, _) = opened(directory.path(), &clock);
    let again = store.set_record(write, soon()).await.unwrap();
    assert_eq!(again, WriteOutcome::Repeated { revision: 1 });
    assert_eq!(store.set_lock(lock, soon()).await.unwrap(), taken);
}

/// Until 3.51.3 two connections that moved the log at the same moment could lose a commit.
#[test]
fn the_linked_sqlite_has_its_wal_reset_repaired() {
    let version = rusqlite::version_number();
    assert!(version >= 3_051_003, "{version}");
}

#[test]
fn looking_at_a_missing_file_does_not_make_it() {
    let directory = TempDir::new().unwrap();
    let config = config_in(directory.path());
    let state = schema_state(&config).unwrap();
    assert_eq!((state.applied, state.legacy, state.is_ready()), (0, LegacyState::None, false));
    assert!(!config.path.exists());
    let context =
        context(Arc::new(RecordingFeed::new()), Quotas::default(), &ManualClock::at(NOW_MS));
    let refused = SqliteStore::open(&config, context).unwrap_err();
    assert!(matches!(refused, MigrateError::Unavailable(_)), "{refused}");
}

#[test]
fn the_directory_is_made_with_the_file() {
    let directory = TempDir::new().unwrap();
    let config = config_in(&directory.path().join("a/b"));
    migrate(&config, &ManualClock::at(NOW_MS)).unwrap();
    assert!(schema_state(&config).unwrap().is_ready());
}

#[test]
fn migrations_are_numbered_without_gaps() {
    let versions: Vec<u32> = MIGRATIONS.iter().map(|migration| migration.version).collect();
    let expected: Vec<u32> = (1..).take(versions.len()).collect();
    assert_eq!(versions, expected);
}

#[test]
fn many_processes_may_migrate_at_once() {
    let directory = TempDir::new().unwrap();
    let config = config_in(directory.path());
    thread::scope(|scope| {
        let starts: Vec<_> =
            (0..8).map(|_| scope.spawn(|| migrate(&config, &ManualClock::at(NOW_MS)))).collect();
        for start in starts {
            assert_eq!(start.join().unwrap().unwrap(), None);
        }
    });
    assert!(schema_state(&config).unwrap().is_ready());
    let connection = rusqlite::Connection::open(&config.path).unwrap();
    let rows: usize = connection
        .query_row("SELECT count(*) FROM data_sync_migrations", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, MIGRATIONS.len());
}

#[tokio::test]
async fn a_newer_schema_is_served() {
    let directory = TempDir::new().unwrap();
    let clock = ManualClock::at(NOW_MS);
    let config = config_in(directory.path());
    migrate(&config, &clock).unwrap();
    let connection = rusqlite::Connection::open(&config.path).unwrap();
    connection.execute_batch("INSERT INTO data_sync_migrations VALUES (99, 'later', 0)").unwrap();
    let (store, _) = opened(directory.path(), &clock);
    assert_eq!(store.status(soon()).await.unwrap().schema_version, 99);
    store.set_record(new_write(user(1), "r", 0, b"x"), soon()).await.unwrap();
}

/// Two stores are two processes as far as SQLite's locks between connections go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_on_one_file_never_hear_that_it_is_locked() {
    let directory = TempDir::new().unwrap();
    let clock = ManualClock::at(NOW_MS);
    let (one, _) = opened(directory.path(), &clock);
    let (other, _) = opened(directory.path(), &clock);
    let mut writes = tokio::task::JoinSet::new();
    let (one, other) = (Arc::new(one), Arc::new(other));
    for nth in 0..200 {
        let store = if nth % 2 == 0 { one.clone() } else { other.clone() };
        writes.spawn(async move {
            store.set_record(new_write(user(1), &format!("{nth}"), 0, b"x"), soon()).await
        });
    }
    let outcomes = writes.join_all().await;
    let mut revisions: Vec<u64> = outcomes
        .into_iter()
        .map(|outcome| match outcome.unwrap() {
            WriteOutcome::Written { revision } => revision,
            other => panic!("answered {other:?}"),
        })
        .collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=200).collect::<Vec<_>>());
}
