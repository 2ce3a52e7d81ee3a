//! Answers INTERNAL where a handler panics, so that neither the connection nor the other calls on
//! it go down with it.

use std::{
    convert::Infallible,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::Status;
use tower::Service;

use super::request_id::RequestId;
use crate::telemetry::{metrics::Metrics, rpc::Rpc};

/// Catches panics of a service and of the bodies of its replies.
#[derive(Debug, Clone)]
pub struct CatchPanic<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> CatchPanic<S> {
    /// Wraps a service.
    pub const fn new(inner: S, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }
}

/// What is needed to tell of a panic.
#[derive(Debug, Clone)]
struct Report {
    metrics: Arc<Metrics>,
    rpc: &'static Rpc,
    id: Option<RequestId>,
}

impl Report {
    /// Counts and logs the panic; its text was logged where it happened. The caller learns no
    /// more than where to look.
    fn caught(&self) -> Status {
        self.metrics.panics.inc();
        let id = self.id.as_ref().map_or("", RequestId::as_str);
        tracing::error!(rpc = self.rpc.full_name(), request_id = id, "call panicked");
        Status::internal(format!("internal error, request id {id}"))
    }
}

impl<S, Q, B> Service<Request<Q>> for CatchPanic<S>
where
    S: Service<Request<Q>, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<PanicBody<B>>;
    type Error = Infallible;
    type Future = CatchPanicFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let report = Report {
            metrics: Arc::clone(&self.metrics),
            rpc: Rpc::of_path(request.uri().path()),
            id: request.extensions().get().cloned(),
        };
        let inner = catch_unwind(AssertUnwindSafe(|| self.inner.call(request))).ok();
        CatchPanicFuture { inner, report: Some(report) }
    }
}

pin_project! {
    /// The reply, or INTERNAL. Must not be polled after it is ready.
    #[derive(Debug)]
    pub struct CatchPanicFuture<F> {
        // Nothing where the handler panicked before its first await.
        #[pin]
        inner: Option<F>,
        report: Option<Report>,
    }
}

impl<F, B> Future for CatchPanicFuture<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = Result<Response<PanicBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let polled = match this.inner.as_mut().as_pin_mut() {
            Some(inner) => catch_unwind(AssertUnwindSafe(|| inner.poll(context))).ok(),
            None => None,
        };
        Poll::Ready(Ok(match polled {
            Some(polled) => {
                let Ok(response) = ready!(polled);
                let report = this.report.take();
                response.map(|body| PanicBody { inner: Some(body), report })
            }
            None => {
                this.inner.set(None);
                let report = this.report.take();
                let status = report.map_or_else(|| Status::internal(""), |r| r.caught());
                status.into_http::<()>().map(|()| PanicBody { inner: None, report: None })
            }
        }))
    }
}

pin_project! {
    /// The body of a reply, ended with INTERNAL where it panics.
    #[derive(Debug)]
    pub struct PanicBody<B> {
        #[pin]
        inner: Option<B>,
        report: Option<Report>,
    }
}

impl<B: Body<Data = Bytes>> Body for PanicBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        if let Ok(frame) = catch_unwind(AssertUnwindSafe(|| inner.poll_frame(context))) {
            return frame;
        }
        this.inner.set(None);
        let status = this.report.take().map_or_else(|| Status::internal(""), |r| r.caught());
        Poll::Ready(Some(Ok(super::observe::trailers(&status))))
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
    use http_body_util::BodyExt as _;
    use tonic::Code;
    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::server::layers::{
        SetRequestId,
        observe::status_of,
        testing::{PanickingBody, request},
    };

    fn count(metrics: &Metrics) -> u64 {
        metrics.panics.get()
    }

    #[tokio::test]
    async fn a_panic_in_the_handler_is_answered_with_the_request_id() {
        let metrics = Arc::new(Metrics::new());
        let handler = service_fn(|_: Request<()>| async {
            tokio::task::yield_now().await;
            assert!(metrics_are_fine(), "on purpose");
            Ok::<_, Infallible>(Response::new(tonic::body::Body::empty()))
        });
        let service = SetRequestId::new(CatchPanic::new(handler, Arc::clone(&metrics)));
        let Ok(response) = service.oneshot(request("/sync.Syncer/GetLock")).await;
        let status = Status::from_header_map(response.headers()).expect("a status");
        let id = response.headers()["x-request-id"].to_str().expect("text");
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(status.message(), format!("internal error, request id {id}"));
        assert_eq!(count(&metrics), 1);
    }

    fn metrics_are_fine() -> bool {
        false
    }

    #[tokio::test]
    async fn a_panic_before_the_first_await_is_answered() {
        let metrics = Arc::new(Metrics::new());
        let handler = service_fn(|_: Request<()>| {
            assert!(metrics_are_fine(), "on purpose");
            async { Ok::<_, Infallible>(Response::new(tonic::body::Body::empty())) }
        });
        let service = CatchPanic::new(handler, Arc::clone(&metrics));
        let Ok(response) = service.oneshot(request("/sync.Syncer/GetLock")).await;
        assert_eq!(status_of(response.headers()), Some(Code::Internal));
        assert_eq!(count(&metrics), 1);
    }

    #[tokio::test]
    async fn a_panic_within_a_stream_ends_it_with_trailers() {
        let metrics = Arc::new(Metrics::new());
        let handler = service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(PanickingBody))
        });
        let service = CatchPanic::new(handler, Arc::clone(&metrics));
        let Ok(response) = service.oneshot(request("/sync.Syncer/ListenChanges")).await;
        let collected = response.into_body().collect().await.expect("no broken body");
        assert_eq!(collected.trailers().and_then(status_of), Some(Code::Internal));
        assert_eq!(count(&metrics), 1);
    }
}
