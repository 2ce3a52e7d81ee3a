//! Accepts connections within bounds.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use dashmap::{DashMap, mapref::entry::Entry};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::connection::{self, ConnectionEnd, ConnectionService, ConnectionSettings, Ended};
use crate::{limits, tasks::Tasks, telemetry::metrics::Metrics};

/// Open connections of all listeners, counted as a whole and by address.
#[derive(Debug)]
pub(super) struct Connections {
    max_total: usize,
    max_per_address: usize,
    total: AtomicUsize,
    by_address: DashMap<IpAddr, usize>,
}

impl Connections {
    pub(super) fn new(max_total: usize, max_per_address: usize) -> Self {
        Self { max_total, max_per_address, total: AtomicUsize::new(0), by_address: DashMap::new() }
    }

    /// Takes a place for a connection from `peer`, or says which limit refuses it.
    fn admit(self: &Arc<Self>, peer: IpAddr) -> Result<Place, &'static str> {
        if self.total.fetch_add(1, Ordering::Relaxed) >= self.max_total {
            self.total.fetch_sub(1, Ordering::Relaxed);
            return Err("total_limit");
        }
        let network = network(peer);
        let mut count = self.by_address.entry(network).or_insert(0);
        if *count >= self.max_per_address {
            drop(count);
            self.total.fetch_sub(1, Ordering::Relaxed);
            return Err("address_limit");
        }
        *count += 1;
        drop(count);
        Ok(Place { connections: Arc::clone(self), network })
    }
}

/// What one subscriber of a network provider has: an IPv4 address, or an IPv6 /64.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        },
    }
}

/// A connection's place among [`Connections`]; dropping it gives it back.
#[derive(Debug)]
struct Place {
    connections: Arc<Connections>,
    network: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.total.fetch_sub(1, Ordering::Relaxed);
        if let Entry::Occupied(mut entry) = self.connections.by_address.entry(self.network) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// One listening socket and how its connections are served.
#[derive(Debug)]
pub(super) struct Listener {
    /// In metrics and logs.
    pub(super) name: &'static str,
    pub(super) socket: TcpListener,
    pub(super) settings: ConnectionSettings,
    pub(super) connections: Arc<Connections>,
    /// Fires when no further connection is to be accepted.
    pub(super) stop: CancellationToken,
    pub(super) end: ConnectionEnd,
    pub(super) tasks: Tasks,
    pub(super) metrics: Arc<Metrics>,
}

impl Listener {
    /// Accepts connections until told to stop; each is served by a task of its own.
    pub(super) async fn run<S: ConnectionService>(self, service: S) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => self.admit(socket, peer, service.clone()),
                Err(error) => self.pause_after(&error).await,
            }
        }
    }

    fn admit<S: ConnectionService>(&self, socket: TcpStream, peer: SocketAddr, service: S) {
        let place = match self.connections.admit(peer.ip()) {
            Ok(place) => place,
            Err(reason) => {
                self.metrics.connections_refused.with_label_values(&[self.name, reason]).inc();
                return;
            }
        };
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let open = self.metrics.connections.with_label_values(&[self.name]);
        let failed = self.metrics.connections_refused.with_label_values(&[self.name, "failed"]);
        let (settings, end) = (self.settings, self.end.clone());
        self.tasks.spawn("connection", async move {
            open.inc();
            if connection::serve(socket, peer, service, settings, end).await == Ended::Failed {
                failed.inc();
            }
            open.dec();
            drop(place);
        });
    }

    /// A peer that is gone already is no reason to wait; want of descriptors or memory is.
    async fn pause_after(&self, error: &io::Error) {
        let gone = matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionRefused
        );
        if !gone {
            tracing::warn!(listener = self.name, %error, "cannot accept connections, pausing");
            self.metrics.connections_refused.with_label_values(&[self.name, "accept"]).inc();
            sleep(limits::ACCEPT_BACKOFF).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn connections_are_bounded_as_a_whole_and_by_address() {
        let connections = Arc::new(Connections::new(3, 2));
        let first = connections.admit(address("127.0.0.1")).expect("free");
        let _second = connections.admit(address("::ffff:127.0.0.1")).expect("free");
        assert_eq!(connections.admit(address("127.0.0.1")).err(), Some("address_limit"));
        let _third = connections.admit(address("127.0.0.2")).expect("free");
        assert_eq!(connections.admit(address("127.0.0.3")).err(), Some("total_limit"));
        drop(first);
        assert!(connections.admit(address("127.0.0.1")).is_ok());
    }

    #[test]
    fn an_ipv6_subscriber_counts_as_one() {
        let connections = Arc::new(Connections::new(10, 1));
        let _first = connections.admit(address("2001:db8::1")).expect("free");
        assert!(connections.admit(address("2001:db8::2")).is_err());
        assert!(connections.admit(address("2001:db8:0:1::1")).is_ok());
    }

    #[test]
    fn an_address_without_connections_is_forgotten() {
        let connections = Arc::new(Connections::new(10, 1));
        drop(connections.admit(address("127.0.0.1")));
        assert!(connections.by_address.is_empty());
        assert_eq!(connections.total.load(Ordering::Relaxed), 0);
    }
}
