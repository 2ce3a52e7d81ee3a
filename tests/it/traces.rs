//! Traces end to end: a real server exports to a collector, and a call is one trace from its
//! caller through the RPC down to the store.

use std::net::SocketAddr;

use data_sync::proto::{ListChangesRequest, syncer_client::SyncerClient};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind},
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tonic::{Request, Status, metadata::MetadataValue, transport::server::TcpIncoming};

use crate::support::{
    client::{Wallet, channel, fresh_key, now},
    engine::{Engine, Fixture, on_both_engines},
    server::Server,
    wait::within,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

on_both_engines!(
    a_call_is_one_trace_from_its_caller_down_to_the_store,
    the_caller_decides_what_is_kept_and_the_ratio_decides_the_rest,
);

/// Takes what a server exports.
#[derive(Debug)]
struct Collector {
    address: SocketAddr,
    received: mpsc::UnboundedReceiver<ExportTraceServiceRequest>,
    server: JoinHandle<()>,
}

struct Inbox(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Inbox {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (sender, received) = mpsc::unbounded_channel();
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Inbox(sender)))
            .serve_with_incoming(TcpIncoming::from(listener));
        let server = tokio::spawn(async move { server.await.expect("it serves") });
        Self { address, received, server }
    }

    /// A server that exports here.
    fn traced(&self, fixture: &Fixture, ratio: &str) -> Server {
        let endpoint = format!("http://{}", self.address);
        let options = fixture.options().env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
        options.env("TRACE_SAMPLE_RATIO", ratio).env("OTEL_SERVICE_NAME", "sync-of-a-test").start()
    }

    /// Stops the server, which exports what it still holds; everything that has arrived.
    async fn all_spans(&mut self, mut server: Server) -> Vec<Span> {
        server.signal("TERM");
        let limit = super::support::wait::PATIENCE;
        let exit = tokio::task::spawn_blocking(move || server.wait_for_exit(limit));
        assert_eq!(within("the end of the server", exit).await.expect("ends").code(), Some(0));
        let mut spans = Vec::new();
        while let Ok(request) = self.received.try_recv() {
            for resource in request.resource_spans {
                let attributes = &resource.resource.as_ref().expect("a resource").attributes;
                let name = attributes.iter().find(|a| a.key == "service.name").expect("a name");
                let name = name.value.as_ref().and_then(|value| value.value.clone());
                assert_eq!(name, Some(Value::StringValue("sync-of-a-test".to_owned())));
                spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        spans
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn hex(id: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(id)
}

fn text(span: &Span, key: &str) -> String {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key);
    let value = attribute.and_then(|a| a.value.as_ref()).and_then(|value| value.value.as_ref());
    match value {
        Some(Value::StringValue(text)) => text.clone(),
        other => panic!("{key} is {other:?} in {}", span.name),
    }
}

/// A call with the W3C header of a caller whose decision is `sampled`.
fn traced<M>(message: M, sampled: bool) -> Request<M> {
    let mut request = Request::new(message);
    let flags = if sampled { "01" } else { "00" };
    let context = format!("00-{TRACE}-{CALLER}-{flags}");
    let context = MetadataValue::try_from(context).expect("a header");
    request.metadata_mut().insert("traceparent", context);
    request
}

/// The only span that `is` holds for.
fn one<'a>(spans: &'a [Span], what: &str, is: impl Fn(&Span) -> bool) -> &'a Span {
    let found: Vec<&Span> = spans.iter().filter(|span| is(span)).collect();
    let [span] = found[..] else { panic!("{} spans: {what}, of {spans:#?}", found.len()) };
    span
}

/// The span of an RPC, which hangs below the caller's, and the span of the store below it.
fn check_call(spans: &[Span], rpc: &str, op: &str) {
    let call = one(spans, rpc, |span| span.name == rpc);
    assert_eq!((hex(&call.trace_id), hex(&call.parent_span_id)), (TRACE.into(), CALLER.into()));
    assert_eq!(call.kind(), SpanKind::Server);
    assert_eq!(text(call, "rpc.method"), rpc);
    assert_eq!(text(call, "rpc.response.status_code"), "OK");
    let store = one(spans, op, |span| {
        span.name == "store" && span.parent_span_id == call.span_id && text(span, "op") == op
    });
    assert_eq!(hex(&store.trace_id), TRACE);
    let within_call = store.start_time_unix_nano >= call.start_time_unix_nano
        && store.end_time_unix_nano <= call.end_time_unix_nano;
    assert!(within_call, "{store:?} in {call:?}");
}

async fn a_call_is_one_trace_from_its_caller_down_to_the_store(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let mut collector = Collector::start().await;
    // The caller has decided: the ratio has no say.
    let server = collector.traced(&fixture, "0");
    let mut rpc = SyncerClient::new(channel(server.grpc).await);
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let write = traced(wallet.set_request("r", 0, b"x"), true);
    let written = within("SetRecord", rpc.set_record(write)).await.expect("answers");
    assert_eq!(written.into_inner().new_revision, 1);
    let list =
        wallet.signed(ListChangesRequest { request_time: now(), ..ListChangesRequest::default() });
    within("ListChanges", rpc.list_changes(traced(list, true))).await.expect("answers");

    let spans = collector.all_spans(server).await;
    check_call(&spans, "sync.Syncer/SetRecord", "set_record");
    check_call(&spans, "sync.Syncer/ListChanges", "list_changes");
    assert_eq!(spans.len(), 4, "{spans:#?}");
}

async fn the_caller_decides_what_is_kept_and_the_ratio_decides_the_rest(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let mut collector = Collector::start().await;
    let calls = async |server: &Server| {
        let wallet = Wallet::connect(server.grpc, fresh_key()).await;
        let mut rpc = wallet.raw();
        let unwanted = traced(wallet.set_request("unwanted", 0, b"x"), false);
        within("SetRecord", rpc.set_record(unwanted)).await.expect("answers");
        wallet.locked("undecided").await.expect("answers");
    };
    let none = collector.traced(&fixture, "0");
    calls(&none).await;
    assert_eq!(collector.all_spans(none).await, []);

    let all = collector.traced(&fixture, "1");
    calls(&all).await;
    let spans = collector.all_spans(all).await;
    assert!(spans.iter().all(|span| hex(&span.trace_id) != TRACE), "{spans:#?}");
    let call = one(&spans, "GetLock", |span| span.name == "sync.Syncer/GetLock");
    assert!(call.parent_span_id.is_empty(), "it begins a trace");
    let store = one(&spans, "is_locked", |span| span.parent_span_id == call.span_id);
    assert_eq!((text(store, "op").as_str(), &store.trace_id), ("is_locked", &call.trace_id));
}
