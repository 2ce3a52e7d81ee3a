//! How a replica stops: out of the load balancer, streams, calls, connections, store.
//!
//! Each step has its time, so that the whole ends within the grace period whatever the peers do.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{connection::ConnectionEnd, health::Health};
use crate::{
    config::ShutdownConfig, limits, service::StreamLife, store::Store, tasks::Tasks,
    telemetry::metrics::Metrics,
};

/// Pause between two looks at what is still open.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Everything that stops, by the order of stopping.
pub(super) struct Drain<'a> {
    pub(super) times: ShutdownConfig,
    pub(super) health: &'a Health,
    pub(super) metrics: &'a Metrics,
    pub(super) streams: &'a StreamLife,
    pub(super) stop_accepting: &'a CancellationToken,
    pub(super) connections: &'a ConnectionEnd,
    /// Tasks of public connections.
    pub(super) connection_tasks: &'a Tasks,
    /// Plans nudges for pages that calls got, and announces them through the background.
    pub(super) nudges: &'a Tasks,
    /// Everything else that runs in the background.
    pub(super) background: &'a Tasks,
    pub(super) store: &'a dyn Store,
}

impl Drain<'_> {
    /// Stops the replica. Takes at most delay + spread + drain and a fixed time for the store.
    pub(super) async fn run(&self) {
        let began = Instant::now();
        self.metrics.draining.set(1);
        self.health.set_ready(false).await;
        tracing::info!(delay = ?self.times.delay, "draining: not ready, still serving");
        sleep(self.times.delay).await;

        tracing::info!(streams = self.metrics.active_streams.get(), "draining: ending streams");
        self.streams.drain();
        let no_streams = || self.metrics.active_streams.get() <= 0;
        wait_until(no_streams, self.times.spread + POLL_INTERVAL).await;

        tracing::info!(connections = self.connection_tasks.running(), "draining: finishing calls");
        self.stop_accepting.cancel();
        self.connections.hang_up.cancel();
        let no_connections = || self.connection_tasks.running() == 0;
        if !wait_until(no_connections, self.times.drain).await {
            tracing::warn!(connections = self.connection_tasks.running(), "draining: cutting");
            self.connections.cut.cancel();
            wait_until(no_connections, limits::TASK_JOIN_TIMEOUT).await;
        }

        if !self.nudges.stop(limits::TASK_JOIN_TIMEOUT).await {
            tracing::error!("the nudges did not end in time");
        }
        if tokio::time::timeout(limits::TASK_JOIN_TIMEOUT, self.store.close()).await.is_err() {
            tracing::error!("the store did not close in time");
        }
        if !self.background.stop(limits::TASK_JOIN_TIMEOUT).await {
            tracing::error!(
                tasks = self.background.running(),
                "background tasks did not end in time"
            );
        }
        tracing::info!(elapsed_ms = began.elapsed().as_millis(), "stopped");
    }
}

async fn wait_until(done: impl Fn() -> bool, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while !done() {
        if Instant::now() >= end {
            return false;
        }
        sleep(POLL_INTERVAL).await;
    }
    true
}
