//! Runs the service until it is told to stop.

use std::{io::Write as _, sync::Arc};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, open};
use crate::{
    config::{Config, ServeArgs},
    server::{self, Addresses},
    telemetry::{Telemetry, build_info::BUILD_INFO, metrics::Metrics},
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
    let telemetry = Telemetry::init(&config.telemetry)?;
    let metrics = Arc::new(Metrics::new());
    BUILD_INFO.publish(&metrics);
    let log = telemetry.log().clone();
    let engine = open::engine_name(&config.store.engine);
    let served =
        server::run(config, metrics, log, move |at| announce(at, engine), stop_signal()?).await;
    telemetry.shutdown().await;
    served
}

/// Resolves at SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Says that the service listens. A released SDK's tests wait for this text on stderr, in this
/// case, so it is there at every log level.
fn announce(Addresses { grpc, web, admin }: Addresses, engine: &'static str) {
    if tracing::enabled!(tracing::Level::INFO) {
        tracing::info!(
            %grpc,
            %web,
            %admin,
            engine,
            version = BUILD_INFO.version,
            revision = BUILD_INFO.revision,
            "Server listening at {grpc}"
        );
    } else {
        // Whoever waits for the line has gone when it cannot be written.
        let _ = writeln!(std::io::stderr(), "Server listening at {grpc}");
    }
}
