//! Logs and traces together, as a call makes them.

use std::{
    convert::Infallible,
    io::Write,
    net::SocketAddr,
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, Instant},
};

use ::tracing::{dispatcher, subscriber::NoSubscriber};
use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use serde_json::Value as Json;
use tokio::{net::TcpListener, sync::mpsc};
use tonic::{Code, Status};
use tower::{ServiceExt as _, service_fn};

use super::*;
use crate::{config::LogFormat, server::layers, telemetry::metrics::Metrics};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_ID: &str = "00f067aa0ba902b7";

/// Where lines go.
#[derive(Debug, Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no poison").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no poison").clone()).expect("text")
    }

    fn json(&self) -> Vec<Json> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no json: {line}"));
        self.text().lines().map(parse).collect()
    }
}

fn config(level: &str, format: LogFormat, endpoint: Option<String>) -> TelemetryConfig {
    TelemetryConfig {
        log_level: level.to_owned(),
        log_format: format,
        otlp_endpoint: endpoint,
        trace_sample_ratio: 1.0,
    }
}

/// With a single subscriber in the process, the tracing library takes it for the process's own and
/// asks whatever the current thread has instead; with this one beside it, it asks all of them.
static ANOTHER: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));

fn build(config: &TelemetryConfig) -> (Dispatch, Telemetry, Lines) {
    LazyLock::force(&ANOTHER);
    let lines = Lines::default();
    let writer = lines.clone();
    let (dispatch, telemetry) =
        Telemetry::build(config, move || writer.clone()).expect("valid settings");
    (dispatch, telemetry, lines)
}

/// Makes one call through the layers; its handler logs one line.
async fn call(traceparent: bool) {
    let handler = service_fn(|_: Request<()>| async {
        ::tracing::warn!(rows = 3, "in the handler");
        let status = Status::unavailable("");
        Ok::<_, Infallible>(status.into_http::<tonic::body::Body>())
    });
    let metrics = Arc::new(Metrics::new());
    let stack = layers::stack(handler, &metrics, Duration::from_secs(10));
    let mut request = Request::post("/sync.Syncer/SetRecord").body(()).expect("a request");
    request.headers_mut().insert("x-request-id", HeaderValue::from_static("req-7"));
    if traceparent {
        let value = format!("00-{TRACE_ID}-{PARENT_ID}-01");
        request.headers_mut().insert("traceparent", value.parse().expect("a header"));
    }
    let Ok(response): Result<Response<_>, Infallible> = stack.oneshot(request).await;
    response.into_body().collect().await.expect("a whole body");
}

/// The whole of `future` with `dispatch` in place of the process's own.
async fn within<T>(dispatch: &Dispatch, future: impl Future<Output = T>) -> T {
    use ::tracing::instrument::WithSubscriber as _;
    future.with_subscriber(dispatch.clone()).await
}

#[tokio::test]
async fn lines_of_a_call_carry_its_ids_flat() {
    let (dispatch, _telemetry, lines) = build(&config("debug", LogFormat::Json, None));
    within(&dispatch, call(true)).await;
    let lines = lines.json();
    let line = lines.iter().find(|line| line["message"] == "in the handler").expect("a line");
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["rows"], 3);
    assert_eq!(line["rpc"], "sync.Syncer/SetRecord");
    assert_eq!(line["request_id"], "req-7");
    assert_eq!(line["trace_id"], TRACE_ID);
    assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')));
    assert!(line.as_object().expect("flat").keys().all(|key| !key.starts_with("otel")));
}

#[tokio::test]
async fn a_call_is_one_line_at_debug_and_none_at_info() {
    let (dispatch, telemetry, lines) = build(&config("info", LogFormat::Json, None));
    within(&dispatch, call(false)).await;
    let messages = |lines: &Lines| -> Vec<String> {
        lines.json().iter().map(|line| line["message"].to_string()).collect()
    };
    assert_eq!(messages(&lines), [r#""in the handler""#]);

    telemetry.log().set("debug").expect("valid directives");
    within(&dispatch, call(false)).await;
    assert_eq!(messages(&lines)[1..], [r#""in the handler""#, r#""call ended""#]);
    let lines = lines.json();
    let ended = lines.last().expect("a line");
    assert_eq!(ended["grpc_code"], "Unavailable");
    assert_eq!(ended["request_id"], "req-7");
    assert!(ended["elapsed_ms"].is_f64());
}

#[tokio::test]
async fn a_call_has_no_span_unless_somebody_looks() {
    async fn has_span(level: &str) -> bool {
        let handler = service_fn(|_: Request<()>| async {
            let mut response = Response::new(tonic::body::Body::empty());
            response.extensions_mut().insert(::tracing::Span::current());
            Ok::<_, Infallible>(response)
        });
        let (dispatch, _telemetry, _) = build(&config(level, LogFormat::Json, None));
        let stack = layers::stack(handler, &Arc::default(), Duration::from_secs(10));
        let request = Request::post("/sync.Syncer/GetLock").body(()).expect("a request");
        let Ok(response) = within(&dispatch, stack.oneshot(request)).await;
        let span = response.extensions().get::<::tracing::Span>().expect("an extension");
        !span.is_none()
    }
    assert!(!has_span("info").await);
    assert!(has_span("debug").await);
}

#[tokio::test]
async fn text_is_for_people() {
    let (dispatch, _telemetry, lines) = build(&config("debug", LogFormat::Text, None));
    within(&dispatch, call(false)).await;
    let text = lines.text();
    assert!(text.contains("in the handler") && text.contains("request_id=\"req-7\""), "{text}");
    assert!(!text.contains("otel."), "{text}");
}

#[test]
fn filters_are_checked() {
    for good in ["info", "warn,data_sync::store=trace", "data_sync[call]=debug", "off"] {
        assert_eq!(validate_filter(good), Ok(()), "{good}");
    }
    for bad in ["", "  ", "inof", "info,loud", "data_sync", "data_sync=loud", "a=b=c"] {
        assert!(validate_filter(bad).is_err(), "{bad:?} passes");
    }
}

#[test]
fn a_value_in_a_field_cannot_make_a_second_line() {
    let (dispatch, _telemetry, lines) = build(&config("info", LogFormat::Json, None));
    let nasty = "one\ntwo\"}{";
    dispatcher::with_default(&dispatch, || ::tracing::info!(nasty, "a \"quoted\" text"));
    let lines = lines.json();
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["nasty"], nasty);
    assert_eq!(lines[0]["message"], "a \"quoted\" text");
}

/// Takes spans, as a collector does.
struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).map_err(|_| Status::unavailable("gone"))?;
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn start_collector() -> (SocketAddr, mpsc::UnboundedReceiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (sender, receiver) = mpsc::unbounded_channel();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Collector(sender)))
        .serve_with_incoming(incoming);
    crate::tasks::Tasks::new().spawn("collector", async move {
        let _ = server.await;
    });
    (address, receiver)
}

fn text_of<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_becomes_a_span_in_its_callers_trace() {
    let (address, mut received) = start_collector().await;
    let endpoint = Some(format!("http://{address}"));
    let (dispatch, telemetry, lines) = build(&config("info", LogFormat::Json, endpoint));
    within(&dispatch, call(true)).await;
    telemetry.shutdown().await;

    let request = tokio::time::timeout(Duration::from_secs(5), received.recv()).await;
    let request = request.expect("in time").expect("spans");
    let resource = request.resource_spans[0].resource.as_ref().expect("a resource");
    assert_eq!(text_of(&resource.attributes, "service.name"), Some("data-sync"));
    assert_eq!(text_of(&resource.attributes, "service.version"), Some(env!("CARGO_PKG_VERSION")));

    let spans: Vec<&Span> =
        request.resource_spans[0].scope_spans.iter().flat_map(|scope| &scope.spans).collect();
    let [span] = spans[..] else { panic!("one span, not {}", spans.len()) };
    assert_eq!(span.name, "sync.Syncer/SetRecord");
    assert_eq!(data_encoding::HEXLOWER.encode(&span.trace_id), TRACE_ID);
    assert_eq!(data_encoding::HEXLOWER.encode(&span.parent_span_id), PARENT_ID);
    assert_eq!(text_of(&span.attributes, "rpc.system.name"), Some("grpc"));
    assert_eq!(text_of(&span.attributes, "rpc.method"), Some("sync.Syncer/SetRecord"));
    assert_eq!(text_of(&span.attributes, "rpc.response.status_code"), Some("UNAVAILABLE"));
    let names: Vec<&str> = span.events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["in the handler"]);

    // The line of the handler names the same span, although the filter shows no spans of DEBUG.
    let lines = lines.json();
    let line = lines.iter().find(|line| line["message"] == "in the handler").expect("a line");
    assert_eq!(line["trace_id"], TRACE_ID);
    assert_eq!(line["span_id"], data_encoding::HEXLOWER.encode(&span.span_id));
    assert_eq!(line["request_id"], "req-7");
}

/// Calls go on at full speed, and shutting down stays within its bound, whatever becomes of the
/// collector at `endpoint`.
async fn a_lost_collector_is_harmless(endpoint: String) {
    let (dispatch, telemetry, _) = build(&config("off", LogFormat::Json, Some(endpoint)));
    // More spans than wait at most.
    let calls = crate::limits::MAX_QUEUED_SPANS + 500;
    let start = Instant::now();
    within(&dispatch, async {
        for _ in 0..calls {
            call_quietly().await;
        }
    })
    .await;
    let mean = start.elapsed() / u32::try_from(calls).expect("a small number");
    assert!(mean < Duration::from_millis(2), "a call takes {mean:?}");
    let start = Instant::now();
    telemetry.shutdown().await;
    let limit = crate::limits::TRACE_FLUSH_TIMEOUT + Duration::from_secs(2);
    assert!(start.elapsed() < limit, "shutting down takes {:?}", start.elapsed());
}

async fn call_quietly() {
    let handler = service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Status::ok("").into_http::<tonic::body::Body>())
    });
    // One set of metrics for all calls: making them is no part of a call.
    static METRICS: LazyLock<Arc<Metrics>> = LazyLock::new(Arc::default);
    let stack = layers::stack(handler, &METRICS, Duration::from_secs(10));
    let request = Request::post("/sync.Syncer/GetLock").body(()).expect("a request");
    let Ok(response) = stack.oneshot(request).await;
    assert_eq!(Status::from_header_map(response.headers()).map(|s| s.code()), Some(Code::Ok));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_refuses_is_harmless() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    a_lost_collector_is_harmless(format!("http://{address}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_never_answers_is_harmless() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = silent.local_addr().expect("an address");
    a_lost_collector_is_harmless(format!("http://{address}")).await;
    drop(silent);
}

#[tokio::test]
async fn an_endpoint_that_is_no_url_is_a_problem() {
    for endpoint in ["", "not a url"] {
        let result =
            Telemetry::build(&config("info", LogFormat::Json, Some(endpoint.to_owned())), io::sink);
        assert!(matches!(result, Err(TelemetryError::Traces(_))), "{endpoint:?} passes");
    }
}
