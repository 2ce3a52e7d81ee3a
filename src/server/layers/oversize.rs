//! Answers a message above the size limit RESOURCE_EXHAUSTED, as other gRPC servers do.
//!
//! The codec of tonic answers it OUT_OF_RANGE, in the reply's headers as nothing was sent before.
//! This server means nothing of its own by that code, so every such reply is translated.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Request, Response};
use pin_project_lite::pin_project;
use tonic::{Code, Status};
use tower::Service;

use super::observe::status_of;
use crate::limits::MAX_REQUEST_MESSAGE_BYTES;

/// Translates the code of messages that are too large.
#[derive(Debug, Clone)]
pub struct Oversize<S> {
    inner: S,
}

impl<S> Oversize<S> {
    /// Wraps a service.
    pub const fn new(inner: S) -> Self {
        Self { inner }
    }
}

fn translate(headers: &mut HeaderMap) {
    if status_of(headers) == Some(Code::OutOfRange) {
        let status = Status::resource_exhausted(format!(
            "the message is larger than {MAX_REQUEST_MESSAGE_BYTES} bytes"
        ));
        if let Err(status) = status.add_header(headers) {
            tracing::warn!(%status, "status cannot be written as headers");
        }
    }
}

impl<S, Q, B> Service<Request<Q>> for Oversize<S>
where
    S: Service<Request<Q>, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = OversizeFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        OversizeFuture { inner: self.inner.call(request) }
    }
}

pin_project! {
    /// The reply, translated where its code is tonic's for an oversize message.
    #[derive(Debug)]
    pub struct OversizeFuture<F> {
        #[pin]
        inner: F,
    }
}

impl<F, B> Future for OversizeFuture<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(mut response) = ready!(self.project().inner.poll(context));
        translate(response.headers_mut());
        Poll::Ready(Ok(response))
    }
}
