//! Chromium, on a page of another origin, does a unary call, an error and a stream.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    response::Html,
    routing::{get, post},
};
use data_encoding::BASE64;
use data_sync::proto::{ListenChangesRequest, SetRecordRequest};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot};

use crate::support::{
    client::{Wallet, fresh_key, now},
    engine::{Engine, Fixture},
    wait::within,
};

/// The page's origin; the page's report arrives on the receiver.
async fn serve_page(plan: Value) -> (String, oneshot::Receiver<Value>) {
    let (sender, receiver) = oneshot::channel();
    let sender = Arc::new(Mutex::new(Some(sender)));
    let report = move |body: String| async move {
        if let Some(sender) = sender.lock().expect("not poisoned").take() {
            let _ = sender.send(serde_json::from_str(&body).expect("JSON"));
        }
    };
    let router = Router::new()
        .route("/", get(|| async { Html(include_str!("page.html")) }))
        .route("/plan", get(move || async move { Json(plan) }))
        .route("/result", post(report));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let origin = format!("http://localhost:{}/", listener.local_addr().expect("bound").port());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (origin, receiver)
}

/// A browser window; closed when dropped.
struct Browser {
    process: Child,
    _profile: tempfile::TempDir,
}

impl Browser {
    fn open(url: &str) -> Self {
        let profile = tempfile::tempdir().expect("a directory");
        let process = Command::new(executable())
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"])
            .args(["--no-first-run", "--disable-background-networking"])
            .args(["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("--remote-debugging-port=0")
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the browser starts");
        Self { process, _profile: profile }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn executable() -> PathBuf {
    let path = std::env::var_os("PATH").expect("a PATH");
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    std::env::split_paths(&path)
        .flat_map(|directory| names.map(|name| directory.join(name)))
        .chain(["/Applications/Google Chrome.app/Contents/MacOS/Google Chrome".into()])
        .find(|candidate| candidate.is_file())
        .expect("Chromium is installed (tests/run installs it)")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_of_another_origin_calls_fails_and_listens() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let listen = wallet.signed(ListenChangesRequest { request_time: now(), ..Default::default() });
    let write = wallet.set_request("from a browser", 0, b"data");
    let refused = SetRecordRequest { signature: "none".to_owned(), ..write.clone() };
    let (origin, report) = serve_page(json!({
        "server": format!("http://{}", server.web),
        "listen": BASE64.encode(&listen.encode_to_vec()),
        "write": BASE64.encode(&write.encode_to_vec()),
        "refused": BASE64.encode(&refused.encode_to_vec()),
    }))
    .await;

    let _browser = Browser::open(&origin);
    let report = within("the page's report", report).await.expect("reported");
    assert_eq!(report.get("failed"), None, "{report}");
    assert_eq!(report["first_notification_bytes"], 0, "{report}");
    assert_eq!(report["write"]["status"], "0", "{report}");
    assert_eq!(report["write"]["messages"], 1, "{report}");
    assert_eq!(report["write"]["type"], "application/grpc-web+proto", "{report}");
    assert!(report["second_notification_bytes"].as_u64() > Some(36), "{report}");
    assert_eq!(report["refused"]["status"], "16", "{report}");
    assert!(report["refused"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{report}");
    assert_eq!(wallet.list_all().await.len(), 1);
}
