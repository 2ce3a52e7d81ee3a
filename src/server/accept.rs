//! Accepts connections within bounds.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use dashmap::{DashMap, mapref::entry::Entry};
use prometheus::IntCounter;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{self, ConnectionEnd, ConnectionService, ConnectionSettings, Ended},
    proxy_header,
};
use crate::{limits, service::call::subscriber, tasks::Tasks, telemetry::metrics::Metrics};

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

    /// Takes a place for a connection, or says which limit refuses it.
    fn admit(self: &Arc<Self>) -> Result<Place, &'static str> {
        if self.total.fetch_add(1, Ordering::Relaxed) >= self.max_total {
            self.total.fetch_sub(1, Ordering::Relaxed);
            return Err("total_limit");
        }
        Ok(Place { connections: Arc::clone(self), subscriber: None })
    }
}

/// A connection's place among [`Connections`]; dropping it gives it back.
#[derive(Debug)]
struct Place {
    connections: Arc<Connections>,
    subscriber: Option<IpAddr>,
}

impl Place {
    /// Counts the place for the client's address too, or says which limit refuses it.
    fn count_for(&mut self, client: IpAddr) -> Result<(), &'static str> {
        let subscriber = subscriber(client);
        let mut count = self.connections.by_address.entry(subscriber).or_insert(0);
        if *count >= self.connections.max_per_address {
            return Err("address_limit");
        }
        *count += 1;
        drop(count);
        self.subscriber = Some(subscriber);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.total.fetch_sub(1, Ordering::Relaxed);
        let Some(subscriber) = self.subscriber else { return };
        if let Entry::Occupied(mut entry) = self.connections.by_address.entry(subscriber) {
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
        let mut warned = None;
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => self.admit(socket, peer.ip(), service.clone()),
                // A peer that is gone already is no reason to wait; want of descriptors or memory is.
                Err(error) if is_of_one_peer(&error) => {}
                Err(error) => {
                    self.warn(&error, &mut warned);
                    self.refused("accept").inc();
                    sleep(limits::ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    /// Says that nothing can be accepted, now and then: connections that come and go at the limit
    /// would say it many times a second.
    fn warn(&self, error: &io::Error, warned: &mut Option<Instant>) {
        if warned.is_none_or(|warned| warned.elapsed() >= limits::ACCEPT_WARNING_INTERVAL) {
            *warned = Some(Instant::now());
            tracing::warn!(listener = self.name, %error, "cannot accept connections, pausing");
        }
    }

    fn admit<S: ConnectionService>(&self, socket: TcpStream, peer: IpAddr, service: S) {
        let mut place = match self.connections.admit() {
            Ok(place) => place,
            Err(reason) => return self.refused(reason).inc(),
        };
        // Where a header will name the client, the socket's address is the proxy's.
        if !self.settings.proxy_protocol
            && let Err(reason) = place.count_for(peer)
        {
            return self.refused(reason).inc();
        }
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let newcomer = Newcomer { socket, peer, place };
        let open = self.metrics.connections.with_label_values(&[self.name]);
        let (name, metrics) = (self.name, Arc::clone(&self.metrics));
        let (settings, end) = (self.settings, self.end.clone());
        self.tasks.spawn("connection", async move {
            open.inc();
            if let Err(reason) = newcomer.serve(service, settings, end).await {
                metrics.connections_refused.with_label_values(&[name, reason]).inc();
            }
            open.dec();
        });
    }

    fn refused(&self, reason: &str) -> IntCounter {
        self.metrics.connections_refused.with_label_values(&[self.name, reason])
    }
}

/// Whether accepting failed for a reason that ends with the peer it happened to.
fn is_of_one_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

/// A connection that was let in.
struct Newcomer {
    socket: TcpStream,
    peer: IpAddr,
    place: Place,
}

impl Newcomer {
    /// Serves it to its end; the reason if it ended by a limit or a fault.
    async fn serve<S: ConnectionService>(
        mut self,
        service: S,
        settings: ConnectionSettings,
        end: ConnectionEnd,
    ) -> Result<(), &'static str> {
        if settings.proxy_protocol {
            let client = tokio::select! {
                client = self.read_proxy_header(settings) => client?,
                () = end.hang_up.cancelled() => return Ok(()),
            };
            self.place.count_for(client)?;
            self.peer = client;
        }
        match connection::serve(self.socket, self.peer, service, settings, end).await {
            Ended::Failed => Err("failed"),
            Ended::Cleanly | Ended::Cut => Ok(()),
        }
    }

    /// The address of the client, or of the proxy where it speaks for itself.
    async fn read_proxy_header(
        &mut self,
        settings: ConnectionSettings,
    ) -> Result<IpAddr, &'static str> {
        match timeout(settings.guard.handshake, proxy_header::read(&mut self.socket)).await {
            Ok(Ok(client)) => Ok(client.unwrap_or(self.peer)),
            Ok(Err(error)) => {
                tracing::debug!(peer = %self.peer, %error, "connection without a proxy header");
                Err("proxy_header")
            }
            Err(_elapsed) => Err("proxy_header"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(connections: &Arc<Connections>, client: &str) -> Result<Place, &'static str> {
        let mut place = connections.admit()?;
        place.count_for(client.parse().expect("an address"))?;
        Ok(place)
    }

    #[test]
    fn connections_are_bounded_as_a_whole_and_by_address() {
        let connections = Arc::new(Connections::new(3, 2));
        let first = admit(&connections, "127.0.0.1").expect("free");
        let _second = admit(&connections, "::ffff:127.0.0.1").expect("free");
        assert_eq!(admit(&connections, "127.0.0.1").err(), Some("address_limit"));
        let _third = admit(&connections, "127.0.0.2").expect("free");
        assert_eq!(admit(&connections, "127.0.0.3").err(), Some("total_limit"));
        drop(first);
        assert!(admit(&connections, "127.0.0.1").is_ok());
    }

    #[test]
    fn an_ipv6_subscriber_counts_as_one() {
        let connections = Arc::new(Connections::new(10, 1));
        let first = admit(&connections, "2001:db8::1").expect("free");
        assert_eq!(admit(&connections, "2001:db8::2:1").err(), Some("address_limit"));
        assert!(admit(&connections, "2001:db8:0:1::1").is_ok());
        drop(first);
        assert!(connections.by_address.is_empty(), "nothing is kept of who is gone");
        assert_eq!(connections.total.load(Ordering::Relaxed), 0);
    }
}
