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

/// What a service's health check says over gRPC.
pub(crate) async fn check(
    address: SocketAddr,
    service: &str,
) -> Result<ServingStatus, tonic::Status> {
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

/// The services that reflection names, by either version of its protocol.
macro_rules! reflected_services {
    ($address:expr, $version:ident) => {{
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let request = ServerReflectionRequest {
            message_request: Some(MessageRequest::ListServices(String::new())),
            ..Default::default()
        };
        let mut client = ServerReflectionClient::new(channel($address).await);
        let requests = futures_util::stream::iter([request]);
        match within("reflection", client.server_reflection_info(requests)).await {
            Err(status) => Err(status.code()),
            Ok(replies) => {
                let reply = within("a reply", replies.into_inner().message()).await;
                let reply = reply.expect("no error").expect("no end").message_response;
                let Some(MessageResponse::ListServicesResponse(list)) = reply else {
                    panic!("no list of services: {reply:?}")
                };
                Ok(list.service.into_iter().map(|service| service.name).collect::<Vec<_>>())
            }
        }
    }};
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_names_the_services_in_both_versions_unless_switched_off() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.serve();
    for names in [reflected_services!(server.grpc, v1), reflected_services!(server.grpc, v1alpha)] {
        let names = names.expect("reflection is on");
        for name in ["sync.Syncer", "grpc.health.v1.Health"] {
            assert!(names.iter().any(|known| known == name), "{name} is not among {names:?}");
        }
    }
    drop(server);
    let silent = fixture.options().env("GRPC_REFLECTION", "false").start();
    assert_eq!(reflected_services!(silent.grpc, v1), Err(Code::Unimplemented));
}
