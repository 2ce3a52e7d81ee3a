//! The admin port: metrics, probes, what is running and how it is, and the log level.
//!
//! | path | answer |
//! |---|---|
//! | `GET /metrics` | metrics in the Prometheus text format |
//! | `GET /livez` | 200 while the process runs |
//! | `GET /readyz` | 200 while the process wants traffic, else 503; `?verbose` adds every check |
//! | `GET /version` | what is running, as JSON |
//! | `GET /statusz` | a page for people |
//! | `GET /log-level` | the log filter in force |
//! | `PUT /log-level` | puts the filter in the body in force until the next restart |
//!
//! It shows no user data, and it is for operators only: nobody is asked who they are. It knows no
//! engine and no listener; an [`AdminView`] tells it about them.

use std::{
    fmt::{self, Write as _},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use async_trait::async_trait;
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, RawQuery, State},
    http::{HeaderName, StatusCode, header},
    response::{Html, IntoResponse, Redirect},
    routing::get,
};

use crate::{
    clock::Clock,
    limits::{ADMIN_CHECK_TIMEOUT, MAX_ADMIN_BODY_BYTES},
    telemetry::{
        LogControl,
        build_info::{BUILD_INFO, BuildInfo},
        metrics::Metrics,
    },
};

mod status_page;

/// How one part of the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// As it should be.
    Ok,
    /// Works, but not at its best.
    Degraded,
    /// Does not work.
    Failed,
}

impl Health {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
        }
    }

    /// One character for plain text.
    const fn mark(self) -> char {
        match self {
            Self::Ok => '+',
            Self::Degraded => '~',
            Self::Failed => '-',
        }
    }
}

/// A part of the process and how it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was checked, such as `store` or `listen`.
    pub name: &'static str,
    /// How it is.
    pub health: Health,
    /// What an operator should know; one line, nothing secret.
    pub detail: String,
}

/// What the status page tells beside checks and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overview {
    /// Each listener's name and the address it is bound to.
    pub listeners: Vec<(&'static str, SocketAddr)>,
    /// Name of the store's engine.
    pub engine: &'static str,
    /// Users with an open stream on this replica.
    pub users_with_streams: usize,
}

/// What the admin port is told by the process.
#[async_trait]
pub trait AdminView: fmt::Debug + Send + Sync + 'static {
    /// Whether the process wants traffic; if not, why (`starting`, `draining`). Does not follow
    /// the database: calls answer UNAVAILABLE while it is away, and every replica stays in place.
    fn readiness(&self) -> Result<(), &'static str>;

    /// Looks at every part, in the order in which they are to be shown. Stopped after
    /// [`ADMIN_CHECK_TIMEOUT`].
    async fn checks(&self) -> Vec<Check>;

    /// What else there is to tell.
    fn overview(&self) -> Overview;
}

/// Everything the admin port answers from.
#[derive(Debug, Clone)]
pub struct AdminState {
    view: Arc<dyn AdminView>,
    metrics: Arc<Metrics>,
    log: LogControl,
    clock: Arc<dyn Clock>,
    started: Instant,
}

impl AdminState {
    /// Puts the parts together; uptime counts from here.
    #[must_use]
    pub fn new(
        view: Arc<dyn AdminView>,
        metrics: Arc<Metrics>,
        log: LogControl,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { view, metrics, log, clock, started: Instant::now() }
    }

    /// The checks, or that they take too long.
    async fn checks(&self) -> Vec<Check> {
        match tokio::time::timeout(ADMIN_CHECK_TIMEOUT, self.view.checks()).await {
            Ok(checks) => checks,
            Err(_) => vec![Check {
                name: "checks",
                health: Health::Failed,
                detail: format!("no answer within {} s", ADMIN_CHECK_TIMEOUT.as_secs()),
            }],
        }
    }
}

/// The routes of the admin port.
pub fn router(state: AdminState) -> Router {
    Router::new()
        .route("/", get(|| async { Redirect::temporary("/statusz") }))
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/version", get(version))
        .route("/statusz", get(statusz))
        .route("/log-level", get(log_level).put(set_log_level))
        .layer(DefaultBodyLimit::max(MAX_ADMIN_BODY_BYTES))
        .with_state(state)
}

async fn metrics(State(state): State<AdminState>) -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, state.metrics.encode())
}

async fn readyz(
    State(state): State<AdminState>,
    RawQuery(query): RawQuery,
) -> (StatusCode, String) {
    let (status, verdict) = match state.view.readiness() {
        Ok(()) => (StatusCode::OK, "ok".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}")),
    };
    let mut text = String::new();
    if query.is_some_and(|query| query.split('&').any(is_verbose)) {
        for Check { name, health, detail } in state.checks().await {
            let _ = writeln!(text, "[{}] {name} {}: {detail}", health.mark(), health.as_str());
        }
    }
    let _ = writeln!(text, "{verdict}");
    (status, text)
}

fn is_verbose(parameter: &str) -> bool {
    parameter.split('=').next() == Some("verbose")
}

async fn version() -> Json<BuildInfo> {
    Json(BUILD_INFO)
}

async fn statusz(State(state): State<AdminState>) -> impl IntoResponse {
    const HEADERS: [(HeaderName, &str); 2] = [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
    ];
    let checks = state.checks().await;
    (HEADERS, Html(status_page::render(&state, &checks)))
}

async fn log_level(State(state): State<AdminState>) -> String {
    state.log.directives() + "\n"
}

async fn set_log_level(State(state): State<AdminState>, body: String) -> (StatusCode, String) {
    match state.log.set(&body) {
        Ok(()) => {
            let filter = state.log.directives();
            tracing::info!(filter, "log filter changed");
            (StatusCode::OK, filter + "\n")
        }
        Err(problem) => (StatusCode::BAD_REQUEST, problem + "\n"),
    }
}

#[cfg(test)]
mod tests;
