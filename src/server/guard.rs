//! A socket with limits on a peer that does not speak and on one that does not read.
//!
//! Neither tonic nor hyper bounds the time before a connection's preface is complete, nor a write
//! that makes no progress; a silent peer would be held for ever and would hold up a drain.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// Length of HTTP/2's connection preface; no HTTP/1 request is shorter.
const PREFACE_BYTES: usize = 24;

/// Limits of a [`GuardedIo`].
#[derive(Debug, Clone, Copy)]
pub(super) struct GuardLimits {
    /// From the accepted connection to the last byte of its preface.
    pub(super) handshake: Duration,
    /// A write that makes no progress, or a stream.
    pub(super) stall: Duration,
}

/// A socket under [`GuardLimits`]. Past them every operation fails with `TimedOut`.
#[derive(Debug)]
pub(super) struct GuardedIo<S> {
    socket: S,
    limits: GuardLimits,
    /// Runs until the preface is complete.
    handshake: Option<Pin<Box<Sleep>>>,
    preface_missing: usize,
    /// Runs while a write makes no progress.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> GuardedIo<S> {
    pub(super) fn new(socket: S, limits: GuardLimits) -> Self {
        Self {
            socket,
            limits,
            handshake: Some(Box::pin(sleep(limits.handshake))),
            preface_missing: PREFACE_BYTES,
            stalled: None,
        }
    }

    fn watch_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let limit = self.limits.stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(timed_out("the peer does not read"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn timed_out(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<S: AsyncRead + Unpin> AsyncRead for GuardedIo<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let filled = buffer.filled().len();
        let result = Pin::new(&mut this.socket).poll_read(cx, buffer);
        let Some(handshake) = &mut this.handshake else { return result };
        this.preface_missing = this.preface_missing.saturating_sub(buffer.filled().len() - filled);
        if this.preface_missing == 0 {
            this.handshake = None;
            return result;
        }
        if handshake.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(timed_out("the peer does not speak")));
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for GuardedIo<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.socket).poll_write(cx, bytes);
        this.watch_write(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.socket).poll_write_vectored(cx, buffers);
        this.watch_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.socket).poll_flush(cx);
        this.watch_write(cx, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.socket).poll_shutdown(cx);
        this.watch_write(cx, result)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const LIMITS: GuardLimits =
        GuardLimits { handshake: Duration::from_secs(10), stall: Duration::from_secs(20) };

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_never_speaks_is_cut() {
        let (server, _silent) = duplex(64);
        let mut guarded = GuardedIo::new(server, LIMITS);
        let error = guarded.read_u8().await.expect_err("times out");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_drips_its_preface_is_cut() {
        let (server, mut client) = duplex(64);
        let mut guarded = GuardedIo::new(server, LIMITS);
        let drip = async {
            loop {
                client.write_u8(b'P').await?;
                sleep(Duration::from_secs(1)).await;
            }
            #[allow(unreachable_code, reason = "names the error type")]
            io::Result::Ok(())
        };
        let read = async {
            let mut buffer = [0; PREFACE_BYTES];
            guarded.read_exact(&mut buffer).await
        };
        tokio::select! {
            result = read => assert_eq!(result.expect_err("times out").kind(), io::ErrorKind::TimedOut),
            _ = drip => panic!("the client never ends"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_after_the_preface_is_no_fault() {
        let (server, mut client) = duplex(64);
        let mut guarded = GuardedIo::new(server, LIMITS);
        client.write_all(&[b'P'; PREFACE_BYTES]).await.expect("buffered");
        let mut buffer = [0; PREFACE_BYTES];
        guarded.read_exact(&mut buffer).await.expect("complete");
        let silence = tokio::time::timeout(LIMITS.handshake * 10, guarded.read_u8()).await;
        assert!(silence.is_err(), "still waiting");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_cut() {
        let (server, _client) = duplex(8);
        let mut guarded = GuardedIo::new(server, LIMITS);
        let error = guarded.write_all(&[0; 64]).await.expect_err("times out");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
