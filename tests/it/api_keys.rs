//! API keys over the wire: who is let in, and what happens to those who no longer are.

use std::sync::{Arc, Mutex};

use axum::{Router, extract::State, routing::get};
use data_encoding::BASE64;
use data_sync::proto::{
    ListChangesRequest, ListenChangesRequest, Notification, syncer_client::SyncerClient,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use tokio::net::TcpListener;
use tonic::{Code, Request, Status, Streaming, transport::Channel};

use crate::support::{
    client::{Wallet, channel, end, fresh_key, next, now},
    engine::{Engine, Fixture},
    http::http1,
    server::{Server, ServerOptions},
    wait::{until, within},
};

/// An authority and what it gives out.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("signs itself"))
    }

    fn certificate(&self) -> String {
        BASE64.encode(self.0.der())
    }

    /// An API key with a serial number.
    fn key(&self, serial: u64) -> String {
        let mut params = CertificateParams::new(vec!["app.example".to_owned()]).expect("a name");
        params.serial_number = Some(SerialNumber::from(serial));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("signs");
        format!("Bearer {}", BASE64.encode(certificate.der()))
    }
}

/// A caller with the value of its `authorization` header.
struct Caller {
    wallet: Wallet,
    rpc: SyncerClient<Channel>,
    authorization: Option<String>,
}

impl Caller {
    async fn connect(server: &Server, authorization: Option<String>) -> Self {
        let channel = channel(server.grpc).await;
        let wallet = Wallet::on(channel.clone(), fresh_key());
        Self { wallet, rpc: SyncerClient::new(channel), authorization }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            let value = authorization.parse().expect("a header's value");
            request.metadata_mut().insert("authorization", value);
        }
        request
    }

    async fn list(&self) -> Result<(), Status> {
        let request = ListChangesRequest { request_time: now(), ..Default::default() };
        let request = self.request(self.wallet.signed(request));
        within("ListChanges", self.rpc.clone().list_changes(request)).await.map(|_| ())
    }

    async fn listen(&self) -> Result<Streaming<Notification>, Status> {
        let request = ListenChangesRequest { request_time: now(), ..Default::default() };
        let request = self.request(self.wallet.signed(request));
        within("ListenChanges", self.rpc.clone().listen_changes(request))
            .await
            .map(tonic::Response::into_inner)
    }

    async fn is_refused(&self) -> bool {
        match self.list().await {
            Ok(()) => false,
            Err(status) => {
                assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
                true
            }
        }
    }
}

/// A revocation list that can be changed.
#[derive(Clone, Default)]
struct RevocationServer(Arc<Mutex<String>>);

impl RevocationServer {
    async fn start(&self) -> String {
        let router = Router::new()
            .route("/list", get(|State(list): State<Self>| async move { list.text() }))
            .with_state(self.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}/list", listener.local_addr().expect("bound"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    fn text(&self) -> String {
        self.0.lock().expect("not poisoned").clone()
    }

    fn revoke(&self, serials: &str) {
        serials.clone_into(&mut self.0.lock().expect("not poisoned"));
    }
}

async fn guarded(authority: &Authority) -> (Fixture, ServerOptions) {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let options = fixture.options().env("CA_CERT", &authority.certificate());
    (fixture, options)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_keys_of_the_authority_are_let_in() {
    let authority = Authority::new();
    let (_fixture, options) = guarded(&authority).await;
    let server = options.start();
    let valid = authority.key(1);
    assert!(!Caller::connect(&server, Some(valid.clone())).await.is_refused().await);
    let refused = [
        None,
        Some("Bearer ".to_owned()),
        Some("Bearer not base64!".to_owned()),
        Some(valid.replacen("Bearer", "Basic", 1)),
        Some(Authority::new().key(1)),
        Some(format!("Bearer {}", authority.certificate())),
        Some(format!("Bearer {}", "A".repeat(12 * 1024))),
    ];
    for authorization in refused {
        let caller = Caller::connect(&server, authorization.clone()).await;
        assert!(caller.is_refused().await, "{authorization:?}");
        let status = caller.listen().await.expect_err("refused");
        assert_eq!(status.code(), Code::Unauthenticated);
    }
    let token = valid.trim_start_matches("Bearer ");
    assert!(!server.log().contains(&token[..24]), "a key was logged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_authority_any_header_passes() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.serve();
    for authorization in [None, Some("Bearer anything".to_owned()), Some("?".to_owned())] {
        assert!(!Caller::connect(&server, authorization).await.is_refused().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoking_a_key_ends_its_streams_and_refuses_its_calls() {
    let authority = Authority::new();
    let list = RevocationServer::default();
    list.revoke("7, 8\n");
    let (_fixture, options) = guarded(&authority).await;
    let options = options.env("CRL_URL", &list.start().await).env("CRL_REFRESH", "1s");
    let server = options.start();
    let revoked = Caller::connect(&server, Some(authority.key(7))).await;
    assert!(revoked.is_refused().await, "the list is known before the first call");

    let caller = Caller::connect(&server, Some(authority.key(9))).await;
    let other = Caller::connect(&server, Some(authority.key(10))).await;
    let mut stream = caller.listen().await.expect("listens");
    let mut others_stream = other.listen().await.expect("listens");
    next(&mut stream).await;
    next(&mut others_stream).await;
    list.revoke("7,8,9");
    assert_eq!(end(&mut stream).await.code(), Code::Unauthenticated);
    assert!(caller.is_refused().await);
    assert!(!other.is_refused().await);

    // Whatever is no list keeps the last good one.
    list.revoke("<html>404</html>");
    let metrics = format!("http://{}/metrics", server.admin);
    until("a fetch fails", || async {
        let response = http1().get(&metrics).send().await.expect("answers");
        let text = response.text().await.expect("text");
        text.lines().any(|line| {
            line.strip_prefix("data_sync_revocation_fetch_failures_total ")
                .is_some_and(|count| count != "0")
        })
    })
    .await;
    assert!(caller.is_refused().await);
    assert!(!other.is_refused().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policy_decides_while_the_list_was_never_fetched() {
    let authority = Authority::new();
    for (policy, refused) in [("open", false), ("closed", true)] {
        let (_fixture, options) = guarded(&authority).await;
        // Nobody listens on the discard port of the loopback address.
        let options = options.env("CRL_URL", "http://127.0.0.1:9/list").env("CRL_POLICY", policy);
        let server = options.start();
        let caller = Caller::connect(&server, Some(authority.key(1))).await;
        assert_eq!(caller.is_refused().await, refused, "{policy}");
        assert!(server.log().contains("no revocation list was ever fetched"), "said nothing of it");
    }
}
