//! Cuts HTTP/2 streams whose peer does not read.
//!
//! When a stream's flow-control window is used up hyper keeps one piece of the body and does not
//! poll the body again before the peer grants more, which may be never. So the task that writes a
//! stream is wrapped: it sees that a piece was handed out and no other asked for, waits for the
//! limit and then drops the stream, which resets it. Other streams of the connection go on.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};

use crate::{
    limits::MAX_BODY_PIECE_BYTES,
    service::delivery::{self, Delivery},
};

/// Runs the streams of a connection, each until its peer stalls.
#[derive(Debug, Clone)]
pub(super) struct StallExecutor {
    limit: Duration,
}

impl StallExecutor {
    /// Streams that make no progress for `limit` are reset.
    pub(super) const fn new(limit: Duration) -> Self {
        Self { limit }
    }
}

impl<F> Executor<F> for StallExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        TokioExecutor::new().execute(Watched::new(stream, self.limit));
    }
}

pin_project! {
    /// A stream that ends when its peer stalls.
    struct Watched<F> {
        // Nothing once it was cut.
        #[pin]
        stream: Option<F>,
        limit: Duration,
        delivery: Delivery,
        pieces: u64,
        // The delivery that `timer` runs for.
        timed: Delivery,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F> Watched<F> {
    const fn new(stream: F, limit: Duration) -> Self {
        Self {
            stream: Some(stream),
            limit,
            delivery: Delivery::Taken,
            pieces: 0,
            timed: Delivery::Taken,
            timer: None,
        }
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let Some(stream) = this.stream.as_mut().as_pin_mut() else { return Poll::Ready(()) };
        let (polled, delivery, pieces) =
            delivery::observe(*this.delivery, *this.pieces, || stream.poll(cx));
        (*this.delivery, *this.pieces) = (delivery, pieces);
        if polled.is_ready() {
            return Poll::Ready(());
        }
        if delivery == Delivery::Taken {
            *this.timer = None;
            return Poll::Pending;
        }
        if delivery != *this.timed || this.timer.is_none() {
            *this.timed = delivery;
            *this.timer = Some(Box::pin(sleep(*this.limit)));
        }
        if let Some(timer) = this.timer {
            ready!(timer.as_mut().poll(cx));
        }
        tracing::debug!("a peer does not read its stream, cutting it");
        delivery::observe(Delivery::Stalled, pieces, || this.stream.set(None));
        Poll::Ready(())
    }
}

pin_project! {
    /// A body that notes how its pieces are taken. Large pieces are cut, so that no peer makes the
    /// server hold a large reply outside of what is watched.
    #[derive(Debug)]
    pub(super) struct DeliveredBody<B> {
        #[pin]
        inner: B,
        // What is left of a large piece.
        rest: Bytes,
    }
}

impl<B> DeliveredBody<B> {
    pub(super) const fn new(inner: B) -> Self {
        Self { inner, rest: Bytes::new() }
    }
}

impl<B: Body<Data = Bytes>> Body for DeliveredBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        delivery::asked();
        if this.rest.is_empty() {
            match ready!(this.inner.poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => *this.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(MAX_BODY_PIECE_BYTES));
        if !piece.is_empty() {
            delivery::handed_out();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = u64::try_from(self.rest.len()).unwrap_or(u64::MAX);
        let inner = self.inner.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(rest));
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use http_body_util::{BodyExt as _, Full};
    use tokio::time::{Instant, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// Notes whether it was dropped because of a stall.
    struct Witness(Arc<AtomicBool>);

    impl Drop for Witness {
        fn drop(&mut self) {
            self.0.store(delivery::has_stalled(), Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_owes_a_piece_for_too_long_is_dropped_as_stalled() {
        let stalled = Arc::new(AtomicBool::new(false));
        let witness = Witness(Arc::clone(&stalled));
        let began = Instant::now();
        let stuck = async move {
            let _witness = witness;
            delivery::handed_out();
            std::future::pending::<()>().await;
        };
        Watched::new(stuck, LIMIT).await;
        assert_eq!(began.elapsed(), LIMIT);
        assert!(stalled.load(Ordering::SeqCst));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_that_goes_on_reading_is_kept() {
        let slow = async {
            for _ in 0..10 {
                delivery::handed_out();
                sleep(LIMIT - Duration::from_secs(1)).await;
                delivery::asked();
            }
        };
        let began = Instant::now();
        Watched::new(slow, LIMIT).await;
        assert_eq!(began.elapsed(), (LIMIT - Duration::from_secs(1)) * 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_news_is_kept() {
        let idle = async {
            delivery::handed_out();
            delivery::asked();
            std::future::pending::<()>().await;
        };
        assert!(timeout(LIMIT * 10, Watched::new(idle, LIMIT)).await.is_err());
    }

    #[tokio::test]
    async fn a_large_piece_is_cut_and_stays_whole() {
        let data: Vec<u8> = (0..=u8::MAX).cycle().take(MAX_BODY_PIECE_BYTES * 2 + 1).collect();
        let mut body = DeliveredBody::new(Full::new(Bytes::from(data.clone())));
        let mut lengths = Vec::new();
        let mut together = Vec::new();
        while let Some(frame) = body.frame().await {
            assert!(lengths.len() < 3, "ends");
            let piece = frame.expect("infallible").into_data().expect("data");
            lengths.push(piece.len());
            together.extend_from_slice(&piece);
        }
        assert_eq!(lengths, [MAX_BODY_PIECE_BYTES, MAX_BODY_PIECE_BYTES, 1]);
        assert!(together == data);
        assert!(body.is_end_stream());
    }
}
