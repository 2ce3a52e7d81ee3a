//! Two replicas on one database.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use data_sync::store::{
    Quotas, Store, UserId, WriteOutcome,
    conformance::{new_write, soon, user},
};
use tokio::{task::JoinSet, time::Instant};

use super::{Opened, open};
use crate::support::postgres::{Database, migrated_database};

const USERS: u32 = 4;
const WRITERS: u32 = 8;
const WRITES: u32 = 25;

/// Heads equal the writes accepted, revisions are without holes, counters are true.
async fn assert_consistent(database: &Database<'_>, accepted: u64) {
    let client = database.connect().await;
    let row = client
        .query_one(
            "SELECT (SELECT coalesce(sum(revision), 0)::int8 FROM data_sync.users),
                    (SELECT count(*) FROM data_sync.users u WHERE
                        (u.revision, u.records, u.bytes) <>
                        (SELECT max(revision), count(*), sum(octet_length(data))::int8
                         FROM data_sync.records r WHERE r.user_id = u.user_id))",
            &[],
        )
        .await
        .expect("counts");
    let (heads, untrue): (i64, i64) = (row.get(0), row.get(1));
    assert_eq!((heads, untrue), (i64::try_from(accepted).expect("few"), 0));
}

/// Writes to one record of many writers and to one of its own; answers the accepted writes.
async fn write_and_merge(
    store: Arc<dyn Store>,
    user: UserId,
    name: String,
    accepted: Arc<AtomicU64>,
) {
    for nth in 0..WRITES {
        let id = if nth % 2 == 0 { "shared" } else { name.as_str() };
        loop {
            let held = store.record(user, id, soon()).await.expect("a read");
            let base = held.map_or(0, |record| record.revision);
            let data = vec![7; usize::try_from(nth).expect("small") * 20];
            // Neither Contended nor anything else: an unwrap on every answer.
            match store.set_record(new_write(user, id, base, &data), soon()).await.expect("a write")
            {
                WriteOutcome::Written { .. } => {
                    accepted.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                WriteOutcome::Conflict => {}
                other => panic!("answered {other:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_on_the_same_users_only_write_or_conflict() {
    let database = migrated_database().await;
    let replicas = [(); 2].map(|()| open(&database.config(), Quotas::default()));
    let accepted = Arc::new(AtomicU64::new(0));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        for (nth, replica) in replicas.iter().enumerate() {
            let name = format!("{nth}-{writer}");
            let store: Arc<dyn Store> = replica.store.clone();
            writers.spawn(write_and_merge(
                store,
                user(writer % USERS),
                name,
                Arc::clone(&accepted),
            ));
        }
    }
    writers.join_all().await;
    let accepted = accepted.load(Ordering::Relaxed);
    assert_eq!(accepted, u64::from(2 * WRITERS * WRITES));
    assert_consistent(&database, accepted).await;
    let aborts: u64 =
        replicas.iter().map(|replica| replica.retries("set_record", "serialization")).sum();
    println!("{aborts} aborts for {accepted} writes");
    // Together the replicas announced every revision.
    for number in 0..USERS {
        let mut told: Vec<u64> = replicas
            .iter()
            .flat_map(|replica| replica.feed.changes_of(user(number)))
            .flat_map(|change| change.from..=change.to)
            .collect();
        told.sort_unstable();
        let head = u64::try_from(told.len()).expect("few");
        assert_eq!(told, (1..=head).collect::<Vec<_>>());
    }
}

/// What write-only functions are for: rows on the same pages, and no abort at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_never_abort_each_other() {
    let database = migrated_database().await;
    let replicas = [(); 2].map(|()| open(&database.config(), Quotas::default()));
    let mut writers = JoinSet::new();
    for number in 0..64 {
        let Opened { store, .. } = &replicas[usize::try_from(number % 2).expect("0 or 1")];
        let store = Arc::clone(store);
        writers.spawn(async move {
            for revision in 1..=20 {
                let write = new_write(user(number), "r", revision - 1, &[1; 200]);
                let outcome = store.set_record(write, soon()).await.expect("a write");
                assert_eq!(outcome, WriteOutcome::Written { revision });
                let stale = new_write(user(number), "r", revision + 9, b"");
                let outcome = store.set_record(stale, soon()).await.expect("an answer");
                assert_eq!(outcome, WriteOutcome::Conflict);
            }
        });
    }
    writers.join_all().await;
    assert_consistent(&database, 64 * 20).await;
    for reason in ["serialization", "deadlock", "lock_timeout", "split", "connection"] {
        let retries: u64 = replicas.iter().map(|r| r.retries("set_record", reason)).sum();
        assert_eq!(retries, 0, "{reason}");
    }
}

/// One user's stuck head holds its own writer's batch for a lock time-out at most, and the
/// caller not beyond the deadline; the write itself still happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_bounds_the_wait_and_takes_nothing_back() {
    let database = migrated_database().await;
    let replica = open(&database.config(), Quotas::default());
    let store = &replica.store;
    store.set_record(new_write(user(1), "r", 0, b"x"), soon()).await.expect("a write");
    let holder = database.connect().await;
    holder
        .batch_execute("BEGIN; SELECT FROM data_sync.users FOR UPDATE")
        .await
        .expect("the row lock");

    let started = Instant::now();
    let deadline = started + Duration::from_millis(300);
    let late = store.set_record(new_write(user(1), "r", 1, b"y"), deadline).await;
    assert_eq!(late, Err(data_sync::store::StoreError::DeadlineExceeded));
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());

    let patient = store.set_record(new_write(user(1), "other", 0, b"z"), soon());
    let release = async {
        // Past the lock time-out: the patient write has been turned away at least once.
        crate::support::postgres::until("a lock time-out was seen", async || {
            replica.retries("set_record", "lock_timeout") > 0
        })
        .await;
        holder.batch_execute("COMMIT").await.expect("the lock is given back");
    };
    let (patient, ()) = tokio::join!(patient, release);
    assert!(matches!(patient, Ok(WriteOutcome::Written { .. })), "{patient:?}");
}
