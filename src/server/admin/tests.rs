use std::sync::Mutex;

use axum::{
    body::Body,
    http::{Method, Request, Response},
};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::*;
use crate::{clock::ManualClock, telemetry::log_control_for_tests};

/// What the process says about itself.
#[derive(Debug, Default)]
struct Told {
    not_ready: Mutex<Option<&'static str>>,
    store_hangs: bool,
}

#[async_trait]
impl AdminView for Told {
    fn readiness(&self) -> Result<(), &'static str> {
        self.not_ready.lock().expect("no poison").map_or(Ok(()), Err)
    }

    async fn checks(&self) -> Vec<Check> {
        if self.store_hangs {
            std::future::pending::<()>().await;
        }
        let check = |name, health, detail: &str| Check { name, health, detail: detail.to_owned() };
        vec![
            check("store", Health::Ok, "postgres answers, schema 3"),
            check("listen", Health::Degraded, "no notifications <heard>"),
        ]
    }

    fn overview(&self) -> Overview {
        Overview {
            listeners: vec![("grpc", SocketAddr::from(([127, 0, 0, 1], 8080)))],
            engine: "postgres",
            users_with_streams: 42,
        }
    }
}

struct Admin {
    router: Router,
    view: Arc<Told>,
    metrics: Arc<Metrics>,
    /// The filter goes with its layer.
    _logs: Box<dyn std::any::Any>,
}

fn admin(view: Told) -> Admin {
    let (logs, log) = log_control_for_tests("info");
    let view = Arc::new(view);
    let metrics = Arc::new(Metrics::new());
    let clock = Arc::new(ManualClock::at(1_000_000));
    let state =
        AdminState::new(Arc::clone(&view) as Arc<dyn AdminView>, Arc::clone(&metrics), log, clock);
    Admin { router: router(state), view, metrics, _logs: Box::new(logs) }
}

impl Admin {
    async fn ask(&self, method: Method, path: &str, body: &str) -> (StatusCode, String) {
        let (parts, text) = self.whole(method, path, body).await.into_parts();
        (parts.status, text)
    }

    async fn whole(&self, method: Method, path: &str, body: &str) -> Response<String> {
        let request = Request::builder().method(method).uri(path);
        let request = request.body(Body::from(body.to_owned())).expect("a request");
        let response = self.router.clone().oneshot(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        Response::from_parts(parts, String::from_utf8(bytes.to_vec()).expect("text"))
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        self.ask(Method::GET, path, "").await
    }
}

#[tokio::test]
async fn probes_follow_readiness_and_liveness_does_not() {
    let admin = admin(Told::default());
    assert_eq!(admin.get("/readyz").await, (StatusCode::OK, "ok\n".to_owned()));
    *admin.view.not_ready.lock().expect("no poison") = Some("draining");
    let expected = (StatusCode::SERVICE_UNAVAILABLE, "not ready: draining\n".to_owned());
    assert_eq!(admin.get("/readyz").await, expected);
    assert_eq!(admin.get("/livez").await, (StatusCode::OK, "ok\n".to_owned()));
}

#[tokio::test]
async fn a_verbose_probe_names_every_check() {
    let admin = admin(Told::default());
    let expected = "[+] store ok: postgres answers, schema 3\n\
                    [~] listen degraded: no notifications <heard>\n\
                    ok\n";
    for path in ["/readyz?verbose", "/readyz?verbose=1", "/readyz?a=b&verbose"] {
        assert_eq!(admin.get(path).await, (StatusCode::OK, expected.to_owned()), "{path}");
    }
    assert_eq!(admin.get("/readyz?verbosely").await.1, "ok\n");
}

#[tokio::test(start_paused = true)]
async fn checks_that_hang_do_not_hang_the_probe() {
    let admin = admin(Told { store_hangs: true, ..Told::default() });
    let (status, text) = admin.get("/readyz?verbose").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(text, "[-] checks failed: no answer within 2 s\nok\n");
}

#[tokio::test]
async fn metrics_are_served_as_prometheus_reads_them() {
    let admin = admin(Told::default());
    admin.metrics.locks_denied.inc();
    let response = admin.whole(Method::GET, "/metrics", "").await;
    let kind = &response.headers()[header::CONTENT_TYPE];
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    assert!(response.body().contains("\ndata_sync_locks_denied_total 1\n"));
}

#[tokio::test]
async fn the_version_is_json() {
    let (status, text) = admin(Told::default()).get("/version").await;
    let value: serde_json::Value = serde_json::from_str(&text).expect("json");
    assert_eq!(status, StatusCode::OK);
    assert_eq!(value["version"], env!("CARGO_PKG_VERSION"));
    assert!(value["revision"].is_string() && value["target"].is_string());
}

#[tokio::test]
async fn the_status_page_tells_how_things_are() {
    let admin = admin(Told::default());
    admin.metrics.active_streams.set(77);
    let response = admin.whole(Method::GET, "/statusz", "").await;
    let page = response.body();
    for text in [
        "<td>grpc on 127.0.0.1:8080</td>",
        "<th>store</th><td>postgres</td>",
        "<th>open streams</th><td>77</td>",
        "<th>users with streams</th><td>42</td>",
        "no notifications &lt;heard&gt;",
        "<td>sync.Syncer/SetRecord</td>",
        "class=\"ok\">ready</span>",
    ] {
        assert!(page.contains(text), "{text} is missing in\n{page}");
    }
    for outside in ["http://", "https://", "src=", "<script"] {
        assert!(!page.contains(outside), "{outside} leads outside");
    }
}

#[tokio::test]
async fn the_log_level_changes_and_a_wrong_one_does_not() {
    let admin = admin(Told::default());
    assert_eq!(admin.get("/log-level").await.1, "info\n");
    let debug = "info,data_sync::store=debug";
    let changed = admin.ask(Method::PUT, "/log-level", debug).await;
    assert_eq!(changed, (StatusCode::OK, format!("{debug}\n")));
    for wrong in ["", "data_sync=loud", "=,="] {
        let (status, problem) = admin.ask(Method::PUT, "/log-level", wrong).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{wrong:?}");
        assert!(problem.len() > 1, "{wrong:?} is refused without a reason");
    }
    assert_eq!(admin.get("/log-level").await.1, format!("{debug}\n"));
}

#[tokio::test]
async fn a_body_without_end_is_refused() {
    let body = "x".repeat(MAX_ADMIN_BODY_BYTES + 1);
    let (status, _) = admin(Told::default()).ask(Method::PUT, "/log-level", &body).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}
