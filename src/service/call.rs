//! What a call brings beside its message.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Request;

/// When a call ends at the latest; put into the request's extensions by the deadline layer. A
/// stream whose caller set no deadline has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallDeadline(pub Instant);

/// Where a request comes from; put into its extensions by the listener.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The other end of the connection, or whom trusted proxies name.
    pub address: IpAddr,
    /// Ends the connection after its running calls.
    pub hangup: Hangup,
}

/// What one subscriber of a network provider has: an IPv4 address, or an IPv6 /64.
#[must_use]
pub fn subscriber(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        },
    }
}

/// Asks the connection of a call to take no further calls. Cloned for every call, which the token
/// itself would take a lock for.
#[derive(Debug, Clone)]
pub struct Hangup(Arc<CancellationToken>);

impl Hangup {
    /// Cancels `token` when asked.
    #[must_use]
    pub fn new(token: CancellationToken) -> Self {
        Self(Arc::new(token))
    }

    /// Asks.
    pub fn ask(&self) {
        self.0.cancel();
    }
}

/// A call without its message.
#[derive(Debug)]
pub struct Call {
    /// The `authorization` header as sent.
    pub authorization: Option<Vec<u8>>,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// The caller's address, unknown in tests without a connection.
    pub peer: Option<IpAddr>,
    /// Ends the connection after its running calls, where there is one.
    pub hangup: Option<Hangup>,
}

impl Call {
    /// Takes apart a request.
    pub(super) fn split<T>(request: Request<T>, limit: Duration) -> (Self, T) {
        let (metadata, mut extensions, message) = request.into_parts();
        let authorization = metadata.get("authorization").map(|value| value.as_bytes().to_vec());
        let deadline = extensions
            .get::<CallDeadline>()
            .map_or_else(|| Instant::now() + limit, |deadline| deadline.0);
        let origin = extensions.remove::<Origin>();
        let peer = origin.as_ref().map(|origin| origin.address);
        let hangup = origin.map(|origin| origin.hangup);
        (Self { authorization, deadline, peer, hangup }, message)
    }
}
