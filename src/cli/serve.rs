//! Runs the service until it is told to stop.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, open};
use crate::{
    config::{Config, ServeArgs},
    server::{self, Addresses},
    telemetry::{Telemetry, metrics::Metrics},
};

pub(super) const AFTER_HELP: &str = "\
SIGTERM and SIGINT stop it in order: not ready but serving for --shutdown-delay, streams ended
over --shutdown-spread, running calls finished within --shutdown-drain.

Exit status:
  0   stopped when told to
  1   could not start, or failed while running
  64  invalid configuration; every problem is listed";

pub(super) fn run(args: &ServeArgs) -> anyhow::Result<Exit> {
    let config = args.resolve()?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("data-sync")
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(config))?;
    Ok(Exit::SUCCESS)
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let engine = open::engine_name(&config.store.engine);
    // A released SDK's tests wait for this text, in this case.
    let listening = move |Addresses { grpc, web, admin }: Addresses| {
        tracing::info!(
            %grpc,
            %web,
            %admin,
            engine,
            version = env!("CARGO_PKG_VERSION"),
            revision = env!("DATA_SYNC_REVISION"),
            "Server listening at {grpc}"
        );
    };
    let telemetry = Telemetry::init(&config.telemetry).context("cannot set up logs and traces")?;
    let ended = server::run(config, Arc::new(Metrics::new()), listening, stop).await;
    telemetry.shutdown().await;
    ended
}
