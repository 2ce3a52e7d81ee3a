//! Serves one connection from its first byte to its end.

use std::{convert::Infallible, net::IpAddr, pin::pin, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{net::TcpStream, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::{BoxError, Service, ServiceExt as _};

use super::{
    client_address::client_address,
    guard::{GuardLimits, GuardedIo},
    stall::{DeliveredBody, StallExecutor},
};
use crate::{
    limits,
    service::call::{Hangup, Origin},
};

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/2 with prior knowledge.
    Http2,
    /// HTTP/1.1 or HTTP/2, as the first bytes say.
    Any,
}

/// How connections of one listener are served.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionSettings {
    pub(super) protocol: Protocol,
    pub(super) max_concurrent_streams: u32,
    /// After this age (±20 %) a connection takes no further calls; `None` is no limit.
    pub(super) max_age: Option<Duration>,
    pub(super) guard: GuardLimits,
    /// Whether every connection begins with a header of the PROXY protocol.
    pub(super) proxy_protocol: bool,
    /// Proxies whose `x-forwarded-for` is believed.
    pub(super) trusted_hops: usize,
}

/// When the connections of a server end.
#[derive(Debug, Clone, Default)]
pub(super) struct ConnectionEnd {
    /// Connections take no further calls and end after the last.
    pub(super) hang_up: CancellationToken,
    /// Connections end at once.
    pub(super) cut: CancellationToken,
}

/// A service that a connection can be served with.
pub(super) trait ConnectionService:
    Service<
        Request<Body>,
        Response = Response<Self::ResponseBody>,
        Error = Infallible,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static
{
    /// The body of its replies.
    type ResponseBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
}

impl<S, B> ConnectionService for S
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type ResponseBody = B;
}

/// Why serving a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// By either side's wish.
    Cleanly,
    /// Cut by a drain that took too long.
    Cut,
    /// By a fault on the wire, or a limit.
    Failed,
}

/// Serves `socket`, whose client is `peer`, with `service` until it ends.
pub(super) async fn serve<S: ConnectionService>(
    socket: TcpStream,
    peer: IpAddr,
    service: S,
    settings: ConnectionSettings,
    end: ConnectionEnd,
) -> Ended {
    let hang_up = end.hang_up.child_token();
    let hangup = Hangup::new(hang_up.clone());
    let service = service
        .map_request(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            let client = client_address(peer, request.headers(), settings.trusted_hops);
            let origin = Origin { address: client, hangup: hangup.clone() };
            request.extensions_mut().insert(origin);
            request
        })
        .map_response(|response| response.map(DeliveredBody::new));

    let io = TokioIo::new(GuardedIo::new(socket, settings.guard));
    let builder = builder(settings);
    let mut connection = pin!(builder.serve_connection(io, TowerToHyperService::new(service)));
    let mut aged = pin!(age(settings.max_age));
    let mut asked_to_end = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                return match result {
                    Ok(()) => Ended::Cleanly,
                    Err(error) => {
                        tracing::debug!(%peer, %error, "connection failed");
                        Ended::Failed
                    }
                };
            }
            () = end.cut.cancelled() => return Ended::Cut,
            () = hang_up.cancelled(), if !asked_to_end => {
                asked_to_end = true;
                connection.as_mut().graceful_shutdown();
            }
            () = aged.as_mut(), if !asked_to_end => {
                asked_to_end = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn age(max_age: Option<Duration>) {
    match max_age {
        Some(age) => sleep(age.mul_f64(rand::random_range(0.8..1.2))).await,
        None => std::future::pending().await,
    }
}

fn builder(settings: ConnectionSettings) -> auto::Builder<StallExecutor> {
    let mut builder = auto::Builder::new(StallExecutor::new(settings.guard.stall));
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::HTTP2_WINDOW_BYTES)
        .initial_connection_window_size(limits::HTTP2_WINDOW_BYTES)
        .max_concurrent_streams(settings.max_concurrent_streams)
        .max_pending_accept_reset_streams(limits::MAX_PENDING_ACCEPT_RESET_STREAMS)
        .max_local_error_reset_streams(limits::MAX_LOCAL_ERROR_RESET_STREAMS)
        .max_header_list_size(limits::MAX_HEADER_LIST_BYTES)
        .keep_alive_interval(limits::KEEPALIVE_INTERVAL)
        .keep_alive_timeout(limits::KEEPALIVE_TIMEOUT);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.guard.handshake)
        .max_buf_size(limits::MAX_HTTP1_BUFFER_BYTES);
    match settings.protocol {
        Protocol::Http2 => builder.http2_only(),
        Protocol::Any => builder,
    }
}
