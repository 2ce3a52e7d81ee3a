//! What the web port serves: gRPC-Web for browsers, and two plain pages the original had.

use std::time::Duration;

use axum::{Router, routing::get};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};
use tonic::body::Body;
use tonic_web::GrpcWebLayer;
use tower::{Layer as _, ServiceExt as _};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::connection::ConnectionService;

/// How long a browser may remember a preflight's answer; browsers cap it themselves.
const PREFLIGHT_CACHE: Duration = Duration::from_secs(7_200);

/// Wraps the gRPC service for browsers. `origins` may call; none named is any.
pub(super) fn service<S>(grpc: S, origins: &[String]) -> impl ConnectionService
where
    S: ConnectionService + Sync,
    S::ResponseBody: http_body::Body<Error: std::fmt::Display>,
{
    let grpc_web = GrpcWebLayer::new().layer(grpc);
    let grpc_web = grpc_web.map_request(|mut request: Request<axum::body::Body>| {
        answer_in_kind(request.headers_mut());
        request.map(Body::new)
    });
    Router::new()
        .route("/", get(|| async { "data-sync: gRPC-Web endpoint of sync.Syncer\n" }))
        .route("/health", get(|| async { "OK" }))
        .fallback_service(grpc_web)
        .layer(cors(origins))
        .map_request(|request: Request<Body>| request.map(axum::body::Body::new))
}

/// Lets a caller that accepts anything be answered in the framing it used, text for text, as the
/// Go server does.
fn answer_in_kind(headers: &mut HeaderMap) {
    let names_a_framing =
        |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc-web");
    if headers.get(header::ACCEPT).is_some_and(names_a_framing) {
        return;
    }
    if let Some(kind) = headers.get(header::CONTENT_TYPE).cloned().filter(names_a_framing) {
        headers.insert(header::ACCEPT, kind);
    }
}

fn cors(origins: &[String]) -> CorsLayer {
    let allowed = if origins.is_empty() {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::OPTIONS])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::USER_AGENT,
            HeaderName::from_static("x-grpc-web"),
            HeaderName::from_static("x-user-agent"),
            HeaderName::from_static("grpc-timeout"),
            HeaderName::from_static("traceparent"),
            HeaderName::from_static("tracestate"),
            HeaderName::from_static("x-request-id"),
        ])
        .expose_headers([
            HeaderName::from_static("grpc-status"),
            HeaderName::from_static("grpc-message"),
            HeaderName::from_static("grpc-status-details-bin"),
            HeaderName::from_static("x-request-id"),
        ])
        .max_age(PREFLIGHT_CACHE)
}
