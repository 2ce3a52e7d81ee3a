//! Losing the database, and the answers of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use data_sync::{
    config::Secret,
    store::{
        LockAction, LockRequest, PageLimit, Quotas, Store, StoreError, WriteOutcome,
        conformance::{instance, new_write, soon, user},
    },
};
use tokio::{task::JoinSet, time::Instant};

use super::open;
use crate::support::{
    postgres::{Cluster, migrated_database, until},
    proxy::Proxy,
};

fn unavailable<T: std::fmt::Debug>(answer: &Result<T, StoreError>, started: Instant) {
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    assert!(started.elapsed() < Duration::from_secs(1), "took {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_database_is_unavailable_within_a_second_and_comes_back() {
    let cluster = Cluster::start(&[]);
    let database = cluster.create_migrated_database().await;
    let mut config = database.config();
    config.connect_timeout = Duration::from_millis(800);
    let replica = open(&config, Quotas::default());
    let store = &replica.store;
    store.set_record(new_write(user(1), "r", 0, b"x"), soon()).await.expect("a write");
    store.heads(&[user(1)], soon()).await.expect("a read");
    store.status(soon()).await.expect("a status");

    cluster.stop("QUIT");
    for _ in 0..2 {
        let now = Instant::now();
        unavailable(&store.set_record(new_write(user(1), "r", 1, b"y"), soon()).await, now);
        let now = Instant::now();
        unavailable(&store.list_changes(user(1), 0, PageLimit::WIRE, soon()).await, now);
        let now = Instant::now();
        let action = LockAction::Acquire { exclusive: true, ttl_ms: 1_000 };
        let request =
            LockRequest { user: user(1), name: "l".to_owned(), instance: instance(1), action };
        unavailable(&store.set_lock(request, soon()).await, now);
        let now = Instant::now();
        unavailable(&store.status(soon()).await, now);
    }

    cluster.resume();
    until("writes, reads and checks succeed again", async || {
        store.set_record(new_write(user(2), "r", 0, b"x"), soon()).await.is_ok()
            && store.heads(&[user(1)], soon()).await.is_ok()
            && store.status(soon()).await.is_ok()
    })
    .await;
}

/// Sends one write after another, each again until it is answered, as clients do.
async fn insist(store: Arc<dyn Store>, number: u32, stop: Arc<AtomicBool>) -> u64 {
    let mut revision = 0;
    while !stop.load(Ordering::Relaxed) {
        let write = new_write(user(number), "r", revision, &[9; 100]);
        revision = loop {
            match store.set_record(write.clone(), soon()).await {
                Ok(WriteOutcome::Written { revision } | WriteOutcome::Repeated { revision }) => {
                    break revision;
                }
                Ok(other) => panic!("answered {other:?} after revision {revision}"),
                Err(StoreError::Unavailable(_)) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(other) => panic!("answered {other:?}"),
            }
        };
    }
    revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_when_postgres_crashes() {
    let cluster = Cluster::start(&[]);
    let database = cluster.create_migrated_database().await;
    let mut config = database.config();
    config.connect_timeout = Duration::from_millis(800);
    let replica = open(&config, Quotas::default());
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for number in 0..16 {
        let acknowledged = insist(replica.store.clone(), number, Arc::clone(&stop));
        writers.spawn(async move { (number, acknowledged.await) });
    }
    let total = || async {
        let users: Vec<_> = (0..16).map(user).collect();
        replica.store.heads(&users, soon()).await.map_or(0, |heads| heads.iter().sum::<u64>())
    };
    let seen = AtomicU64::new(0);
    for _ in 0..2 {
        let target = seen.load(Ordering::Relaxed) + 200;
        until("writes go through", async || total().await > target).await;
        seen.store(total().await, Ordering::Relaxed);
        cluster.stop("QUIT");
        cluster.resume();
    }
    let target = seen.load(Ordering::Relaxed) + 200;
    until("writes go through again", async || total().await > target).await;
    stop.store(true, Ordering::Relaxed);
    for (number, acknowledged) in writers.join_all().await {
        let held = replica.store.record(user(number), "r", soon()).await.expect("a read");
        assert_eq!(held.map(|record| record.revision), Some(acknowledged), "user {number}");
        let told = replica.feed.changes_of(user(number));
        assert!(told.iter().any(|change| change.to == acknowledged), "user {number}");
    }
}

/// A store behind a proxy that can lose answers.
async fn behind_proxy() -> (super::Opened, Proxy, crate::support::postgres::Database<'static>) {
    let database = migrated_database().await;
    let proxy = Proxy::start(database.cluster.port()).await;
    let mut config = database.config();
    let ports = (database.cluster.port().to_string(), proxy.port().to_string());
    config.url = Secret::new(database.url().replace(&ports.0, &ports.1));
    let opened = open(&config, Quotas::default());
    opened.store.set_record(new_write(user(1), "r", 0, b"x"), soon()).await.expect("a write");
    (opened, proxy, database)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_was_lost_is_found_and_told_once() {
    let (replica, proxy, _database) = behind_proxy().await;
    proxy.lose_next_answer();
    let write = replica.store.set_record(new_write(user(1), "r", 1, b"y"), soon());
    let reopen = async {
        until("the answer is lost", async || proxy.lost() == 1).await;
        proxy.reopen();
    };
    let (outcome, ()) = tokio::join!(write, reopen);
    assert_eq!(outcome, Ok(WriteOutcome::Written { revision: 2 }));
    assert_eq!(replica.store.heads(&[user(1)], soon()).await, Ok(vec![2]));
    assert_eq!(replica.feed.announced_head(user(1)), 2);
    assert_eq!(replica.retries("set_record", "connection"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_was_lost_is_never_called_a_conflict() {
    let (replica, proxy, database) = behind_proxy().await;
    let other = open(&database.config(), Quotas::default());
    proxy.lose_next_answer();
    let write = replica.store.set_record(new_write(user(1), "r", 1, b"y"), soon());
    let overwrite = async {
        until("the answer is lost", async || proxy.lost() == 1).await;
        let newer = new_write(user(1), "r", 2, b"z");
        let outcome = other.store.set_record(newer, soon()).await;
        assert_eq!(outcome, Ok(WriteOutcome::Written { revision: 3 }));
        proxy.reopen();
    };
    let (outcome, ()) = tokio::join!(write, overwrite);
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    assert_eq!(replica.store.heads(&[user(1)], soon()).await, Ok(vec![3]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_backends_cost_no_write() {
    let database = migrated_database().await;
    let replica = open(&database.config(), Quotas::default());
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for number in 0..8 {
        writers.spawn(insist(replica.store.clone(), number, Arc::clone(&stop)));
    }
    let killer = database.connect().await;
    let mut terminated = 0;
    until("20 backends were terminated", async || {
        let rows = killer
            .query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid()
                   AND query LIKE '%set_records%'",
                &[],
            )
            .await
            .expect("a superuser");
        terminated += rows.len();
        terminated >= 20
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let acknowledged: u64 = writers.join_all().await.iter().sum();
    let users: Vec<_> = (0..8).map(user).collect();
    let heads = replica.store.heads(&users, soon()).await.expect("a read");
    assert_eq!(heads.iter().sum::<u64>(), acknowledged);
}
