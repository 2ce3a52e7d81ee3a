//! A replica that is asked to stop ends streams, finishes calls and exits with 0.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use data_sync::proto::ListenChangesRequest;
use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use tonic::Code;

use crate::support::{
    client::{Wallet, end, fresh_key, now},
    engine::{Engine, Fixture, on_both_engines},
    http::metric,
    raw::RawClient,
    wait::within,
};

on_both_engines!(a_drain_under_load_spreads_the_ends_and_keeps_its_bound);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_end_unavailable_and_the_exit_status_is_0() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let mut server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let mut stream = wallet.listening().await;
    server.signal("TERM");
    assert_eq!(end(&mut stream).await.code(), Code::Unavailable);
    assert_eq!(server.wait_for_exit(Duration::from_secs(10)).code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_and_a_half_open_client_do_not_hold_up_a_drain() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let mut server = fixture.options().env("SHUTDOWN_DRAIN", "1s").start();
    let silent = TcpStream::connect(server.grpc).expect("connects");
    let mut half_open = TcpStream::connect(server.grpc).expect("connects");
    // The preface and an empty SETTINGS frame, and then nothing ever again.
    half_open.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("writes");
    let mut settings = [0; 9];
    half_open.read_exact(&mut settings).expect("the server's settings");
    server.signal("TERM");
    assert_eq!(server.wait_for_exit(Duration::from_secs(5)).code(), Some(0));
    drop((silent, half_open));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_replica_goes_on_serving_for_the_delay() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let mut server = fixture.options().env("SHUTDOWN_DELAY", "2s").start();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let mut stream = wallet.listening().await;
    server.signal("TERM");
    crate::support::wait::until("readiness falls", || async { server.log().contains("draining") })
        .await;
    wallet.must_set("during the delay", 0, b"x").await;
    assert_eq!(crate::support::client::next(&mut stream).await.revision, 1);
    assert_eq!(server.wait_for_exit(Duration::from_secs(10)).code(), Some(0));
}

/// A client with its stream open, and the stream.
async fn raw_listener(server: std::net::SocketAddr, window: u32) -> (RawClient, h2::RecvStream) {
    let wallet = Wallet::connect(server, fresh_key()).await;
    let request = wallet.signed(ListenChangesRequest { request_time: now(), ..Default::default() });
    let mut client = RawClient::connect(server, window).await;
    let mut body = client.answer("ListenChanges", &request).await.into_body();
    within("the first notification", body.data()).await.expect("no end").expect("no error");
    // The second one is larger than a small window.
    wallet.must_set("a", 0, b"x").await;
    wallet.must_set("b", 0, b"x").await;
    (client, body)
}

async fn a_drain_under_load_spreads_the_ends_and_keeps_its_bound(engine: Engine) {
    const CONNECTIONS: usize = 20;
    const STREAMS_A_CONNECTION: usize = 10;
    const SPREAD: Duration = Duration::from_secs(2);
    /// Spread and drain, and what a loaded machine may add.
    const BOUND: Duration = Duration::from_secs(2 + 1 + 5);
    let fixture = Fixture::new(engine).await;
    let options = fixture.options().env("SHUTDOWN_SPREAD", "2s");
    let mut server = options.env("SHUTDOWN_DRAIN", "1s").start();
    let silent = TcpStream::connect(server.grpc).expect("connects");
    let stalled = raw_listener(server.grpc, 16).await;
    let connected = join_all((0..CONNECTIONS).map(|_| async {
        let wallet = Wallet::connect(server.grpc, fresh_key()).await;
        let streams = join_all((0..STREAMS_A_CONNECTION).map(|_| wallet.listening())).await;
        (wallet, streams)
    }));
    let connected = connected.await;
    let began = Instant::now();
    server.signal("TERM");
    let streams = connected.into_iter().flat_map(|(_, streams)| streams);
    let ends: FuturesUnordered<_> = streams
        .map(|mut stream| async move {
            let status = end(&mut stream).await;
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            began.elapsed()
        })
        .collect();
    let ends: Vec<Duration> = ends.collect().await;
    assert_eq!(ends.len(), CONNECTIONS * STREAMS_A_CONNECTION);
    let early = ends.iter().filter(|end| **end < SPREAD / 2).count();
    assert!((ends.len() / 4..=ends.len() * 3 / 4).contains(&early), "{early} in the first half");
    assert_eq!(server.wait_for_exit(BOUND).code(), Some(0));
    assert!(began.elapsed() < BOUND, "stopped after {:?}", began.elapsed());
    drop((silent, stalled));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_stream_was_drained_must_use_another_connection() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("SHUTDOWN_SPREAD", "10s").start();
    let mut listeners = Vec::new();
    for _ in 0..8 {
        listeners.push(raw_listener(server.grpc, 1024 * 1024).await);
    }
    server.signal("TERM");
    let ends: FuturesUnordered<_> = listeners
        .iter_mut()
        .map(|(client, body)| async move {
            while let Some(data) = body.data().await {
                data.expect("no error");
            }
            let trailers = body.trailers().await.expect("no error").expect("trailers");
            assert_eq!(Code::from_bytes(trailers["grpc-status"].as_bytes()), Code::Unavailable);
            client
        })
        .collect();
    let mut ends = std::pin::pin!(ends);
    let first = within("the first end", ends.next()).await.expect("a stream");
    first.refuses_calls().await;
    // Not because the drain has come to the connections: streams are still open.
    assert!(metric(&server, "data_sync_active_streams").await >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_stream_is_refused_by_a_drain_must_use_another_connection() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("SHUTDOWN_SPREAD", "10s").start();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let mut late = RawClient::connect(server.grpc, 1024 * 1024).await;
    let mut listeners = Vec::new();
    for _ in 0..8 {
        listeners.push(raw_listener(server.grpc, 1024 * 1024).await);
    }
    server.signal("TERM");
    let ends_streams = || async { server.log().contains("draining: ending streams") };
    crate::support::wait::until("streams are ended", ends_streams).await;
    let listen = wallet.signed(ListenChangesRequest { request_time: now(), ..Default::default() });
    let reply = late.answer("ListenChanges", &listen).await;
    assert_eq!(Code::from_bytes(reply.headers()["grpc-status"].as_bytes()), Code::Unavailable);
    late.refuses_calls().await;
    // Not because the drain has come to the connections: streams are still open.
    assert!(metric(&server, "data_sync_active_streams").await >= 1.0);
}
