//! What the admin port is told of a replica.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{sync::watch, time::Instant};

use super::{
    admin::{AdminView, Check, Health as CheckHealth, Overview},
    feed,
    health::Health,
};
use crate::{
    clock::Clock,
    limits::ADMIN_CHECK_TIMEOUT,
    notify::{Hub, ListenState},
    service::StreamLife,
    store::{Store as _, deferred::DeferredStore},
    telemetry::metrics::Metrics,
};

/// Refreshes of the revocation list that may fail before that is worth a word.
const REVOCATION_REFRESHES_MISSED: u32 = 3;

/// The parts of a replica that an operator asks about.
#[derive(Debug)]
pub(super) struct ReplicaView {
    pub(super) health: Health,
    pub(super) store: Arc<DeferredStore>,
    pub(super) hub: Arc<Hub>,
    /// Whether other replicas are heard, where there may be any.
    pub(super) listening: Option<watch::Receiver<ListenState>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Arc<dyn Clock>,
    /// Time between two fetches of the revocation list, if there is one.
    pub(super) revocation_refresh: Option<Duration>,
    pub(super) listeners: Vec<(&'static str, SocketAddr)>,
    pub(super) streams: StreamLife,
}

#[async_trait]
impl AdminView for ReplicaView {
    fn readiness(&self) -> Result<(), &'static str> {
        if self.health.is_ready() {
            Ok(())
        } else if self.metrics.draining.get() > 0 {
            Err("draining")
        } else {
            Err("starting")
        }
    }

    async fn checks(&self) -> Vec<Check> {
        let mut checks = vec![self.store().await, self.streams()];
        checks.extend(self.listening.as_ref().map(|state| feed::check(*state.borrow())));
        checks.extend(self.revocation_list());
        checks
    }

    fn overview(&self) -> Overview {
        Overview {
            listeners: self.listeners.clone(),
            engine: self.store.engine(),
            users_with_streams: self.hub.users(),
        }
    }
}

impl ReplicaView {
    async fn store(&self) -> Check {
        let began = Instant::now();
        let status = self.store.status(began + ADMIN_CHECK_TIMEOUT).await;
        let (health, detail) = match status {
            Ok(status) => (
                CheckHealth::Ok,
                format!(
                    "{}, schema version {}, answered in {} ms",
                    self.store.engine(),
                    status.schema_version,
                    began.elapsed().as_millis()
                ),
            ),
            Err(error) => (CheckHealth::Failed, error.to_string()),
        };
        Check { name: "store", health, detail }
    }

    fn streams(&self) -> Check {
        let open = self.metrics.active_streams.get();
        let (health, detail) = if self.streams.is_draining() {
            (CheckHealth::Degraded, format!("draining, {open} open"))
        } else {
            (CheckHealth::Ok, format!("{open} open"))
        };
        Check { name: "streams", health, detail }
    }

    fn revocation_list(&self) -> Option<Check> {
        let refresh = self.revocation_refresh?;
        let fetched_at = self.metrics.revocation_list_last_success.get();
        #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 fit a float exactly")]
        let age = self.clock.now_seconds() as f64 - fetched_at;
        let entries = self.metrics.revocation_list_entries.get();
        let (health, detail) = if fetched_at <= 0.0 {
            (CheckHealth::Failed, "never fetched".to_owned())
        } else if age > (refresh * REVOCATION_REFRESHES_MISSED).as_secs_f64() {
            (CheckHealth::Degraded, format!("{entries} entries, fetched {age:.0} s ago"))
        } else {
            (CheckHealth::Ok, format!("{entries} entries, fetched {age:.0} s ago"))
        };
        Some(Check { name: "revocation list", health, detail })
    }
}
