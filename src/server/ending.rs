//! Ends streams of services that would never end by themselves (health watches, reflection) when
//! their replica stops, so that they do not hold up a drain.

use std::{
    convert::Infallible,
    fmt,
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Status, body::Body, server::NamedService};
use tower::Service;

/// A service whose response streams end UNAVAILABLE once `end` fires.
#[derive(Debug, Clone)]
pub(super) struct Ending<S> {
    inner: S,
    end: CancellationToken,
}

impl<S> Ending<S> {
    pub(super) const fn new(inner: S, end: CancellationToken) -> Self {
        Self { inner, end }
    }
}

impl<S: NamedService> NamedService for Ending<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Ending<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let end = self.end.clone();
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            Ok(response.map(|body| {
                Body::new(EndingBody { body, end: Some(Box::pin(end.cancelled_owned())) })
            }))
        })
    }
}

struct EndingBody {
    body: Body,
    /// Gone once the end was told.
    end: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl fmt::Debug for EndingBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndingBody").finish_non_exhaustive()
    }
}

impl http_body::Body for EndingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Some(end) = &mut this.end else { return Poll::Ready(None) };
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if frame.is_ready() || end.as_mut().poll(cx).is_pending() {
            return frame;
        }
        this.end = None;
        let mut trailers = HeaderMap::new();
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from(Code::Unavailable as i32));
        let message = HeaderValue::from_static("the server is shutting down");
        trailers.insert(Status::GRPC_MESSAGE, message);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.end.is_none() || self.body.is_end_stream()
    }
}
