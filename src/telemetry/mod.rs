//! What operators see: logs, metrics, traces.

use std::io;

use ::tracing::{Dispatch, Subscriber};
use opentelemetry_sdk::trace::SdkTracerProvider;
use thiserror::Error;
use tracing_subscriber::{
    Registry, fmt::MakeWriter, layer::SubscriberExt as _, registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use crate::{config::TelemetryConfig, limits::TRACE_FLUSH_TIMEOUT};

pub mod build_info;
mod json_line;
pub mod logging;
pub mod metrics;
pub mod rpc;
pub mod tracing;

pub use logging::{LogControl, validate_filter};

/// Why logs or traces cannot be set up.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The log filter cannot be read.
    #[error("log filter: {0}")]
    Filter(String),
    /// The trace endpoint cannot be used.
    #[error("trace endpoint: {0}")]
    Traces(String),
    /// The process logs somewhere already.
    #[error("logging is set up already: {0}")]
    Twice(String),
}

/// The logs and traces of the process, until [`Self::shutdown`].
#[derive(Debug)]
pub struct Telemetry {
    log: LogControl,
    traces: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Sets up logs on stderr and, if there is an endpoint for them, traces. Once a process,
    /// inside the async runtime. Panics are logged from here on.
    ///
    /// # Errors
    /// If a setting cannot be used or the process logs already.
    pub fn init(config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        let (dispatch, telemetry) = Self::build(config, io::stderr)?;
        dispatch.try_init().map_err(|error| TelemetryError::Twice(error.to_string()))?;
        logging::log_panics();
        Ok(telemetry)
    }

    /// Changes what is logged.
    #[must_use]
    pub const fn log(&self) -> &LogControl {
        &self.log
    }

    /// Sends what spans are left, within [`TRACE_FLUSH_TIMEOUT`].
    pub async fn shutdown(self) {
        let Some(traces) = self.traces else { return };
        let flushed =
            tokio::task::spawn_blocking(move || traces.shutdown_with_timeout(TRACE_FLUSH_TIMEOUT));
        match flushed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => ::tracing::warn!(%error, "last traces not sent"),
            Err(error) => ::tracing::warn!(%error, "last traces not sent"),
        }
    }

    /// Puts the layers together without making them the process's own.
    fn build<W>(config: &TelemetryConfig, writer: W) -> Result<(Dispatch, Self), TelemetryError>
    where
        W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
    {
        let traces = config
            .otlp_endpoint
            .as_deref()
            .map(|endpoint| tracing::provider(endpoint, config.trace_sample_ratio))
            .transpose()
            .map_err(TelemetryError::Traces)?;
        // Traces below the lines: a line finds the ids of its span there.
        Ok(match traces {
            Some(provider) => {
                let base = Registry::default().with(tracing::layer(&provider));
                let (lines, log) = lines(config, true, writer)?;
                (Dispatch::new(base.with(lines)), Self { log, traces: Some(provider) })
            }
            None => {
                let (lines, log) = lines(config, false, writer)?;
                (Dispatch::new(Registry::default().with(lines)), Self { log, traces: None })
            }
        })
    }
}

fn lines<S, W>(
    config: &TelemetryConfig,
    traced: bool,
    writer: W,
) -> Result<(logging::BoxLayer<S>, LogControl), TelemetryError>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup> + Send + Sync,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let json = logging::is_json(config.log_format);
    logging::layer(&config.log_level, json, traced, writer).map_err(TelemetryError::Filter)
}

/// A filter that nobody logs through, and what keeps it alive.
#[cfg(test)]
pub(crate) fn log_control_for_tests(directives: &str) -> (impl std::any::Any + use<>, LogControl) {
    let lines = logging::layer::<Registry, _>(directives, true, false, io::sink);
    lines.expect("valid directives")
}

#[cfg(test)]
mod tests;
