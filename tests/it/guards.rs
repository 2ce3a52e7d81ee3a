//! What the server takes from connections of strangers, over real sockets.

use std::{net::SocketAddr, time::Duration};

use data_sync::{
    client::{Client, Options, SetRecord, Signer},
    proto::{ListenChangesRequest, Record},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    client::{Wallet, fresh_key, now},
    engine::{Engine, Fixture},
    http::{metric, metric_becomes},
    raw::{PREFACE, RawClient, frame},
    server::Server,
    wait::within,
};

const WINDOW: u32 = 1024 * 1024;

/// Frame types.
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
/// `POST / HTTP/2` by the static table of HPACK, without authority.
const HEADER_BLOCK: &[u8] = &[0x83, 0x86, 0x84];
const ENHANCE_YOUR_CALM: u32 = 11;

async fn connect(address: SocketAddr) -> TcpStream {
    within("connecting", TcpStream::connect(address)).await.expect("connects")
}

/// Everything the server sends until it closes; a reset is a close too.
async fn rest(socket: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4_096];
    while let Ok(length @ 1..) = within("the end", socket.read(&mut buffer)).await {
        bytes.extend_from_slice(&buffer[..length]);
    }
    bytes
}

/// The frames in `bytes`: type, flags, payload.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, flags, _, _, _, _, payload @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some((payload, next)) = payload.split_at_checked(length) else { break };
        frames.push((*kind, *flags, payload.to_vec()));
        bytes = next;
    }
    frames
}

/// The reason of the GOAWAY among `frames`, if there is one.
fn goaway(bytes: &[u8]) -> Option<u32> {
    let (_, _, payload) = frames(bytes).into_iter().rev().find(|(kind, ..)| *kind == GOAWAY)?;
    Some(u32::from_be_bytes(*payload[4..].first_chunk()?))
}

async fn still_serves(server: &Server) {
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    wallet.must_set("a", 0, b"x").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_settings_name_the_limits() {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    const INITIAL_WINDOW_SIZE: u16 = 4;
    const MAX_HEADER_LIST_SIZE: u16 = 6;
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("MAX_CONCURRENT_STREAMS", "7").start();
    let mut socket = connect(server.grpc).await;
    socket.write_all(PREFACE).await.expect("writes");
    let mut head = [0; 9];
    within("settings", socket.read_exact(&mut head)).await.expect("a frame");
    assert_eq!(head[3], SETTINGS);
    let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
    within("settings", socket.read_exact(&mut payload)).await.expect("a payload");
    let (settings, _) = payload.as_chunks::<6>();
    let setting = |wanted: u16| {
        let found = settings.iter().find(|setting| setting[..2] == wanted.to_be_bytes());
        found.map(|[_, _, a, b, c, d]| u32::from_be_bytes([*a, *b, *c, *d]))
    };
    assert_eq!(setting(MAX_CONCURRENT_STREAMS), Some(7));
    assert_eq!(setting(INITIAL_WINDOW_SIZE), Some(WINDOW));
    assert_eq!(setting(MAX_HEADER_LIST_SIZE), Some(16 * 1024));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_resets_ends_its_connection_only() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.serve();
    for port in [server.grpc, server.web] {
        let mut socket = connect(port).await;
        let mut flood = PREFACE.to_vec();
        for stream in (1..20_000).step_by(2) {
            flood.extend(frame(HEADERS, 0x5, stream, HEADER_BLOCK));
            flood.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        }
        // The server may close before it has read everything.
        let _ = within("writing", socket.write_all(&flood)).await;
        assert_eq!(goaway(&rest(&mut socket).await), Some(ENHANCE_YOUR_CALM));
    }
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_without_end_end_their_connection_only() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.serve();
    let mut socket = connect(server.grpc).await;
    // A literal header without indexing, of 100 bytes.
    let header = [&[0, 1, b'a', 100][..], &[b'x'; 100]].concat();
    let mut flood = PREFACE.to_vec();
    flood.extend(frame(HEADERS, 0, 1, HEADER_BLOCK));
    for _ in 0..10_000 {
        flood.extend(frame(CONTINUATION, 0, 1, &header));
    }
    let _ = within("writing", socket.write_all(&flood)).await;
    assert_eq!(goaway(&rest(&mut socket).await), Some(ENHANCE_YOUR_CALM));
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_list_that_is_too_large_is_refused() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.serve();
    let client = RawClient::connect(server.grpc, WINDOW).await;
    let status = async |bytes: usize| {
        let request = http::Request::post("http://localhost/sync.Syncer/GetLock")
            .header("content-type", "application/grpc")
            .header("authorization", "x".repeat(bytes))
            .body(())
            .expect("a request");
        let mut send = client.send.clone().ready().await.expect("open");
        let (response, _) = send.send_request(request, true).expect("sent");
        within("a reply", response).await.expect("answers").status().as_u16()
    };
    assert_eq!(status(15 * 1024).await, 200, "a certificate fits");
    assert_eq!(status(17 * 1024).await, 431);
    assert_eq!(status(1).await, 200, "the connection goes on");

    let mut socket = connect(server.web).await;
    let head = format!("GET /health HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n", "x".repeat(70_000));
    let _ = within("writing", socket.write_all(head.as_bytes())).await;
    let reply = rest(&mut socket).await;
    assert!(reply.starts_with(b"HTTP/1.1 431 "), "{}", reply.escape_ascii());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_never_finish_a_greeting_are_cut() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("HANDSHAKE_TIMEOUT", "300ms").start();
    for (port, greeting) in [
        (server.grpc, ""),
        (server.grpc, "PRI * HTTP/2.0\r\n"),
        (server.web, ""),
        (server.web, "PRI * HTTP/2.0\r\n"),
        (server.web, "GET /health HTTP/1.1\r\nhost: localhost\r\n"),
        (server.admin, "GET /metrics"),
    ] {
        let mut socket = connect(port).await;
        socket.write_all(greeting.as_bytes()).await.expect("writes");
        let said = rest(&mut socket).await;
        assert!(!said.starts_with(b"HTTP/1.1 200"), "{greeting:?}: {}", said.escape_ascii());
    }
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_above_the_caps_are_closed_and_places_come_back() {
    for (variable, reason) in
        [("MAX_CONNECTIONS", "total_limit"), ("MAX_CONNECTIONS_PER_ADDRESS", "address_limit")]
    {
        let fixture = Fixture::new(Engine::Sqlite).await;
        let server = fixture.options().env(variable, "2").start();
        let first = Wallet::connect(server.grpc, fresh_key()).await;
        first.must_set("a", 0, b"x").await;
        let second = connect(server.web).await;
        metric_becomes(&server, r#"data_sync_connections{listener="web"}"#, 1.0).await;
        assert!(rest(&mut connect(server.grpc).await).await.is_empty());
        let refused =
            format!(r#"data_sync_connections_refused_total{{listener="grpc",reason="{reason}"}}"#);
        assert_eq!(metric(&server, &refused).await, 1.0);
        first.must_set("b", 0, b"x").await;
        drop(second);
        metric_becomes(&server, r#"data_sync_connections{listener="web"}"#, 0.0).await;
        still_serves(&server).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_connection_takes_no_new_calls_and_finishes_its_streams() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("CONNECTION_MAX_AGE", "1s").start();
    let signer = Signer::generate();
    let mut listen = ListenChangesRequest { request_time: now(), ..Default::default() };
    signer.sign(&mut listen);
    let mut old = RawClient::connect(server.grpc, WINDOW).await;
    let mut body = old.answer("ListenChanges", &listen).await.into_body();
    within("the first notification", body.data()).await.expect("no end").expect("no error");
    // Writes go on all the while, each on whatever connection takes calls. The library makes a
    // call again that an old connection refused before it was sent, as most gRPC libraries do.
    let options =
        Options { client_id: Some("writer".to_owned()), attempts: 1, ..Options::default() };
    let url = format!("http://{}", server.grpc);
    let writer = Client::connect(&url, signer, options).await.expect("connects");
    let write = async |revision| {
        let record = Record { id: "a".to_owned(), revision, ..Default::default() };
        match writer.set_record(record).await {
            Ok(SetRecord::Stored { revision }) => revision,
            other => panic!("answered {other:?}"),
        }
    };
    let mut base = 0;
    let mut refuses = std::pin::pin!(old.refuses_calls());
    loop {
        base = write(base).await;
        tokio::select! {
            () = refuses.as_mut() => break,
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
    }
    base = write(base).await;
    let mut told = Vec::new();
    let last = prost::Message::encode_to_vec(&data_sync::proto::Notification {
        client_id: Some("writer".to_owned()),
        revision: base,
    });
    while !told.ends_with(&last) {
        let data = within("the newest notification", body.data()).await;
        told.extend_from_slice(&data.expect("no end").expect("no error"));
    }
}
