//! What the health service says, and the latch behind readiness.
//!
//! Readiness follows the life of the replica, not the health of the database: it rises once, when
//! the store is open, and falls once, when the replica drains. A database that blinks would else
//! take every replica out of service at the same moment.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use crate::{proto, telemetry::metrics::Metrics};

/// Services that follow readiness. The empty name is the server as a whole.
const READINESS: [&str; 3] = ["", proto::SERVICE_NAME, "readiness"];
/// The service that is healthy while the process runs.
const LIVENESS: &str = "liveness";

/// Readiness and what the health service tells of it. Cloning it is cheap.
#[derive(Debug, Clone)]
pub(super) struct Health {
    reporter: HealthReporter,
    ready: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

impl Health {
    /// Alive and not ready.
    pub(super) async fn new(metrics: Arc<Metrics>) -> Self {
        let health = Self {
            reporter: HealthReporter::new(),
            ready: Arc::new(AtomicBool::new(false)),
            metrics,
        };
        health.reporter.set_service_status(LIVENESS, ServingStatus::Serving).await;
        health.set_ready(false).await;
        health
    }

    /// The service to route to.
    pub(super) fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(super) async fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
        self.metrics.ready.set(i64::from(ready));
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in READINESS {
            self.reporter.set_service_status(service, status).await;
        }
    }
}
