//! Gives every request an id that its caller, the logs and the traces share.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderName, HeaderValue, Request, Response};
use pin_project_lite::pin_project;
use tower::Service;

use crate::limits::MAX_REQUEST_ID_BYTES;

/// Carries the id, in requests and in replies.
pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request; an extension of it.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// The caller's id, if it is short and of visible characters, so that it can stand in a log.
    fn from_caller(value: &HeaderValue) -> Option<Self> {
        let bytes = value.as_bytes();
        let sane = (1..=MAX_REQUEST_ID_BYTES).contains(&bytes.len())
            && bytes.iter().all(u8::is_ascii_graphic);
        sane.then(|| Self(value.clone()))
    }

    /// An id of 128 random bits.
    fn generate() -> Self {
        let digits = data_encoding::HEXLOWER.encode(&rand::random::<u128>().to_be_bytes());
        Self(HeaderValue::from_maybe_shared(bytes::Bytes::from(digits)).unwrap_or_else(|_| {
            // Hex digits always make a header value.
            HeaderValue::from_static("unknown")
        }))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Puts a [`RequestId`] into requests and repeats it in the headers of their replies.
#[derive(Debug, Clone)]
pub struct SetRequestId<S> {
    inner: S,
}

impl<S> SetRequestId<S> {
    /// Wraps a service.
    pub const fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S, Q, B> Service<Request<Q>> for SetRequestId<S>
where
    S: Service<Request<Q>, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = RequestIdFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let id = request
            .headers()
            .get(REQUEST_ID_HEADER)
            .and_then(RequestId::from_caller)
            .unwrap_or_else(RequestId::generate);
        request.extensions_mut().insert(id.clone());
        RequestIdFuture { inner: self.inner.call(request), id: Some(id) }
    }
}

pin_project! {
    /// Adds the id to the reply.
    #[derive(Debug)]
    pub struct RequestIdFuture<F> {
        #[pin]
        inner: F,
        id: Option<RequestId>,
    }
}

impl<F, B> Future for RequestIdFuture<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(mut response) = ready!(this.inner.poll(context));
        if let Some(RequestId(mut id)) = this.id.take() {
            // Never seen again, so HTTP/2 shall not keep it in the connection's table of headers,
            // where each reply would be compared with all ids before it.
            id.set_sensitive(true);
            response.headers_mut().insert(REQUEST_ID_HEADER, id);
        }
        Poll::Ready(Ok(response))
    }
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt as _;

    use super::*;

    /// Answers with the id that the handler saw, and the id in the reply's header.
    async fn ids(sent: Option<&[u8]>) -> (String, String) {
        let handler = tower::service_fn(|request: Request<()>| async move {
            let seen = request.extensions().get::<RequestId>().cloned();
            Ok::<_, Infallible>(Response::new(seen.expect("an id").to_string()))
        });
        let mut request = Request::new(());
        if let Some(sent) = sent {
            let value = HeaderValue::from_bytes(sent).expect("a header value");
            request.headers_mut().insert(REQUEST_ID_HEADER, value);
        }
        let Ok(response) = SetRequestId::new(handler).oneshot(request).await;
        let header = &response.headers()[REQUEST_ID_HEADER];
        assert!(header.is_sensitive(), "HTTP/2 would keep it in its table");
        let header = header.to_str().expect("text").to_owned();
        (response.into_body(), header)
    }

    #[tokio::test]
    async fn a_sane_id_of_the_caller_is_kept() {
        let longest = "a".repeat(64);
        for id in ["7", "req-1/2:3", longest.as_str()] {
            assert_eq!(ids(Some(id.as_bytes())).await, (id.to_owned(), id.to_owned()));
        }
    }

    #[tokio::test]
    async fn anything_else_is_replaced() {
        let too_long = "a".repeat(65);
        for id in ["", "two words", "tab\tbed", "\u{fc}ber", too_long.as_str()] {
            let (seen, header) = ids(Some(id.as_bytes())).await;
            assert_eq!(seen, header);
            assert_eq!(seen.len(), 32, "{id:?} became {seen:?}");
        }
    }

    #[tokio::test]
    async fn ids_made_here_differ() {
        assert_ne!(ids(None).await, ids(None).await);
    }
}
