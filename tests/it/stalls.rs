//! Clients that do not read lose their stream or connection, and slow nobody.

use std::time::{Duration, Instant};

use data_sync::proto::{ListChangesRequest, ListenChangesRequest, SetRecordRequest};
use h2::Reason;
use prost::Message as _;
use tokio::{io::AsyncWriteExt as _, net::TcpSocket};

use crate::support::{
    client::{Wallet, fresh_key, next, now},
    engine::{Engine, Fixture, on_both_engines},
    http::{metric, metric_becomes},
    raw::RawClient,
    wait::within,
};

on_both_engines!(a_client_that_grants_no_window_loses_its_stream_and_slows_nobody);

/// The limit in these tests.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Time a loaded machine may take beyond it.
const SLACK: Duration = Duration::from_secs(5);

async fn a_client_that_grants_no_window_loses_its_stream_and_slows_nobody(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.options().env("STALL_TIMEOUT", "1s").start();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let mut healthy = wallet.listening().await;
    // Room for the first notification and a little of the second.
    let mut stalled = RawClient::connect(server.grpc, 16).await;
    let listen = wallet.signed(ListenChangesRequest { request_time: now(), ..Default::default() });
    let mut body = stalled.answer("ListenChanges", &listen).await.into_body();
    let first = within("the first notification", body.data()).await;
    assert_eq!(first.expect("no end").expect("no error").len(), 5);

    let client_id = Some("c".repeat(200));
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    let cut = async {
        while let Some(data) = body.data().await {
            if let Err(error) = data {
                return error;
            }
        }
        panic!("the stream ended without an error");
    };
    let mut cut = std::pin::pin!(cut);
    let mut written = 0;
    let error = loop {
        let request = SetRecordRequest {
            client_id: client_id.clone(),
            ..wallet.set_request(&format!("{written}"), 0, b"x")
        };
        let sent = Instant::now();
        written = wallet.send_set(request).await.expect("accepted").new_revision;
        let told = next(&mut healthy).await;
        assert_eq!((told.revision, told.client_id), (written, client_id.clone()));
        slowest = slowest.max(sent.elapsed());
        assert!(began.elapsed() < STALL_TIMEOUT + SLACK, "the stream is still open");
        let pause = tokio::time::sleep(Duration::from_millis(50));
        tokio::select! {
            error = cut.as_mut() => break error,
            () = pause => {}
        }
    };
    assert_eq!(error.reason(), Some(Reason::CANCEL), "{error}");
    assert!(began.elapsed() >= STALL_TIMEOUT, "cut after {:?}", began.elapsed());
    assert!(slowest < STALL_TIMEOUT, "the other stream waited {slowest:?}");
    metric_becomes(&server, r#"data_sync_streams_ended_total{reason="stalled"}"#, 1.0).await;
    metric_becomes(&server, "data_sync_active_streams", 1.0).await;
    // The connection goes on.
    let list = wallet.signed(ListChangesRequest {
        request_time: now(),
        since_revision: written,
        ..Default::default()
    });
    assert_eq!(stalled.answer("ListChanges", &list).await.status(), 200);
}

/// A user with more than a page of the largest records.
async fn full_wallet(fixture: &crate::support::server::Server) -> Wallet {
    let wallet = Wallet::connect(fixture.grpc, fresh_key()).await;
    let data = vec![7; 65_536];
    let writes = (0..60).map(|number| {
        let (wallet, data) = (wallet.clone(), &data);
        async move { wallet.must_set(&format!("{number}"), 0, data).await }
    });
    futures_util::future::join_all(writes).await;
    wallet
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_nobody_reads_is_cut() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("STALL_TIMEOUT", "1s").start();
    let wallet = full_wallet(&server).await;
    let mut stalled = RawClient::connect(server.grpc, 1_000).await;
    let list = wallet.signed(ListChangesRequest { request_time: now(), ..Default::default() });
    let mut body = stalled.answer("ListChanges", &list).await.into_body();
    let error = loop {
        match within("the end of the reply", body.data()).await.expect("an error ends it") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason(), Some(Reason::CANCEL), "{error}");
    let series = r#"grpc_server_handled_total{grpc_code="ResourceExhausted",grpc_method="ListChanges",grpc_service="sync.Syncer",grpc_type="unary"}"#;
    metric_becomes(&server, series, 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_reads_nothing_from_its_socket_is_cut() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("STALL_TIMEOUT", "1s").start();
    let wallet = full_wallet(&server).await;
    let connections = r#"data_sync_connections{listener="grpc"}"#;
    let mut stalled = RawClient::connect(server.grpc, i32::MAX as u32).await;
    let list = wallet.signed(ListChangesRequest { request_time: now(), ..Default::default() });
    let mut replies = vec![stalled.call("ListChanges", &list).await];
    metric_becomes(&server, connections, 2.0).await;
    stalled.stop_reading();
    for _ in 0..12 {
        replies.push(stalled.call("ListChanges", &list).await);
    }
    metric_becomes(&server, connections, 1.0).await;
    wallet.must_set("goes on", 0, b"x").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_that_reads_nothing_is_cut() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("STALL_TIMEOUT", "1s").start();
    let wallet = full_wallet(&server).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    let mut socket = socket.connect(server.web).await.expect("connects");
    let list = wallet
        .signed(ListChangesRequest { request_time: now(), ..Default::default() })
        .encode_to_vec();
    let head = format!(
        "POST /sync.Syncer/ListChanges HTTP/1.1\r\nhost: localhost\r\n\
         content-type: application/grpc-web+proto\r\ncontent-length: {}\r\n\r\n",
        list.len() + 5
    );
    let length = u32::try_from(list.len()).expect("small").to_be_bytes();
    let request = [head.as_bytes(), &[0], &length, &list].concat();
    for _ in 0..4 {
        socket.write_all(&request).await.expect("writes");
    }
    let failed = r#"data_sync_connections_refused_total{listener="web",reason="failed"}"#;
    metric_becomes(&server, failed, 1.0).await;
    assert_eq!(metric(&server, r#"data_sync_connections{listener="web"}"#).await, 0.0);
}
