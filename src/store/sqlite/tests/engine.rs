//! Batches, faults and queues.

use std::{sync::mpsc, time::Duration};

use futures_util::{FutureExt as _, future::join_all};
use uuid::Uuid;

use super::*;
use crate::{
    limits::{MAX_QUEUED_WRITES, MAX_SQLITE_BATCH_ROWS, SQLITE_READERS},
    notify::Change,
    store::{
        LockAction,
        conformance::{instance, new_write, soon, user},
    },
};

/// Keeps the writer's thread busy until the sender is dropped.
async fn hold_writer(store: &Arc<SqliteStore>) -> mpsc::Sender<()> {
    let (release, wait) = mpsc::channel::<()>();
    let (started, has_started) = tokio::sync::oneshot::channel();
    let held = store.clone();
    let mut held = Box::pin(async move {
        held.writer
            .run(move |_| {
                started.send(()).unwrap();
                // An error is the sender's end, which is what this waits for.
                let _ = wait.recv();
                Ok(())
            })
            .await
    });
    assert!(held.as_mut().now_or_never().is_none());
    has_started.await.unwrap();
    release
}

fn lock(number: u32, instance: Uuid, ttl_ms: u64) -> LockRequest {
    let action = LockAction::Acquire { exclusive: true, ttl_ms };
    LockRequest { user: user(number), name: "l".to_owned(), instance, action }
}

#[tokio::test]
async fn a_lock_lives_to_its_last_millisecond() {
    let directory = TempDir::new().unwrap();
    let clock = ManualClock::at(NOW_MS);
    let (store, _) = opened(directory.path(), &clock);
    store.set_lock(lock(1, instance(1), 1_000), soon()).await.unwrap();
    clock.advance(Duration::from_millis(999));
    assert!(store.is_locked(user(1), "l", soon()).await.unwrap());
    let held = store.set_lock(lock(1, instance(2), 1_000), soon()).await.unwrap();
    assert_eq!(held, LockOutcome::Held);
    clock.advance(Duration::from_millis(1));
    assert!(!store.is_locked(user(1), "l", soon()).await.unwrap());
    let taken = store.set_lock(lock(1, instance(2), 1_000), soon()).await.unwrap();
    assert_eq!(taken, LockOutcome::Acquired { fencing_token: 2, expires_at_ms: NOW_MS + 2_000 });
}

#[tokio::test]
async fn expired_locks_of_absent_users_are_swept() {
    let directory = TempDir::new().unwrap();
    let clock = ManualClock::at(NOW_MS);
    let (store, _) = opened(directory.path(), &clock);
    for number in 0..40 {
        store.set_lock(lock(number, instance(1), 1_000), soon()).await.unwrap();
    }
    clock.advance(Duration::from_secs(1));
    // The last in line for the sweep is taken all the same.
    let taken = store.set_lock(lock(39, instance(2), 1_000), soon()).await.unwrap();
    assert!(matches!(taken, LockOutcome::Acquired { .. }), "{taken:?}");
    for number in 100..102 {
        store.set_lock(lock(number, instance(1), 1_000), soon()).await.unwrap();
    }
    let count = |connection: &rusqlite::Connection| {
        connection.query_row("SELECT count(*) FROM data_sync_locks", [], |row| row.get(0))
    };
    let rows: u64 = store.writer.run(count).await.unwrap();
    assert_eq!(rows, 3);
}

#[tokio::test]
async fn writes_that_wait_share_one_commit() {
    let directory = TempDir::new().unwrap();
    let (store, feed) = opened(directory.path(), &ManualClock::at(NOW_MS));
    let store = Arc::new(store);
    let release = hold_writer(&store).await;
    let writes: Vec<_> = (0..MAX_SQLITE_BATCH_ROWS)
        .map(|nth| store.set_record(new_write(user(1), &format!("{nth}"), 0, b"x"), soon()))
        .collect();
    let release_once_queued = async { drop(release) };
    let (outcomes, ()) = tokio::join!(join_all(writes), release_once_queued);
    assert!(outcomes.iter().all(Result::is_ok));
    let batches = &store.context.metrics.store_batch_rows;
    assert_eq!(batches.get_sample_count(), 1);
    assert!((batches.get_sample_sum() - MAX_SQLITE_BATCH_ROWS as f64).abs() < 0.5);
    assert_eq!(feed.changes_of(user(1)).len(), 1);
    assert_eq!(feed.announced_head(user(1)), MAX_SQLITE_BATCH_ROWS as u64);
}

#[tokio::test]
async fn a_failing_write_fails_alone() {
    let directory = TempDir::new().unwrap();
    let (store, feed) = opened(directory.path(), &ManualClock::at(NOW_MS));
    let store = Arc::new(store);
    store.set_record(new_write(user(1), "a", 0, b"x"), soon()).await.unwrap();
    let break_head = "UPDATE data_sync_users SET revision = 0";
    store.writer.run(move |c| c.execute_batch(break_head)).await.unwrap();

    let release = hold_writer(&store).await;
    let writes = [
        store.set_record(new_write(user(2), "a", 0, b"x"), soon()),
        store.set_record(new_write(user(1), "b", 0, b"x"), soon()),
        store.set_record(new_write(user(3), "a", 0, b"x"), soon()),
    ];
    let (outcomes, ()) = tokio::join!(join_all(writes), async { drop(release) });
    assert_eq!(outcomes[0], Ok(WriteOutcome::Written { revision: 1 }));
    assert!(matches!(outcomes[1], Err(StoreError::Internal(_))), "{:?}", outcomes[1]);
    assert_eq!(outcomes[2], Ok(WriteOutcome::Written { revision: 1 }));
    assert_eq!(feed.announced_head(user(2)), 1);
    assert_eq!(feed.announced_head(user(1)), 1);
}

#[tokio::test]
async fn a_full_disk_is_told_and_passes() {
    let directory = TempDir::new().unwrap();
    let (store, feed) = opened(directory.path(), &ManualClock::at(NOW_MS));
    let limit_pages = |pages: u32| {
        store.writer.run(move |connection| {
            let sql = format!("PRAGMA max_page_count = {pages}");
            connection.query_row(&sql, [], |_| Ok(()))
        })
    };
    limit_pages(40).await.unwrap();
    let large = vec![1; 65_536];
    let mut written = 0;
    let refused = loop {
        let write = new_write(user(1), &format!("{written}"), 0, &large);
        match store.set_record(write, soon()).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100, "the limit does not hold");
    };
    assert_eq!(refused, StoreError::StorageFull);
    assert_eq!(feed.announced_head(user(1)), written);
    limit_pages(1_000_000).await.unwrap();
    let again = store.set_record(new_write(user(1), "next", 0, &large), soon()).await.unwrap();
    assert_eq!(again, WriteOutcome::Written { revision: written + 1 });
}

#[tokio::test]
async fn a_write_that_waits_past_its_deadline_never_happens() {
    let directory = TempDir::new().unwrap();
    let (store, feed) = opened(directory.path(), &ManualClock::at(NOW_MS));
    let store = Arc::new(store);
    let release = hold_writer(&store).await;
    let deadline = Instant::now() + Duration::from_millis(30);
    let late = store.set_record(new_write(user(1), "a", 0, b"x"), deadline).await;
    assert_eq!(late, Err(StoreError::DeadlineExceeded));
    drop(release);
    let next = store.set_record(new_write(user(1), "b", 0, b"x"), soon()).await.unwrap();
    assert_eq!(next, WriteOutcome::Written { revision: 1 });
    assert_eq!(store.record(user(1), "a", soon()).await.unwrap(), None);
    assert_eq!(feed.announced_head(user(1)), 1);
}

#[tokio::test]
async fn a_full_queue_turns_writes_away() {
    let directory = TempDir::new().unwrap();
    let (store, feed) = opened(directory.path(), &ManualClock::at(NOW_MS));
    let store = Arc::new(store);
    let release = hold_writer(&store).await;
    let send = |nth: usize| {
        store.set_record(new_write(user(1), &format!("{nth}"), 0, b"x"), soon()).now_or_never()
    };
    for nth in 0..MAX_QUEUED_WRITES {
        assert!(send(nth).is_none(), "write {nth} was answered at once");
    }
    assert_eq!(send(MAX_QUEUED_WRITES), Some(Err(StoreError::Overloaded)));
    drop(release);
    store.close().await;
    assert_eq!(feed.announced_head(user(1)), MAX_QUEUED_WRITES as u64);
}

#[tokio::test]
async fn busy_readers_time_out_and_leave_the_status_alone() {
    let directory = TempDir::new().unwrap();
    let (store, _) = opened(directory.path(), &ManualClock::at(NOW_MS));
    let store = Arc::new(store);
    let (release, wait) = mpsc::channel::<()>();
    let wait = Arc::new(std::sync::Mutex::new(wait));
    let mut reads = Vec::new();
    for _ in 0..SQLITE_READERS {
        let (store, wait) = (store.clone(), wait.clone());
        let mut read = Box::pin(async move {
            let blocked = move |_: &rusqlite::Connection| {
                // An error is the sender's end, which is what this waits for.
                let _ = wait.lock().unwrap().recv();
                Ok(())
            };
            store.read(soon(), blocked).await
        });
        assert!(read.as_mut().now_or_never().is_none());
        reads.push(read);
    }
    let late = store.heads(&[user(1)], Instant::now() + Duration::from_millis(30)).await;
    assert_eq!(late, Err(StoreError::DeadlineExceeded));
    assert!(store.status(soon()).await.is_ok());
    drop(release);
    assert!(join_all(reads).await.iter().all(Result::is_ok));
    assert_eq!(store.heads(&[user(1)], soon()).await, Ok(vec![0]));
}

/// Ends the thread that announces through it.
#[derive(Debug)]
struct PanickingFeed;

impl ChangeFeed for PanickingFeed {
    fn announce(&self, _changes: &[Change]) {
        panic!("meant to happen: a feed that panics");
    }

    fn nudge(&self, _user: UserId) {}
}

#[tokio::test]
async fn a_panic_of_the_writer_leaves_no_call_hanging() {
    let directory = TempDir::new().unwrap();
    let clock = ManualClock::at(NOW_MS);
    let config = config_in(directory.path());
    migrate(&config, &clock).unwrap();
    let context = context(Arc::new(PanickingFeed), Quotas::default(), &clock);
    let store = SqliteStore::open(&config, context).unwrap();
    for _ in 0..2 {
        let answer = store.set_record(new_write(user(1), "a", 0, b"x"), soon()).await;
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
        let answer = store.heads(&[user(1)], soon()).await;
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
        let answer = store.status(soon()).await;
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    }
    store.close().await;
}
