//! Counts, times, traces and logs every call, from its request to the last byte of its reply.
//!
//! A call ends when its status is known: from the reply's headers, from the trailers after its
//! body, or because the caller went away or stopped reading before either. A call has a span only while somebody
//! collects traces or reads logs at DEBUG.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::{Code, Status};
use tower::Service;
use tracing::{Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::request_id::RequestId;
use crate::{
    service::delivery,
    telemetry::{
        logging::CALL_TARGET,
        metrics::Metrics,
        rpc::{Rpc, code_name},
        tracing::continue_trace,
    },
};

/// Header and trailer that hold the status.
const STATUS: &str = "grpc-status";
/// Bytes in front of each message: a flag and the length.
const MESSAGE_HEADER_BYTES: usize = 5;

/// The status in a map of headers or trailers, if it is there.
pub(super) fn status_of(headers: &HeaderMap) -> Option<Code> {
    headers.get(STATUS).map(|value| Code::from_bytes(value.as_bytes()))
}

/// The last frame of a body that ends with `status`.
pub(super) fn trailers(status: &Status) -> Frame<Bytes> {
    let mut trailers = HeaderMap::with_capacity(2);
    if let Err(status) = status.add_header(&mut trailers) {
        tracing::warn!(%status, "status cannot be written as trailers");
    }
    Frame::trailers(trailers)
}

/// Number of messages in a piece of a body; tonic never cuts a message.
fn messages_in(mut data: &[u8]) -> u64 {
    let mut messages = 0;
    while let Some((header, rest)) = data.split_first_chunk::<MESSAGE_HEADER_BYTES>() {
        let [_, length @ ..] = *header;
        messages += 1;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        data = rest.get(length..).unwrap_or_default();
    }
    messages
}

/// One call that has not ended.
#[derive(Debug)]
struct Call {
    rpc: &'static Rpc,
    metrics: Arc<Metrics>,
    span: Span,
    start: Instant,
    ended: bool,
}

impl Call {
    fn start<B>(metrics: Arc<Metrics>, request: &Request<B>) -> Self {
        let rpc = Rpc::of_path(request.uri().path());
        let counters = metrics.call(rpc);
        counters.started.inc();
        // Every RPC but reflection takes exactly one message.
        counters.messages_received.inc();
        Self { rpc, span: span(rpc, request), metrics, start: Instant::now(), ended: false }
    }

    fn end(&mut self, code: Code) {
        self.ended = true;
        let elapsed = self.start.elapsed();
        let counters = self.metrics.call(self.rpc);
        counters.handled(code).inc();
        if let Some(seconds) = &counters.seconds {
            seconds.observe(elapsed.as_secs_f64());
        }
        if self.span.is_disabled() {
            return;
        }
        self.span.set_attribute("rpc.response.status_code", code_name_on_the_wire(code));
        if is_fault(code) {
            self.span.set_status(opentelemetry::trace::Status::error(code_name(code)));
        }
        let elapsed_ms = elapsed.as_secs_f64() * 1_000.0;
        tracing::debug!(
            target: CALL_TARGET,
            parent: &self.span,
            grpc_code = code_name(code),
            elapsed_ms,
            "call ended"
        );
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            let stalled = delivery::has_stalled();
            self.end(if stalled { Code::ResourceExhausted } else { Code::Cancelled });
        }
    }
}

/// The span of a call. The service notes the hash of the API key in its field `api_key`.
fn span<B>(rpc: &'static Rpc, request: &Request<B>) -> Span {
    let span = tracing::debug_span!(
        target: CALL_TARGET,
        "call",
        otel.name = rpc.full_name(),
        otel.kind = "server",
        rpc = rpc.full_name(),
        request_id = request.extensions().get::<RequestId>().map(RequestId::as_str),
        api_key = Empty,
        trace_id = Empty,
    );
    if !span.is_disabled() {
        continue_trace(&span, request.headers());
        span.set_attribute("rpc.system.name", "grpc");
        span.set_attribute("rpc.method", rpc.full_name());
    }
    span
}

/// Codes as traces spell them, in the words of the protocol.
const fn code_name_on_the_wire(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Whether a code speaks of a fault of the server rather than of the caller.
const fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// Observes every call of a service.
#[derive(Debug, Clone)]
pub struct Observe<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> Observe<S> {
    /// Wraps a service.
    pub const fn new(inner: S, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }
}

impl<S, Q, B> Service<Request<Q>> for Observe<S>
where
    S: Service<Request<Q>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes>,
{
    type Response = Response<ObserveBody<B>>;
    type Error = Infallible;
    type Future = ObserveFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let call = Call::start(Arc::clone(&self.metrics), &request);
        let inner = call.span.in_scope(|| self.inner.call(request));
        ObserveFuture { inner, call: Some(call) }
    }
}

pin_project! {
    /// A call whose reply has not begun.
    #[derive(Debug)]
    pub struct ObserveFuture<F> {
        #[pin]
        inner: F,
        call: Option<Call>,
    }
}

impl<F, B> Future for ObserveFuture<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: Body<Data = Bytes>,
{
    type Output = Result<Response<ObserveBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let entered = this.call.as_ref().map(|call| call.span.enter());
        let Ok(response) = ready!(this.inner.poll(context));
        drop(entered);
        let mut call = this.call.take();
        let end = status_of(response.headers())
            .or_else(|| response.body().is_end_stream().then_some(Code::Unknown));
        if let (Some(code), Some(call)) = (end, call.as_mut()) {
            call.end(code);
        }
        let call = call.filter(|call| !call.ended);
        Poll::Ready(Ok(response.map(|inner| ObserveBody { inner, call })))
    }
}

pin_project! {
    /// The body of a reply; dropping it before its end is the caller's going away.
    #[derive(Debug)]
    pub struct ObserveBody<B> {
        #[pin]
        inner: B,
        // Nothing once the call has ended.
        call: Option<Call>,
    }
}

impl<B: Body<Data = Bytes>> Body for ObserveBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let entered = this.call.as_ref().map(|call| call.span.enter());
        let frame = ready!(this.inner.poll_frame(context));
        drop(entered);
        if let Some(call) = this.call {
            let end = match &frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        let sent = &call.metrics.call(call.rpc).messages_sent;
                        sent.inc_by(messages_in(data));
                    }
                    frame.trailers_ref().map(|map| status_of(map).unwrap_or(Code::Unknown))
                }
                Some(Err(_)) | None => Some(Code::Unknown),
            };
            if let Some(code) = end {
                call.end(code);
                *this.call = None;
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests;
