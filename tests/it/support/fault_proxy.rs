//! A TCP proxy that cuts, delays and swallows at command.
//!
//! It runs in the test's own process. What it was told, and each connection it took, is in its
//! log, so that a failed test says what the network did.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Most bytes read at a time.
const CHUNK_BYTES: usize = 16 * 1024;
/// Most chunks under way in one direction of a connection.
const MAX_CHUNKS: usize = 64;

/// A way through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From clients to the target.
    ToTarget,
    /// From the target to clients.
    ToClient,
}

/// What the proxy does now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Behaviour {
    refuses: bool,
    delay: Duration,
    holds_to_target: bool,
    holds_to_client: bool,
}

impl Behaviour {
    const fn holds(&self, direction: Direction) -> bool {
        match direction {
            Direction::ToTarget => self.holds_to_target,
            Direction::ToClient => self.holds_to_client,
        }
    }
}

/// A running proxy; it ends, with all its connections, when dropped.
#[derive(Debug)]
pub(crate) struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    behaviour: watch::Sender<Behaviour>,
    /// Ends the connections that are open now.
    cut: Mutex<CancellationToken>,
    stop: CancellationToken,
    open: AtomicUsize,
    log: Mutex<Vec<String>>,
}

impl FaultProxy {
    /// Starts a proxy before `target`, on a free port of the loopback address.
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            target,
            behaviour: watch::Sender::new(Behaviour::default()),
            cut: Mutex::new(stop.child_token()),
            stop: stop.clone(),
            open: AtomicUsize::new(0),
            log: Mutex::default(),
        });
        tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, _stop: stop.drop_guard() }
    }

    /// Where clients connect to.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that are open now.
    pub(crate) fn connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// What the proxy was told and which connections it took, in order.
    pub(crate) fn log(&self) -> Vec<String> {
        self.shared.log.lock().expect("not poisoned").clone()
    }

    /// Resets every open connection, in both directions.
    pub(crate) fn cut(&self) {
        self.shared.note("cut");
        let next = self.shared.stop.child_token();
        let open = std::mem::replace(&mut *self.shared.cut.lock().expect("not poisoned"), next);
        open.cancel();
    }

    /// Resets new connections as they come; open ones stay.
    pub(crate) fn refuse(&self) {
        self.set("refuse", |behaviour| behaviour.refuses = true);
    }

    /// Lets every byte arrive this much later.
    pub(crate) fn delay(&self, delay: Duration) {
        self.set(&format!("delay {delay:?}"), |behaviour| behaviour.delay = delay);
    }

    /// Stops forwarding one way, without a sign to either side. New connections are taken.
    pub(crate) fn hold(&self, direction: Direction) {
        self.set(&format!("hold {direction:?}"), |behaviour| match direction {
            Direction::ToTarget => behaviour.holds_to_target = true,
            Direction::ToClient => behaviour.holds_to_client = true,
        });
    }

    /// Stops forwarding both ways: a black hole.
    pub(crate) fn swallow(&self) {
        self.set("swallow", |behaviour| {
            behaviour.holds_to_target = true;
            behaviour.holds_to_client = true;
        });
    }

    /// Behaves again; what was held back is forwarded.
    pub(crate) fn heal(&self) {
        self.set("heal", |behaviour| *behaviour = Behaviour::default());
    }

    fn set(&self, what: &str, change: impl FnOnce(&mut Behaviour)) {
        self.shared.note(what);
        self.shared.behaviour.send_modify(change);
    }
}

impl Shared {
    fn note(&self, what: &str) {
        self.log.lock().expect("not poisoned").push(what.to_owned());
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut number = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.stop.cancelled() => return,
        };
        let Ok((client, _)) = accepted else { continue };
        number += 1;
        if shared.behaviour.borrow().refuses {
            shared.note(&format!("connection {number} refused"));
            reset(&client);
            continue;
        }
        shared.note(&format!("connection {number}"));
        let cut = shared.cut.lock().expect("not poisoned").clone();
        tokio::spawn(forward(client, Arc::clone(&shared), cut));
    }
}

/// Makes the socket's end a reset instead of a farewell.
fn reset(socket: &TcpStream) {
    // It fails only for a socket that has an end already.
    let _ = socket.set_zero_linger();
}

async fn forward(client: TcpStream, shared: Arc<Shared>, cut: CancellationToken) {
    let Ok(target) = TcpStream::connect(shared.target).await else {
        reset(&client);
        return;
    };
    for socket in [&client, &target] {
        socket.set_nodelay(true).expect("a TCP socket");
    }
    shared.open.fetch_add(1, Ordering::SeqCst);
    let ((mut client_reads, mut client_writes), (mut target_reads, mut target_writes)) =
        (client.into_split(), target.into_split());
    let behaviour = || shared.behaviour.subscribe();
    let cut_off = {
        let there = pump(&mut client_reads, &mut target_writes, Direction::ToTarget, behaviour());
        let back = pump(&mut target_reads, &mut client_writes, Direction::ToClient, behaviour());
        tokio::select! {
            biased;
            () = cut.cancelled() => true,
            _ = async { tokio::join!(there, back) } => false,
        }
    };
    if cut_off {
        reset(client_reads.as_ref());
        reset(target_reads.as_ref());
        // A writing half that is dropped says farewell first.
        client_writes.forget();
        target_writes.forget();
    }
    drop((client_reads, target_reads));
    shared.open.fetch_sub(1, Ordering::SeqCst);
}

/// Forwards one way until its reader ends, and passes the end on.
async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    direction: Direction,
    behaviour: watch::Receiver<Behaviour>,
) {
    let (chunks, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(MAX_CHUNKS);
    let mut may_read = behaviour.clone();
    let read = async move {
        loop {
            released(&mut may_read, direction).await;
            let mut chunk = vec![0; CHUNK_BYTES];
            let Ok(count @ 1..) = from.read(&mut chunk).await else { return };
            chunk.truncate(count);
            let at = Instant::now() + may_read.borrow().delay;
            if chunks.send((at, chunk)).await.is_err() {
                return;
            }
        }
    };
    let mut may_write = behaviour;
    let write = async move {
        while let Some((at, chunk)) = due.recv().await {
            sleep_until(at).await;
            released(&mut may_write, direction).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        released(&mut may_write, direction).await;
        // The peer may be gone already; then there is nobody to tell.
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

/// Waits until nothing is held back this way.
async fn released(behaviour: &mut watch::Receiver<Behaviour>, direction: Direction) {
    // The sender lives as long as the proxy, whose end cuts the connection anyway.
    let _ = behaviour.wait_for(|behaviour| !behaviour.holds(direction)).await;
}

mod tests {
    use std::io;

    use tokio::time::timeout;

    use super::*;
    use crate::support::wait::{until, within};

    /// Long enough for a byte to pass the loopback, short enough to wait for nothing.
    const MOMENT: Duration = Duration::from_millis(150);

    /// A server that sends back what it is sent.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reads, mut writes) = socket.split();
                    let _ = tokio::io::copy(&mut reads, &mut writes).await;
                });
            }
        });
        address
    }

    async fn connected() -> (FaultProxy, TcpStream) {
        let proxy = FaultProxy::start(echo().await).await;
        let client = TcpStream::connect(proxy.address()).await.expect("connects");
        (proxy, client)
    }

    async fn send(client: &mut TcpStream, bytes: &[u8]) {
        within("sending", client.write_all(bytes)).await.expect("sent");
    }

    async fn receive(client: &mut TcpStream) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 64];
        let count = within("receiving", client.read(&mut bytes)).await?;
        bytes.truncate(count);
        Ok(bytes)
    }

    async fn hears_nothing(client: &mut TcpStream) -> bool {
        let mut byte = [0];
        timeout(MOMENT, client.read(&mut byte)).await.is_err()
    }

    fn is_over(received: &io::Result<Vec<u8>>) -> bool {
        received.as_ref().map_or(true, Vec::is_empty)
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_so_does_an_end() {
        let (proxy, mut client) = connected().await;
        send(&mut client, b"ping").await;
        assert_eq!(receive(&mut client).await.expect("open"), b"ping");
        client.shutdown().await.expect("open");
        assert!(receive(&mut client).await.expect("a clean end").is_empty());
        until("the connection is gone", async || proxy.connections() == 0).await;
    }

    #[tokio::test]
    async fn a_cut_ends_open_connections_and_takes_new_ones() {
        let (proxy, mut client) = connected().await;
        send(&mut client, b"ping").await;
        receive(&mut client).await.expect("open");
        proxy.cut();
        let error = receive(&mut client).await.expect_err("a reset, not an end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let mut next = TcpStream::connect(proxy.address()).await.expect("connects");
        send(&mut next, b"ping").await;
        assert_eq!(receive(&mut next).await.expect("open"), b"ping");
        assert_eq!(proxy.log(), ["connection 1", "cut", "connection 2"]);
    }

    #[tokio::test]
    async fn refusing_spares_open_connections() {
        let (proxy, mut client) = connected().await;
        send(&mut client, b"ping").await;
        receive(&mut client).await.expect("open");
        proxy.refuse();
        let mut refused = TcpStream::connect(proxy.address()).await.expect("is accepted first");
        assert!(is_over(&receive(&mut refused).await));
        send(&mut client, b"pong").await;
        assert_eq!(receive(&mut client).await.expect("open"), b"pong");
        proxy.heal();
        let mut taken = TcpStream::connect(proxy.address()).await.expect("connects");
        send(&mut taken, b"ping").await;
        assert_eq!(receive(&mut taken).await.expect("open"), b"ping");
    }

    #[tokio::test]
    async fn a_delay_holds_each_way_up() {
        let (proxy, mut client) = connected().await;
        proxy.delay(MOMENT);
        let began = Instant::now();
        send(&mut client, b"ping").await;
        receive(&mut client).await.expect("open");
        assert!(began.elapsed() >= 2 * MOMENT, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn what_is_held_back_comes_after_healing() {
        for held in [Direction::ToTarget, Direction::ToClient] {
            let (proxy, mut client) = connected().await;
            send(&mut client, b"ping").await;
            receive(&mut client).await.expect("open");
            proxy.hold(held);
            send(&mut client, b"pong").await;
            assert!(hears_nothing(&mut client).await, "{held:?}");
            proxy.heal();
            assert_eq!(receive(&mut client).await.expect("open"), b"pong");
        }
    }

    #[tokio::test]
    async fn a_black_hole_takes_connections_and_says_nothing() {
        let (proxy, mut client) = connected().await;
        proxy.swallow();
        let mut second = TcpStream::connect(proxy.address()).await.expect("connects");
        for client in [&mut client, &mut second] {
            send(client, b"ping").await;
            assert!(hears_nothing(client).await);
        }
        proxy.cut();
        assert!(is_over(&receive(&mut client).await));
    }

    #[tokio::test]
    async fn a_dead_target_ends_connections() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let dead = listener.local_addr().expect("an address");
        drop(listener);
        let proxy = FaultProxy::start(dead).await;
        let mut client = TcpStream::connect(proxy.address()).await.expect("is accepted first");
        assert!(is_over(&receive(&mut client).await));
    }
}
