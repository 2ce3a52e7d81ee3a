//! Health, reflection and the pages of the admin port.

use std::net::SocketAddr;

use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::support::{
    client::{Wallet, channel, fresh_key},
    engine::{Engine, Fixture},
    http::http1,
    wait::within,
};

async fn check(address: SocketAddr, service: &str) -> Result<ServingStatus, tonic::Status> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let mut client = HealthClient::new(channel(address).await);
    let reply = within("Check", client.check(request)).await?;
    Ok(reply.into_inner().status())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_health_service_answers() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.serve();
    for service in ["", "sync.Syncer", "readiness", "liveness"] {
        assert_eq!(check(server.grpc, service).await.expect(service), ServingStatus::Serving);
    }
    assert_eq!(check(server.grpc, "other").await.expect_err("unknown").code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_health_watch_sees_readiness_fall_and_ends_with_the_drain() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().env("SHUTDOWN_DELAY", "500ms").start();
    let mut client = HealthClient::new(channel(server.grpc).await);
    let request = HealthCheckRequest { service: "readiness".to_owned() };
    let mut watch = client.watch(request).await.expect("watches").into_inner();
    let mut status = async || within("a status", watch.message()).await;
    assert_eq!(status().await.expect("told").expect("told").status(), ServingStatus::Serving);
    server.signal("TERM");
    assert_eq!(status().await.expect("told").expect("told").status(), ServingStatus::NotServing);
    assert_eq!(status().await.expect_err("ended").code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_port_tells_health_metrics_and_version() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    wallet.must_set("a", 0, b"x").await;
    let get = async |path: &str| {
        let url = format!("http://{}{path}", server.admin);
        let response = within(path, http1().get(url).send()).await.expect("answers");
        (response.status().as_u16(), within(path, response.text()).await.expect("text"))
    };
    for path in ["/livez", "/readyz", "/readyz?verbose", "/version", "/statusz"] {
        assert_eq!(get(path).await.0, 200, "{path}");
    }
    let (_, metrics) = get("/metrics").await;
    let line = r#"grpc_server_handled_total{grpc_code="OK",grpc_method="SetRecord",grpc_service="sync.Syncer",grpc_type="unary"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    let (_, version) = get("/version").await;
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
}
