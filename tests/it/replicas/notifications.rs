//! What streams are told of writes on other replicas.

use std::{collections::BTreeMap, time::Duration};

use data_sync::{limits::RECONCILE_INTERVAL, proto::Notification};
use tokio::time::{Instant, sleep};
use tonic::Streaming;

use super::{ANNOUNCED_BOUND, Replicas, told_within};
use crate::support::{
    client::{Wallet, next},
    http::metric,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_told_on_every_replica_with_its_writer() {
    const ROUNDS: usize = 12;
    let replicas = Replicas::start().await;
    let first = replicas.wallet(0).await;
    let wallets = [first.clone(), replicas.at(1, &first).await, replicas.at(2, &first).await];
    let mut streams = Vec::new();
    for wallet in &wallets {
        streams.push(wallet.listening().await);
    }
    let mut latencies = Vec::new();
    for round in 0..ROUNDS {
        let writer = wallets[round % wallets.len()].sibling();
        let revision = writer.must_set(&format!("{round}"), 0, b"x").await;
        let replied = Instant::now();
        let expected = Notification { client_id: Some(writer.instance.to_string()), revision };
        for stream in &mut streams {
            let (told, _) = told_within(ANNOUNCED_BOUND, stream).await;
            assert_eq!(told, expected);
        }
        latencies.push(replied.elapsed());
    }
    latencies.sort_unstable();
    let median = latencies[latencies.len() / 2];
    let longest = latencies.last().expect("some");
    eprintln!("all were told after the reply: median {median:?}, longest {longest:?}");
    let published: f64 =
        metric(&replicas.servers[0], "data_sync_notifications_published_total").await;
    assert_eq!(published, (ROUNDS / 3) as f64);
    for server in &replicas.servers {
        let observed = metric(server, "data_sync_notification_delay_seconds_count").await;
        assert_eq!(observed, ROUNDS as f64);
        let seconds = metric(server, "data_sync_notification_delay_seconds_sum").await;
        assert!(seconds < ROUNDS as f64 * ANNOUNCED_BOUND.as_secs_f64(), "{seconds}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stream_is_told_one_writers_name_for_anothers_write() {
    const WRITES: usize = 120;
    let replicas = Replicas::start().await;
    let a = replicas.wallet(0).await;
    let b = replicas.at(1, &a).await.sibling();
    let c = replicas.at(2, &a).await;
    let listeners = [a.listening().await, b.listening().await, c.listening().await];
    let write = async |wallet: &Wallet, name: &str| {
        let mut revisions = Vec::new();
        for number in 0..WRITES {
            revisions.push(wallet.must_set(&format!("{name}{number}"), 0, b"x").await);
        }
        revisions
    };
    let head = 2 * WRITES as u64;
    let all = listeners.map(|stream| heard_up_to(stream, head));
    let (by_a, by_b, heard) =
        tokio::join!(write(&a, "a"), write(&b, "b"), futures_util::future::join_all(all));
    let mut writers = BTreeMap::new();
    for (wallet, revisions) in [(&a, by_a), (&b, by_b)] {
        writers
            .extend(revisions.into_iter().map(|revision| (revision, wallet.instance.to_string())));
    }
    assert_eq!(writers.len() as u64, head);
    for notifications in heard {
        let mut told = 0;
        let mut named = 0;
        for notification in notifications {
            assert!(notification.revision > told, "revisions only rise");
            if let Some(client) = &notification.client_id {
                named += 1;
                for revision in told + 1..=notification.revision {
                    assert_eq!(&writers[&revision], client, "revision {revision}");
                }
            }
            told = notification.revision;
        }
        eprintln!("{named} notifications named their writer");
    }
}

/// Everything told until `head` was.
async fn heard_up_to(mut stream: Streaming<Notification>, head: u64) -> Vec<Notification> {
    let mut heard: Vec<Notification> = Vec::new();
    while heard.last().is_none_or(|last| last.revision < head) {
        heard.push(next(&mut stream).await);
    }
    heard
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comparing_heads_wakes_no_device_because_of_its_own_writes() {
    let replicas = Replicas::start().await;
    let device = replicas.wallet(0).await;
    let elsewhere = replicas.at(1, &device).await;
    let mut stream = device.listening().await;
    let long_enough = RECONCILE_INTERVAL.1 * 2 + Duration::from_millis(500);
    let (mut writes, began) = (0, Instant::now());
    while began.elapsed() < long_enough {
        let revision = elsewhere.must_set("own", writes, b"x").await;
        writes = revision;
        let told = next(&mut stream).await;
        assert_eq!(told.client_id, Some(device.instance.to_string()), "at revision {revision}");
        sleep(Duration::from_millis(5)).await;
    }
    let server = &replicas.servers[0];
    let compared = metric(server, r#"data_sync_resyncs_total{reason="periodic"}"#).await;
    assert!(compared >= 2.0, "{compared} comparisons among {writes} writes");
    assert_eq!(metric(server, "data_sync_reconciled_users_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_page_on_one_replica_wakes_the_stream_on_another() {
    const RECORDS: usize = 60;
    let replicas = Replicas::start().await;
    let reader = replicas.wallet(0).await;
    let writer = replicas.at(2, &reader).await;
    let data = vec![7; 65_536];
    for number in 0..RECORDS {
        writer.must_set(&format!("{number}"), 0, &data).await;
    }
    let mut stream = reader.listening().await;
    let lister = replicas.at(1, &reader).await;
    let page = lister.list(0).await.expect("lists");
    assert!(page.has_more);
    let (told, elapsed) = told_within(ANNOUNCED_BOUND, &mut stream).await;
    assert_eq!(told, Notification { client_id: None, revision: RECORDS as u64 });
    eprintln!("nudged after {elapsed:?}");
}
