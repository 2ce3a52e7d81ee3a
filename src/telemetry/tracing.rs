//! Traces: spans to an OTLP collector, in batches, on a thread of their own.
//!
//! A collector that is slow or away costs spans, never a request: finished spans go into a bounded
//! queue and those that do not fit are dropped.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use http::HeaderMap;
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    resource::{
        EnvResourceDetector, ResourceDetector as _, SdkProvidedResourceDetector,
        TelemetryResourceDetector,
    },
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
    },
};
use tonic::transport::{ClientTlsConfig, Endpoint};
use tracing::{Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, filter_fn},
    registry::LookupSpan,
};

use super::build_info::BUILD_INFO;
use crate::limits::{
    MAX_QUEUED_SPANS, TRACE_CONNECT_TIMEOUT, TRACE_EXPORT_INTERVAL, TRACE_EXPORT_TIMEOUT,
};

/// Most spans sent to the collector in one message.
const MAX_EXPORT_BATCH_SPANS: usize = 512;
/// Name of the service where the environment gives no other.
const SERVICE_NAME: &str = "data-sync";

/// Makes the source of spans for an OTLP/gRPC endpoint. Connects later, in the background.
///
/// `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_EXPORTER_OTLP_HEADERS` are honoured
/// by the SDK.
///
/// # Errors
/// What is wrong with the endpoint; also outside of an async runtime.
pub(super) fn provider(endpoint: &str, sample_ratio: f64) -> Result<SdkTracerProvider, String> {
    tokio::runtime::Handle::try_current().map_err(|error| error.to_string())?;
    let mut channel = Endpoint::from_shared(endpoint.to_owned())
        .map_err(|error| error.to_string())?
        .connect_timeout(TRACE_CONNECT_TIMEOUT)
        .timeout(TRACE_EXPORT_TIMEOUT);
    if channel.uri().scheme() == Some(&http::uri::Scheme::HTTPS) {
        channel = channel
            .tls_config(ClientTlsConfig::new().with_enabled_roots())
            .map_err(|error| error.to_string())?;
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_channel(channel.connect_lazy())
        .with_timeout(TRACE_EXPORT_TIMEOUT)
        .build()
        .map_err(|error| error.to_string())?;
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(MAX_QUEUED_SPANS)
        .with_max_export_batch_size(MAX_EXPORT_BATCH_SPANS)
        .with_scheduled_delay(TRACE_EXPORT_INTERVAL)
        .build();
    let processor =
        BatchSpanProcessor::builder(Watched::new(exporter)).with_batch_config(batches).build();
    let root = Sampler::TraceIdRatioBased(sample_ratio);
    Ok(SdkTracerProvider::builder()
        .with_span_processor(processor)
        .with_sampler(Sampler::ParentBased(Box::new(root)))
        .with_resource(resource())
        .build())
}

/// Names this process to the collector; the environment's word goes first.
fn resource() -> Resource {
    let defaults = [
        KeyValue::new("service.name", SERVICE_NAME),
        KeyValue::new("service.version", BUILD_INFO.version),
    ];
    let resource = Resource::builder_empty()
        .with_attributes(defaults)
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()))
        .build();
    // The SDK names every process; only a name that somebody chose replaces ours.
    let name = SdkProvidedResourceDetector
        .detect()
        .get(&opentelemetry::Key::from_static_str("service.name"))
        .filter(|name| !name.as_str().starts_with("unknown_service"));
    match name {
        Some(name) => Resource::builder_empty()
            .with_attributes(resource.iter().map(|(k, v)| KeyValue::new(k.clone(), v.clone())))
            .with_attribute(KeyValue::new("service.name", name))
            .build(),
        None => resource,
    }
}

/// The layer that turns spans of this program into trace spans, and its lines from INFO up into
/// events on them. Spans of libraries stay out: the exporter's own would feed themselves.
pub(super) fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + Send + Sync + use<S>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup> + Send + Sync,
{
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(SERVICE_NAME))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_target(false)
        .with_filter(
            filter_fn(|metadata| {
                let finest = if metadata.is_span() { Level::DEBUG } else { Level::INFO };
                metadata.target().starts_with("data_sync") && *metadata.level() <= finest
            })
            .with_max_level_hint(LevelFilter::DEBUG),
        )
}

/// Joins `span` to the caller's trace, as told by the W3C `traceparent` header. Where no traces
/// are kept, only the caller's trace id is noted in the span, for the logs.
pub fn continue_trace(span: &Span, headers: &HeaderMap) {
    if !headers.contains_key("traceparent") {
        return;
    }
    let context =
        TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
    let parent = context.span().span_context().clone();
    if parent.is_valid() && span.set_parent(context).is_err() {
        span.record("trace_id", parent.trace_id().to_string());
    }
}

/// Reads propagation headers.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// Says once when the collector goes away and once when it is back.
struct Watched<E> {
    exporter: E,
    failing: AtomicBool,
}

impl<E> Watched<E> {
    const fn new(exporter: E) -> Self {
        Self { exporter, failing: AtomicBool::new(false) }
    }
}

impl<E> fmt::Debug for Watched<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        let failed = result.is_err();
        if self.failing.swap(failed, Ordering::Relaxed) != failed {
            match &result {
                Ok(()) => tracing::info!("trace collector answers again"),
                Err(error) => tracing::warn!(%error, "trace collector does not answer"),
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
