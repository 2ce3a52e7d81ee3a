//! What a call brings beside its message.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Request;

/// When a call ends at the latest; put into the request's extensions by the deadline layer. A
/// stream whose caller set no deadline has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallDeadline(pub Instant);

/// Who sent the request: the other end of the connection, or whom trusted proxies name. Put into
/// the request's extensions by the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress(pub IpAddr);

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

/// Asks the connection of a call to take no further calls; put into the request's extensions by
/// the listener.
#[derive(Debug, Clone)]
pub struct Hangup(pub CancellationToken);

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
        let (metadata, extensions, message) = request.into_parts();
        let authorization = metadata.get("authorization").map(|value| value.as_bytes().to_vec());
        let deadline = extensions
            .get::<CallDeadline>()
            .map_or_else(|| Instant::now() + limit, |deadline| deadline.0);
        let peer = extensions.get::<PeerAddress>().map(|peer| peer.0);
        let hangup = extensions.get::<Hangup>().cloned();
        (Self { authorization, deadline, peer, hangup }, message)
    }
}
