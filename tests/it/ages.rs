//! Streams and connections grow old at moments of their own: clients come back at once, and must
//! not come all together.

use std::time::{Duration, Instant};

use data_sync::client::{Client, Options, Signer, WatchEvent};
use futures_util::future::join_all;
use tonic::Code;

use crate::support::{
    client::{Wallet, channel, end, fresh_key},
    engine::{Engine, Fixture},
    http::metric,
    raw::RawClient,
};

const MAX_AGE: &str = "3s";
/// Ages lie within a fifth of it.
const YOUNGEST: Duration = Duration::from_millis(2_400);
/// Of so many the first and the last one are hardly ever closer than this: a third of the range.
const MANY: usize = 40;
const LEAST_SPREAD: Duration = Duration::from_millis(400);
/// Longest wait for a connection to be replaced.
const PATIENCE: Duration = Duration::from_secs(20);

/// None ended early, and they did not end together.
fn are_spread(ages: &[Duration]) {
    let (first, last) = (ages.iter().min().expect("some"), ages.iter().max().expect("some"));
    eprintln!("{} ended between {first:?} and {last:?}", ages.len());
    assert!(*first >= YOUNGEST, "one ended after {first:?}");
    assert!(*last - *first >= LEAST_SPREAD, "all ended between {first:?} and {last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_reach_their_greatest_age_one_by_one() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("STREAM_MAX_AGE", MAX_AGE).start();
    let channel = channel(server.grpc).await;
    let ages = join_all((0..MANY).map(|_| async {
        let other = Wallet::on(channel.clone(), fresh_key());
        let began = Instant::now();
        let mut stream = other.listening().await;
        assert_eq!(end(&mut stream).await.code(), Code::Unavailable);
        began.elapsed()
    }));
    are_spread(&ages.await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_reach_their_greatest_age_one_by_one() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("CONNECTION_MAX_AGE", MAX_AGE).start();
    let ages = join_all((0..MANY).map(|_| async {
        let began = Instant::now();
        let client = RawClient::connect(server.grpc, 1_000).await;
        client.refuses_calls().await;
        began.elapsed()
    }));
    are_spread(&ages.await);
}

/// A stream keeps a connection open that takes no further calls; the one after would be refused
/// by the transport before it was sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_an_old_connection_refuses_is_made_over_a_new_one() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("CONNECTION_MAX_AGE", "1s").start();
    let options = Options { attempts: 1, ..Options::default() };
    let url = format!("http://{}", server.grpc);
    let client = Client::connect(&url, Signer::generate(), options).await.expect("connects");
    let mut watch = client.watch();
    assert!(matches!(watch.next_event().await, Some(WatchEvent::Live)));
    let began = Instant::now();
    while metric(&server, r#"data_sync_connections{listener="grpc"}"#).await < 2.0 {
        assert!(began.elapsed() < PATIENCE, "the connection was never asked to go");
        client.is_locked("any").await.expect("answered, whatever becomes of the connection");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
