//! The revocation list against a real HTTP server.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Response},
    routing::get,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::api_keys::{authority, good_key};
use crate::{
    auth::{
        Authenticator, Serial,
        api_key::ApiKeyError,
        revocation::{FetchError, RevocationList, RevocationSetupError, Standing},
    },
    clock::{Clock, ManualClock},
    config::{ApiKeyConfig, RevocationConfig, RevocationPolicy},
    limits::{MAX_REVOCATION_LIST_BYTES, REVOCATION_FETCH_TIMEOUT},
    tasks::Tasks,
    telemetry::metrics::Metrics,
};

/// 2024-07-01 00:00:00 UTC.
const NOW_MS: u64 = 1_719_792_000_000;
/// Longest wait for something that is about to happen.
const SOON: Duration = Duration::from_secs(10);

/// What the server answers, and what it was asked.
#[derive(Default)]
struct Page {
    status: u16,
    etag: Option<&'static str>,
    text: String,
    /// Given in many pieces, without a length.
    endless: bool,
    silent: bool,
    asked_with: Vec<Option<String>>,
}

type Shared = Arc<Mutex<Page>>;

struct Server {
    address: SocketAddr,
    page: Shared,
    _running: DropGuard,
}

impl Server {
    async fn start(text: &str) -> Self {
        let page = Page { status: 200, text: text.to_owned(), ..Page::default() };
        let page = Arc::new(Mutex::new(page));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let routes = Router::new()
            .route("/list", get(answer))
            .route("/round", get(|| async { redirect("/round") }))
            .route("/moved", get(|| async { redirect("/list") }))
            .with_state(Arc::clone(&page));
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let serving = axum::serve(listener, routes).with_graceful_shutdown(stopped);
        Tasks::new().spawn("test server", async move { serving.await.expect("serving") });
        Self { address, page, _running: stop.drop_guard() }
    }

    fn set(&self, change: impl FnOnce(&mut Page)) {
        change(&mut self.page.lock().expect("not poisoned"));
    }

    fn asked_with(&self) -> Vec<Option<String>> {
        self.page.lock().expect("not poisoned").asked_with.clone()
    }

    fn config(&self, policy: RevocationPolicy) -> RevocationConfig {
        let url = format!("http://{}/list", self.address);
        RevocationConfig { url, policy, refresh: Duration::from_millis(20) }
    }
}

fn redirect(to: &'static str) -> Response<Body> {
    let response = Response::builder().status(302).header("location", to);
    response.body(Body::empty()).expect("a response")
}

async fn answer(State(page): State<Shared>, headers: HeaderMap) -> Response<Body> {
    let asked_with = headers.get("if-none-match").map(|tag| tag.to_str().expect("text").to_owned());
    let (silent, response) = {
        let mut page = page.lock().expect("not poisoned");
        let known = page.etag.is_some() && asked_with.as_deref() == page.etag;
        page.asked_with.push(asked_with);
        let mut response = Response::builder().status(if known { 304 } else { page.status });
        if let Some(etag) = page.etag {
            response = response.header("etag", etag);
        }
        let body = match (known, page.endless) {
            (true, _) => Body::empty(),
            (false, false) => Body::from(page.text.clone()),
            (false, true) => {
                let piece = Bytes::from("1,".repeat(32 * 1024));
                let pieces = std::iter::repeat_with(move || Ok::<_, std::io::Error>(piece.clone()));
                Body::from_stream(tokio_stream::iter(pieces))
            }
        };
        (page.silent, response.body(body).expect("a response"))
    };
    if silent {
        std::future::pending::<()>().await;
    }
    response
}

fn list(config: &RevocationConfig) -> (Arc<RevocationList>, Arc<Metrics>) {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(NOW_MS));
    let metrics = Arc::new(Metrics::new());
    let list = RevocationList::new(config, clock, Arc::clone(&metrics)).expect("set up");
    (Arc::new(list), metrics)
}

async fn open_list(text: &str) -> (Server, Arc<RevocationList>, Arc<Metrics>) {
    let server = Server::start(text).await;
    let (list, metrics) = list(&server.config(RevocationPolicy::Open));
    (server, list, metrics)
}

fn standing(list: &RevocationList, serial: u64) -> Standing {
    list.standing(&Serial::from_bytes(&serial.to_be_bytes()))
}

#[tokio::test]
async fn serials_are_compared_as_numbers() {
    let big = "1461501637330902918203684832716283019655932542976";
    let text = format!("\u{20}7, 0012 ,,\r\n{big},18446744073709551615,0\n,\n");
    let (_server, list, metrics) = open_list(&text).await;
    list.fetch_once().await.expect("a list");
    for revoked in [7, 12, 0, u64::MAX] {
        assert_eq!(standing(&list, revoked), Standing::Revoked, "{revoked}");
    }
    for good in [1, 2, 70, 712] {
        assert_eq!(standing(&list, good), Standing::Good, "{good}");
    }
    let power = Serial::from_bytes(&[&[1][..], &[0; 20]].concat());
    assert_eq!(list.standing(&power), Standing::Revoked);
    assert_eq!(metrics.revocation_list_entries.get(), 5);
    let fetched_at = metrics.revocation_list_last_success.get();
    assert!((fetched_at - 1_719_792_000.0).abs() < 0.5, "{fetched_at}");
    assert_eq!(metrics.revocation_fetch_failures.get(), 0);
}

#[tokio::test]
async fn an_empty_list_is_a_list() {
    for text in ["", "\n", ",", " , ,\n"] {
        let server = Server::start(text).await;
        let (list, _) = list(&server.config(RevocationPolicy::Closed));
        list.fetch_once().await.expect("a list");
        assert_eq!((list.entries(), standing(&list, 1)), (Some(0), Standing::Good), "{text:?}");
    }
}

#[tokio::test]
async fn only_a_whole_list_is_taken() {
    let (server, list, metrics) = open_list("7").await;
    list.fetch_once().await.expect("a list");
    for (number, text) in [
        (1, "<html>404</html>"),
        (2, "1,<html>"),
        (1, "0x1f"),
        (3, "1,2,-3"),
        (1, "1 2"),
        (1, "1;2"),
        (2, "1,2.0"),
        (1, "\u{feff}1"),
        (1, "1\n2"),
    ] {
        server.set(|page| page.text = text.to_owned());
        match list.fetch_once().await {
            Err(FetchError::Entry(entry)) => assert_eq!(entry, number, "{text:?}"),
            other => panic!("{text:?}: {other:?}"),
        }
    }
    assert_eq!(standing(&list, 7), Standing::Revoked, "the last good one is kept");
    assert_eq!((standing(&list, 1), list.entries()), (Standing::Good, Some(1)));
    assert_eq!(metrics.revocation_fetch_failures.get(), 9);
    assert_eq!(metrics.revocation_list_entries.get(), 1);
}

#[tokio::test]
async fn other_statuses_are_failures() {
    let (server, list, _) = open_list("7").await;
    for status in [204, 206, 304, 400, 404, 500, 503] {
        server.set(|page| page.status = status);
        match list.fetch_once().await {
            Err(FetchError::Status(found)) => assert_eq!(found.as_u16(), status),
            other => panic!("{status}: {other:?}"),
        }
        assert_eq!(list.entries(), None, "{status}");
    }
    server.set(|page| page.status = 200);
    list.fetch_once().await.expect("a list");
    server.set(|page| page.status = 404);
    list.fetch_once().await.expect_err("no list");
    assert_eq!(standing(&list, 7), Standing::Revoked);
}

#[tokio::test]
async fn an_unchanged_list_is_not_sent_again() {
    let (server, list, metrics) = open_list("7").await;
    server.set(|page| page.etag = Some("\"a\""));
    let mut changes = list.changes();
    list.fetch_once().await.expect("a list");
    assert!(changes.has_changed().expect("open"));
    changes.mark_unchanged();

    list.fetch_once().await.expect("unchanged");
    assert_eq!(standing(&list, 7), Standing::Revoked);
    assert!(!changes.has_changed().expect("open"));

    server.set(|page| (page.etag, page.text) = (Some("\"b\""), "8".to_owned()));
    list.fetch_once().await.expect("another list");
    assert!(changes.has_changed().expect("open"));
    assert_eq!((standing(&list, 7), standing(&list, 8)), (Standing::Good, Standing::Revoked));

    let tag = |text: &str| Some(text.to_owned());
    assert_eq!(server.asked_with(), [None, tag("\"a\""), tag("\"a\"")]);
    assert_eq!(metrics.revocation_fetch_failures.get(), 0);
}

#[tokio::test]
async fn the_same_numbers_are_no_change() {
    let (server, list, _) = open_list("7,8").await;
    list.fetch_once().await.expect("a list");
    let changes = list.changes();
    server.set(|page| page.text = "08,\n7,7".to_owned());
    list.fetch_once().await.expect("a list");
    assert!(!changes.has_changed().expect("open"));
}

#[tokio::test]
async fn a_list_too_long_is_refused_while_it_comes_in() {
    let (server, list, _) = open_list("7").await;
    server.set(|page| page.endless = true);
    let fetched = tokio::time::timeout(SOON, list.fetch_once()).await.expect("in time");
    assert!(matches!(fetched, Err(FetchError::TooLong)), "{fetched:?}");

    let longest = format!("{}1", " ".repeat(MAX_REVOCATION_LIST_BYTES - 1));
    server.set(|page| (page.endless, page.text) = (false, longest.clone()));
    list.fetch_once().await.expect("just short enough");
    assert_eq!(list.entries(), Some(1));
    server.set(|page| page.text = longest + ",");
    assert!(matches!(list.fetch_once().await, Err(FetchError::TooLong)));
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_given_up_in_time() {
    let (server, list, _) = open_list("7").await;
    server.set(|page| page.silent = true);
    let begun = tokio::time::Instant::now();
    let error = list.fetch_once().await.expect_err("no answer");
    assert!(error.to_string().starts_with("timed out"), "{error}");
    assert!(begun.elapsed() <= REVOCATION_FETCH_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test]
async fn redirects_are_followed_but_not_for_ever() {
    let server = Server::start("7").await;
    let at = |path| {
        let url = format!("http://{}/{path}", server.address);
        let config = server.config(RevocationPolicy::Open);
        list(&RevocationConfig { url, ..config }).0
    };
    let moved = at("moved");
    moved.fetch_once().await.expect("a list");
    assert_eq!(standing(&moved, 7), Standing::Revoked);
    let round = at("round").fetch_once().await.expect_err("no list");
    assert!(matches!(round, FetchError::Http(_)), "{round}");
}

#[tokio::test]
async fn errors_keep_the_url_to_themselves() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = unused.local_addr().expect("an address").port();
    drop(unused);
    let config = RevocationConfig {
        url: format!("http://user:hunter2@127.0.0.1:{port}/secret"),
        policy: RevocationPolicy::Open,
        refresh: SOON,
    };
    let (unreachable, _) = list(&config);
    let error = unreachable.fetch_once().await.expect_err("nobody listens");
    let text = format!("{error} {unreachable:?}");
    assert!(text.contains("refused"), "the cause is named: {text}");
    assert!(!text.contains("hunter2") && !text.contains("secret"), "{text}");

    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(NOW_MS));
    let broken = RevocationConfig { url: "http://".to_owned(), ..config };
    let error = RevocationList::new(&broken, clock, Arc::new(Metrics::new())).expect_err("no URL");
    assert!(matches!(error, RevocationSetupError::Url), "{error}");
}

fn authenticator(server: &Server, policy: RevocationPolicy, ca_der: &[u8]) -> Arc<Authenticator> {
    let revocation = Some(server.config(policy));
    let config = ApiKeyConfig { ca_der: ca_der.to_vec(), revocation };
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(NOW_MS));
    let auth = Authenticator::new(Some(&config), &clock, Arc::new(Metrics::new()));
    Arc::new(auth.expect("set up"))
}

#[tokio::test]
async fn before_the_first_list_the_policy_decides() {
    let issuer = authority();
    let server = Server::start("8").await;
    server.set(|page| page.status = 503);
    let key = good_key(&issuer, 7);
    let revoked = good_key(&issuer, 8);

    let open = authenticator(&server, RevocationPolicy::Open, issuer.der());
    let closed = authenticator(&server, RevocationPolicy::Closed, issuer.der());
    for auth in [&open, &closed] {
        auth.revocation().expect("a list").fetch_once().await.expect_err("no list");
    }
    assert!(open.check_api_key(Some(&key)).is_ok());
    assert!(open.check_api_key(Some(&revoked)).is_ok(), "nobody knows yet");
    let unknown = closed.check_api_key(Some(&key)).expect_err("refused");
    assert_eq!(unknown, ApiKeyError::RevocationUnknown.into());

    server.set(|page| page.status = 200);
    for auth in [&open, &closed] {
        auth.revocation().expect("a list").fetch_once().await.expect("a list");
        assert!(auth.check_api_key(Some(&key)).is_ok());
        let refused = auth.check_api_key(Some(&revoked)).expect_err("refused");
        assert_eq!(refused, ApiKeyError::Revoked.into(), "remembered or not");
    }
}

#[tokio::test]
async fn a_running_list_is_refreshed_and_ends_streams() {
    let issuer = authority();
    let server = Server::start("").await;
    let auth = authenticator(&server, RevocationPolicy::Closed, issuer.der());
    let list = Arc::clone(auth.revocation().expect("a list"));
    list.fetch_once().await.expect("a list");
    let tasks = Tasks::new();
    tasks.spawn("revocation list", Arc::clone(&list).run(tasks.stop_signal()));

    let key = auth.check_api_key(Some(&good_key(&issuer, 7))).expect("accepted");
    let other = auth.check_api_key(Some(&good_key(&issuer, 9))).expect("accepted");
    let mut ended = std::pin::pin!(auth.until_invalid(key.as_ref()));
    let mut other_ended = std::pin::pin!(auth.until_invalid(other.as_ref()));
    assert!(futures_util::poll!(&mut ended).is_pending());

    server.set(|page| page.text = "7".to_owned());
    let error = tokio::select! {
        error = &mut ended => error,
        _ = &mut other_ended => unreachable!("that key is good"),
        () = tokio::time::sleep(SOON) => panic!("the stream was not ended"),
    };
    assert_eq!(error, ApiKeyError::Revoked.into());
    assert!(futures_util::poll!(&mut other_ended).is_pending());
    assert!(tasks.stop(SOON).await, "it stops when told");
}

#[tokio::test]
async fn a_list_that_was_missing_is_asked_for_again() {
    let server = Server::start("7").await;
    server.set(|page| page.status = 500);
    let (list, metrics) = list(&server.config(RevocationPolicy::Open));
    list.fetch_once().await.expect_err("no list");
    let tasks = Tasks::new();
    let mut changes = list.changes();
    tasks.spawn("revocation list", Arc::clone(&list).run(tasks.stop_signal()));
    let failed_again = async {
        while metrics.revocation_fetch_failures.get() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, failed_again).await.expect("asked again");
    server.set(|page| page.status = 200);
    tokio::time::timeout(SOON, changes.changed()).await.expect("in time").expect("open");
    assert_eq!(standing(&list, 7), Standing::Revoked);
    assert!(tasks.stop(SOON).await);
}

#[tokio::test]
async fn a_fetch_under_way_does_not_hold_up_stopping() {
    let (server, list, _) = open_list("7").await;
    server.set(|page| page.silent = true);
    let tasks = Tasks::new();
    tasks.spawn("revocation list", Arc::clone(&list).run(tasks.stop_signal()));
    let asked = async {
        while server.asked_with().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, asked).await.expect("asked");
    assert!(tasks.stop(Duration::from_secs(2)).await);
}
