//! The bytes of the gRPC-Web port, over HTTP/1.1 and HTTP/2.

use data_encoding::BASE64;
use data_sync::proto::{ListChangesReply, ListChangesRequest, SetRecordRequest};
use prost::Message;
use reqwest::{Client, Method, Response};

use crate::support::{
    client::{Wallet, fresh_key, now},
    engine::{Engine, Fixture},
    http::{http1, http2},
    server::Server,
    wait::within,
};

fn framed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).expect("small").to_be_bytes();
    [&[0][..], &length, &message].concat()
}

/// The messages and the trailer block of a body.
fn unframed(mut body: &[u8]) -> (Vec<Vec<u8>>, String) {
    let mut messages = Vec::new();
    while let [flags, a, b, c, d, rest @ ..] = body {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let (frame, rest) = rest.split_at(length);
        if flags & 0x80 != 0 {
            assert!(rest.is_empty(), "nothing follows the trailers");
            return (messages, String::from_utf8(frame.to_vec()).expect("text"));
        }
        messages.push(frame.to_vec());
        body = rest;
    }
    panic!("no trailers");
}

async fn post(
    client: &Client,
    server: &Server,
    kind: &str,
    method: &str,
    body: Vec<u8>,
) -> Response {
    let request = client
        .post(format!("http://{}/sync.Syncer/{method}", server.web))
        .header("content-type", format!("application/grpc-web{kind}"))
        .header("x-grpc-web", "1")
        .header("origin", "https://app.example")
        .body(body);
    within(method, request.send()).await.expect("answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_framing_answers_over_both_versions_of_http() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    wallet.must_set("a", 0, b"x").await;
    let request = wallet.signed(ListChangesRequest { request_time: now(), ..Default::default() });
    for client in [http1(), http2()] {
        for kind in ["", "+proto", "-text", "-text+proto"] {
            let is_text = kind.starts_with("-text");
            let body = framed(&request);
            let body = if is_text { BASE64.encode(&body).into_bytes() } else { body };
            let response = post(&client, &server, kind, "ListChanges", body).await;
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["access-control-allow-origin"], "*");
            let mut body = within("the body", response.bytes()).await.expect("a body").to_vec();
            if is_text {
                // Each chunk is padded on its own.
                body = body
                    .chunks(4)
                    .flat_map(|group| BASE64.decode(group).expect("base 64"))
                    .collect();
            }
            let (messages, trailers) = unframed(&body);
            assert!(trailers.contains("grpc-status:0\r\n"), "{trailers:?}");
            assert!(trailers.ends_with("\r\n"), "{trailers:?}");
            let reply = ListChangesReply::decode(messages[0].as_slice()).expect("a reply");
            assert_eq!((messages.len(), reply.head_revision), (1, 1));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_without_a_body_is_readable_from_another_origin() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.serve();
    let body = framed(&SetRecordRequest::default());
    let response = post(&http1(), &server, "+proto", "SetRecord", body).await;
    assert_eq!(response.headers()["grpc-status"], "3");
    let exposed = response.headers()["access-control-expose-headers"].to_str().expect("text");
    for name in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
        assert!(exposed.contains(name), "{exposed}");
        assert!(response.headers().contains_key(name), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preflight_allows_what_clients_send_and_is_cached() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.serve();
    let names = "authorization,content-type,x-grpc-web,x-user-agent,user-agent,grpc-timeout";
    let request = http1()
        .request(Method::OPTIONS, format!("http://{}/sync.Syncer/SetRecord", server.web))
        .header("origin", "https://app.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", names);
    let response = within("the preflight", request.send()).await.expect("answers");
    assert_eq!(response.status(), 200);
    let header = |name: &str| response.headers()[name].to_str().expect("text").to_owned();
    assert_eq!(header("access-control-allow-origin"), "*");
    assert!(header("access-control-allow-methods").contains("POST"));
    assert_eq!(header("access-control-max-age"), "7200");
    let allowed = header("access-control-allow-headers");
    assert!(names.split(',').all(|name| allowed.contains(name)), "{allowed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origins_can_be_restricted() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("CORS_ALLOWED_ORIGINS", "https://app.example").start();
    let preflight = async |origin: &str| {
        let request = http1()
            .request(Method::OPTIONS, format!("http://{}/sync.Syncer/SetRecord", server.web))
            .header("origin", origin)
            .header("access-control-request-method", "POST");
        let response = within("the preflight", request.send()).await.expect("answers");
        response.headers().contains_key("access-control-allow-origin")
    };
    assert!(preflight("https://app.example").await);
    assert!(!preflight("https://other.example").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plain_pages_answer() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.serve();
    let get = async |path: &str| {
        let response =
            within(path, http1().get(format!("http://{}{path}", server.web)).send()).await;
        within(path, response.expect("answers").text()).await.expect("text")
    };
    assert_eq!(get("/health").await, "OK");
    assert!(get("/").await.contains("data-sync"));
}
