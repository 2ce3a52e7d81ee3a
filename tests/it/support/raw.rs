//! HTTP/2 by hand: a client that may refuse to read, and frames as bytes.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{
    RecvStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::{Request, Response};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
};

use super::wait::{until, within};

/// HTTP/2's preface and an empty SETTINGS frame.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A socket that can be told not to be read from any more.
#[derive(Debug)]
struct Gated {
    socket: TcpStream,
    shut: Arc<AtomicBool>,
}

impl AsyncRead for Gated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.shut.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// One HTTP/2 connection. It grants the server no more window than it began with, unless a body's
/// capacity is released by hand.
#[derive(Debug)]
pub(crate) struct RawClient {
    pub(crate) send: SendRequest<Bytes>,
    /// Sent as `grpc-timeout` with every call, and left to the server to keep.
    pub(crate) timeout: Option<&'static str>,
    connection: JoinHandle<Result<(), h2::Error>>,
    shut: Arc<AtomicBool>,
}

impl RawClient {
    /// Connects with a window of `window` bytes for each stream.
    pub(crate) async fn connect(address: SocketAddr, window: u32) -> Self {
        Self::connect_after(address, window, b"").await
    }

    /// [`Self::connect`], with `first` sent before anything else.
    pub(crate) async fn connect_after(address: SocketAddr, window: u32, first: &[u8]) -> Self {
        let mut socket = TcpStream::connect(address).await.expect("connects");
        socket.write_all(first).await.expect("writes");
        Self::on(socket, window).await
    }

    /// [`Self::connect`] from another address of the loopback.
    pub(crate) async fn connect_from(source: [u8; 4], address: SocketAddr, window: u32) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from((source, 0))).expect("an address of this machine");
        Self::on(socket.connect(address).await.expect("connects"), window).await
    }

    async fn on(socket: TcpStream, window: u32) -> Self {
        let shut = Arc::new(AtomicBool::new(false));
        let gated = Gated { socket, shut: Arc::clone(&shut) };
        let mut builder = Builder::new();
        builder.initial_window_size(window).initial_connection_window_size(i32::MAX as u32);
        let (send, connection) =
            within("the handshake", builder.handshake(gated)).await.expect("speaks HTTP/2");
        let connection = tokio::spawn(connection);
        Self { send, timeout: None, connection, shut }
    }

    /// Reads nothing from the socket from now on.
    pub(crate) fn stop_reading(&self) {
        self.shut.store(true, Ordering::SeqCst);
    }

    /// Sends a call whose reply may be awaited.
    pub(crate) async fn call(&mut self, method: &str, message: &impl Message) -> ResponseFuture {
        let message = message.encode_to_vec();
        let length = u32::try_from(message.len()).expect("small").to_be_bytes();
        let mut request = Request::post(format!("http://localhost/sync.Syncer/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(timeout) = self.timeout {
            request = request.header("grpc-timeout", timeout);
        }
        let request = request.body(()).expect("a request");
        let mut send = within("room for a stream", self.send.clone().ready()).await.expect("open");
        let (response, mut body) = send.send_request(request, false).expect("sent");
        body.send_data([&[0][..], &length, &message].concat().into(), true).expect("sent");
        response
    }

    /// Sends a call and waits for the head of its reply.
    pub(crate) async fn answer(
        &mut self,
        method: &str,
        message: &impl Message,
    ) -> Response<RecvStream> {
        let response = self.call(method, message).await;
        within("the head of a reply", response).await.expect("answers")
    }

    /// Waits until the server takes no further calls on this connection.
    pub(crate) async fn refuses_calls(&self) {
        until("GOAWAY", || async { self.send.clone().ready().await.is_err() }).await;
    }

    /// Waits until the server has closed the connection.
    pub(crate) async fn closed(mut self) {
        let ended = within("the end of the connection", &mut self.connection).await;
        // Whether the server was rude about it does not matter here.
        drop(ended.expect("no panic"));
    }
}

/// A frame of HTTP/2.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}
