//! How often callers may call, how many streams they may hold, and whose address counts.

use data_sync::proto::{GetLockRequest, ListChangesRequest};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::support::{
    client::{Wallet, end, fresh_key, next, now},
    engine::{Engine, Fixture},
    haproxy::{Backend, Haproxy},
    http::{metric, metric_becomes},
    raw::RawClient,
    server::Server,
    wait::{until, within},
};

/// Calls that a rate of one a second lets through at once.
const BURST: usize = 30;
/// More than pass at that rate, however long the calls take on a loaded machine.
const MANY: usize = 90;
const WINDOW: u32 = 1024 * 1024;

fn is_rate_limited(status: &Status) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().expect("a reason").reason, "RATE_LIMITED");
    let retry = details.retry_info().and_then(|info| info.retry_delay).expect("a delay");
    assert!(!retry.is_zero() && retry.as_secs() < 2, "{retry:?}");
}

/// Calls until a call is refused; the number of those that were not, and the refusal.
async fn exhaust(mut call: impl AsyncFnMut() -> Result<(), Status>) -> (usize, Status) {
    for passed in 0..MANY {
        match call().await {
            Err(status) if status.code() == Code::ResourceExhausted => return (passed, status),
            _ => {}
        }
    }
    panic!("nothing was refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_calls_too_often_is_refused_and_others_are_not() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("RATE_LIMIT_PER_USER", "1").start();
    let greedy = Wallet::connect(server.grpc, fresh_key()).await;
    let (passed, status) = exhaust(async || greedy.locked("l").await.map(|_| ())).await;
    assert!(passed >= BURST, "{passed}");
    is_rate_limited(&status);
    // Streams count as well as calls; a new token comes once a second.
    let (_, status) = exhaust(async || greedy.listen().await.map(|_| ())).await;
    is_rate_limited(&status);
    assert!(metric(&server, r#"data_sync_rate_limited_total{scope="user"}"#).await >= 2.0);
    let other = Wallet::connect(server.grpc, fresh_key()).await;
    other.must_set("a", 0, b"x").await;
}

/// A call that never reaches the curve's result: its signature is none.
async fn unsigned(wallet: &Wallet, forwarded_for: Option<&str>) -> Result<(), Status> {
    let message = ListChangesRequest { request_time: now(), ..Default::default() };
    let mut request = Request::new(message);
    if let Some(value) = forwarded_for {
        request.metadata_mut().insert("x-forwarded-for", value.parse().expect("ASCII"));
    }
    within("ListChanges", wallet.raw().list_changes(request)).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_is_counted_before_anything_is_verified() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("RATE_LIMIT_PER_ADDRESS", "1").start();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let first = unsigned(&wallet, None).await.expect_err("no signature");
    assert_eq!(first.code(), Code::Unauthenticated);
    let (passed, status) = exhaust(async || unsigned(&wallet, None).await).await;
    assert!(passed + 1 >= BURST, "{passed}");
    is_rate_limited(&status);
    // Another user, another connection, another claim: the same address.
    let other = Wallet::connect(server.grpc, fresh_key()).await;
    let (passed, _) = exhaust(async || unsigned(&other, Some("203.0.113.7")).await).await;
    assert!(passed < BURST, "{passed}");
    assert!(metric(&server, r#"data_sync_rate_limited_total{scope="ip"}"#).await >= 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trusted_proxies_name_the_client_and_nobody_else_does() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let options = fixture.options().env("RATE_LIMIT_PER_ADDRESS", "1");
    let server = options.env("TRUSTED_PROXY_HOPS", "1").start();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let mut claim = 0;
    let (passed, _) = exhaust(async || {
        // What the client made up stands before what the proxy saw.
        claim += 1;
        unsigned(&wallet, Some(&format!("198.51.100.{claim}, 203.0.113.7"))).await
    })
    .await;
    assert!(passed >= BURST, "{passed}");
    let other = unsigned(&wallet, Some("203.0.113.8")).await.expect_err("no signature");
    assert_eq!(other.code(), Code::Unauthenticated, "another client behind the proxy");
}

fn v2_header(client: [u8; 4]) -> Vec<u8> {
    let start = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c"[..], &client].concat();
    [&start[..], &[127, 0, 0, 1, 0x12, 0x67, 0x1f, 0x90]].concat()
}

/// The gRPC status of a call on a connection that began with `header`.
async fn code_behind(server: &Server, header: &[u8]) -> Code {
    let mut client = RawClient::connect_after(server.grpc, WINDOW, header).await;
    let message =
        GetLockRequest { lock_name: "l".to_owned(), request_time: now(), ..Default::default() };
    let reply = client.answer("GetLock", &message).await;
    Code::from_bytes(reply.headers()["grpc-status"].as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_protocol_names_the_client() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let options = fixture.options().env("RATE_LIMIT_PER_ADDRESS", "1");
    let server = options.env("PROXY_PROTOCOL", "on").start();
    let first = b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 8080\r\n";
    let mut codes = Vec::new();
    for _ in 0..MANY {
        codes.push(code_behind(&server, first).await);
    }
    assert!(codes.contains(&Code::ResourceExhausted), "{codes:?}");
    assert_eq!(codes[0], Code::Unauthenticated);
    assert_eq!(code_behind(&server, &v2_header([203, 0, 113, 8])).await, Code::Unauthenticated);
    let tcp6 = b"PROXY TCP6 2001:db8::7 ::1 4711 8080\r\n";
    assert_eq!(code_behind(&server, tcp6).await, Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_capped_by_the_address_that_a_proxy_names() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let options = fixture.options().env("PROXY_PROTOCOL", "on");
    let server = options.env("MAX_CONNECTIONS_PER_ADDRESS", "1").start();
    let first = RawClient::connect_after(server.grpc, WINDOW, &v2_header([203, 0, 113, 7])).await;
    let _other = RawClient::connect_after(server.grpc, WINDOW, &v2_header([203, 0, 113, 8])).await;
    metric_becomes(&server, r#"data_sync_connections{listener="grpc"}"#, 2.0).await;
    let third = RawClient::connect_after(server.grpc, WINDOW, &v2_header([203, 0, 113, 7])).await;
    third.closed().await;
    let refused = |reason: &str| {
        format!(r#"data_sync_connections_refused_total{{listener="grpc",reason="{reason}"}}"#)
    };
    assert_eq!(metric(&server, &refused("address_limit")).await, 1.0);
    drop(first);
    let bare = RawClient::connect(server.grpc, WINDOW).await;
    bare.closed().await;
    assert_eq!(metric(&server, &refused("proxy_header")).await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_proxy_names_the_client_in_both_versions() {
    for version in ["send-proxy", "send-proxy-v2"] {
        let fixture = Fixture::new(Engine::Sqlite).await;
        let options = fixture.options().env("PROXY_PROTOCOL", "on");
        let server = options.env("MAX_CONNECTIONS_PER_ADDRESS", "1").start();
        let backend = Backend { grpc: server.grpc, admin: server.admin };
        let proxy = tokio::task::block_in_place(|| Haproxy::start_with(&[backend], 100, version));
        until("the proxy sees the server", async || proxy.replicas_up().await == 1).await;
        // To the server's socket all of them come from the proxy's one address.
        let from = async |source| RawClient::connect_from(source, proxy.address, WINDOW).await;
        let _first = from([127, 0, 0, 1]).await;
        let _second = from([127, 0, 0, 2]).await;
        metric_becomes(&server, r#"data_sync_connections{listener="grpc"}"#, 2.0).await;
        from([127, 0, 0, 2]).await.closed().await;
        let refused =
            r#"data_sync_connections_refused_total{listener="grpc",reason="address_limit"}"#;
        assert_eq!(metric(&server, refused).await, 1.0, "{version}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_stream_of_a_user_gives_way_to_a_new_one() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("MAX_STREAMS_PER_USER", "2").start();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let stranger = Wallet::connect(server.grpc, fresh_key()).await;
    let mut undisturbed = stranger.listening().await;
    let mut oldest = wallet.listening().await;
    let mut others = [wallet.listening().await, wallet.listening().await];
    let status = end(&mut oldest).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    let details = status.get_error_details();
    assert_eq!(details.error_info().expect("a reason").reason, "STREAM_DISPLACED");
    let revision = wallet.must_set("a", 0, b"x").await;
    for stream in &mut others {
        assert_eq!(next(stream).await.revision, revision);
    }
    stranger.must_set("a", 0, b"x").await;
    next(&mut undisturbed).await;
    let ended = r#"data_sync_streams_ended_total{reason="displaced"}"#;
    assert_eq!(metric(&server, ended).await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_full_of_streams_refuses_more_until_one_ends() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("MAX_STREAMS", "1").start();
    let first = Wallet::connect(server.grpc, fresh_key()).await;
    let stream = first.listening().await;
    let second = Wallet::connect(server.grpc, fresh_key()).await;
    let status = second.listen().await.expect_err("full");
    assert_eq!(status.code(), Code::ResourceExhausted);
    let details = status.get_error_details();
    assert_eq!(details.error_info().expect("a reason").reason, "TOO_MANY_STREAMS");
    assert!(details.retry_info().is_some());
    second.must_set("a", 0, b"x").await;
    drop(stream);
    metric_becomes(&server, "data_sync_active_streams", 0.0).await;
    second.listening().await;
}
