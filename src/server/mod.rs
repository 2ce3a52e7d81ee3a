//! Listeners and the life of connections.

use std::{future::Future, net::SocketAddr, sync::Arc};

use crate::{config::Config, telemetry::metrics::Metrics};

pub mod admin;
pub mod layers;

/// The addresses a server listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// gRPC.
    pub grpc: SocketAddr,
    /// gRPC-Web.
    pub web: SocketAddr,
    /// Metrics, probes, status.
    pub admin: SocketAddr,
}

/// Serves until `shutdown` resolves, then drains; `listening` is told the addresses.
///
/// # Errors
/// What kept the service from starting or running on.
pub async fn run(
    config: Config,
    metrics: Arc<Metrics>,
    listening: impl FnOnce(Addresses) + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    drop((config, metrics, listening, shutdown));
    anyhow::bail!("this program was built without its listeners")
}
