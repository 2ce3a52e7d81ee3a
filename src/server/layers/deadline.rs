//! Ends calls at their deadline: the caller's, and for unary calls the server's own.
//!
//! The `grpc-timeout` header is read as tonic's own server reads it: one that is malformed counts
//! as absent.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tower::Service;

use crate::{
    service::{ServiceError, call::CallDeadline},
    store::StoreError,
    telemetry::rpc::Rpc,
};

/// Sets a [`CallDeadline`] and answers DEADLINE_EXCEEDED when it has passed.
#[derive(Debug, Clone)]
pub struct Deadline<S> {
    inner: S,
    unary_timeout: Duration,
}

impl<S> Deadline<S> {
    /// Wraps a service; unary calls may take `unary_timeout` at most.
    pub const fn new(inner: S, unary_timeout: Duration) -> Self {
        Self { inner, unary_timeout }
    }
}

impl<S, Q, B> Service<Request<Q>> for Deadline<S>
where
    S: Service<Request<Q>, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<DeadlineBody<B>>;
    type Error = Infallible;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let unary = Rpc::of_path(request.uri().path()).is_unary();
        let asked = timeout_of(request.headers());
        let allowed = unary.then_some(self.unary_timeout);
        let timeout = match (asked, allowed) {
            (Some(asked), Some(allowed)) => Some(asked.min(allowed)),
            (asked, allowed) => asked.or(allowed),
        };
        // A deadline too far away to be a time is none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(CallDeadline(deadline));
        }
        DeadlineFuture {
            inner: self.inner.call(request),
            sleep: deadline.map(sleep_until),
            stream_deadline: deadline.filter(|_| !unary),
        }
    }
}

/// The time that a caller gives its call: at most eight digits and a unit, by the gRPC protocol.
fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    const MAX_DIGITS: usize = 8;
    let value = headers.get("grpc-timeout")?.as_bytes();
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > MAX_DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(amount * 3_600)),
        b'M' => Some(Duration::from_secs(amount * 60)),
        b'S' => Some(Duration::from_secs(amount)),
        b'm' => Some(Duration::from_millis(amount)),
        b'u' => Some(Duration::from_micros(amount)),
        b'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

fn exceeded() -> Status {
    ServiceError::from(StoreError::DeadlineExceeded).into()
}

pin_project! {
    /// The reply, or DEADLINE_EXCEEDED if it takes too long to begin.
    #[derive(Debug)]
    pub struct DeadlineFuture<F> {
        #[pin]
        inner: F,
        #[pin]
        sleep: Option<Sleep>,
        // For a stream, which goes on after its reply began.
        stream_deadline: Option<Instant>,
    }
}

impl<F, B> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = Result<Response<DeadlineBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(Ok(response)) = this.inner.poll(context) {
            let sleep = this.stream_deadline.map(|deadline| Box::pin(sleep_until(deadline)));
            return Poll::Ready(Ok(response.map(|body| DeadlineBody { inner: Some(body), sleep })));
        }
        match this.sleep.as_pin_mut().map(|sleep| sleep.poll(context)) {
            Some(Poll::Ready(())) => {
                let response = exceeded().into_http::<()>();
                Poll::Ready(Ok(response.map(|()| DeadlineBody { inner: None, sleep: None })))
            }
            Some(Poll::Pending) | None => Poll::Pending,
        }
    }
}

pin_project! {
    /// The body of a reply, ended with DEADLINE_EXCEEDED if it goes on too long.
    #[derive(Debug)]
    pub struct DeadlineBody<B> {
        #[pin]
        inner: Option<B>,
        sleep: Option<Pin<Box<Sleep>>>,
    }
}

impl<B: Body<Data = Bytes>> Body for DeadlineBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let frame = inner.poll_frame(context);
        if frame.is_pending()
            && let Some(sleep) = this.sleep
            && sleep.as_mut().poll(context).is_ready()
        {
            this.inner.set(None);
            return Poll::Ready(Some(Ok(super::observe::trailers(&exceeded()))));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use std::future;

    use http_body_util::BodyExt as _;
    use tonic::Code;
    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::server::layers::{
        observe::status_of,
        testing::{SilentBody, request},
    };

    const UNARY: &str = "/sync.Syncer/SetRecord";
    const STREAM: &str = "/sync.Syncer/ListenChanges";
    const LIMIT: Duration = Duration::from_secs(10);

    fn with_timeout(path: &str, timeout: &'static str) -> Request<()> {
        let mut request = request(path);
        request.headers_mut().insert("grpc-timeout", http::HeaderValue::from_static(timeout));
        request
    }

    /// How long a call that never answers takes to be answered.
    async fn time_until_answered(request: Request<()>) -> Duration {
        let handler = service_fn(|_| future::pending::<Result<Response<SilentBody>, Infallible>>());
        let start = Instant::now();
        let Ok(response) = Deadline::new(handler, LIMIT).oneshot(request).await;
        assert_eq!(status_of(response.headers()), Some(Code::DeadlineExceeded));
        assert!(response.body().is_end_stream());
        start.elapsed()
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        let cases = [
            ("1H", Some(Duration::from_secs(3_600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("0000250m", Some(Duration::from_millis(250))),
            ("7u", Some(Duration::from_micros(7))),
            ("0n", Some(Duration::ZERO)),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3_600))),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("+1S", None),
            ("-1S", None),
            ("1.5S", None),
            ("100000000m", None),
        ];
        for (text, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", http::HeaderValue::from_static(text));
            assert_eq!(timeout_of(&headers), expected, "{text:?}");
        }
        assert_eq!(timeout_of(&HeaderMap::new()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_unary_call_ends_at_the_nearer_deadline() {
        assert_eq!(time_until_answered(with_timeout(UNARY, "250m")).await.as_millis(), 250);
        assert_eq!(time_until_answered(with_timeout(UNARY, "1H")).await.as_secs(), 10);
        assert_eq!(time_until_answered(request(UNARY)).await.as_secs(), 10);
        assert_eq!(time_until_answered(with_timeout(UNARY, "soon")).await.as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_only_at_its_callers_deadline() {
        let handler =
            service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(SilentBody)) });
        let service = Deadline::new(handler, LIMIT);
        let start = Instant::now();
        let Ok(response) = service.clone().oneshot(with_timeout(STREAM, "1M")).await;
        let collected = response.into_body().collect().await.expect("no broken body");
        assert_eq!(collected.trailers().and_then(status_of), Some(Code::DeadlineExceeded));
        assert_eq!(start.elapsed().as_secs(), 60);

        let Ok(response) = service.oneshot(request(STREAM)).await;
        let day = Duration::from_secs(86_400);
        assert!(tokio::time::timeout(day, response.into_body().collect()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_handler_is_told_the_deadline() {
        async fn told(request: Request<()>) -> Option<Duration> {
            let start = Instant::now();
            let handler = service_fn(move |request: Request<()>| async move {
                let deadline = request.extensions().get::<CallDeadline>().copied();
                let mut response = Response::new(SilentBody);
                response.extensions_mut().insert(deadline);
                Ok::<_, Infallible>(response)
            });
            let Ok(response) = Deadline::new(handler, LIMIT).oneshot(request).await;
            let deadline = response.extensions().get::<Option<CallDeadline>>();
            deadline.expect("an extension").map(|deadline| deadline.0 - start)
        }
        assert_eq!(told(request(UNARY)).await, Some(LIMIT));
        assert_eq!(told(with_timeout(UNARY, "2S")).await, Some(Duration::from_secs(2)));
        assert_eq!(told(with_timeout(STREAM, "1M")).await, Some(Duration::from_secs(60)));
        assert_eq!(told(request(STREAM)).await, None);
    }
}
