//! A TCP proxy that loses answers.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use data_sync::tasks::Tasks;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A proxy before one server of the loopback.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    open: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    /// The next answer is lost, and its connection with it.
    lose_next: AtomicBool,
    lost: AtomicU32,
}

impl Proxy {
    /// Starts one before `port`.
    pub(crate) async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State::default());
        let (open, opened) = watch::channel(true);
        let tasks = Tasks::new();
        let accept = {
            let state = Arc::clone(&state);
            let tasks = tasks.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let mut opened = opened.clone();
                    let state = Arc::clone(&state);
                    tasks.spawn("proxied connection", async move {
                        if opened.wait_for(|open| *open).await.is_ok() {
                            carry(client, port, &state).await;
                        }
                    });
                }
            }
        };
        tasks.spawn("proxy", accept);
        Self { address, state, open }
    }

    /// Its port.
    pub(crate) const fn port(&self) -> u16 {
        self.address.port()
    }

    /// Loses the next answer of the server and ends that connection; new ones are taken in but
    /// not served before [`Self::reopen`].
    pub(crate) fn lose_next_answer(&self) {
        self.open.send_replace(false);
        self.state.lose_next.store(true, Ordering::SeqCst);
    }

    /// Number of answers lost.
    pub(crate) fn lost(&self) -> u32 {
        self.state.lost.load(Ordering::SeqCst)
    }

    /// Serves new connections again.
    pub(crate) fn reopen(&self) {
        self.open.send_replace(true);
    }
}

async fn carry(client: TcpStream, port: u16, state: &State) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = copy(&mut from_client, &mut to_server);
    let answers = async {
        let mut buffer = vec![0; 16 * 1024];
        let mut seen = Vec::new();
        while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
            seen.extend_from_slice(&buffer[..length]);
            if state.lose_next.load(Ordering::SeqCst) {
                // A whole round trip: the server has said that the transaction is over.
                if seen.ends_with(b"Z\0\0\0\x05I") {
                    state.lose_next.store(false, Ordering::SeqCst);
                    state.lost.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                continue;
            }
            seen.clear();
            if to_client.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = requests => {}
        () = answers => {}
    }
}
