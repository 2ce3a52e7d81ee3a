//! Apps that listen, and listen again when their stream ends.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use secp256k1::SecretKey;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::{Status, transport::Endpoint};

use super::TOLD_BOUND;
use crate::support::{
    client::{Wallet, fresh_key},
    server::Server,
    wait::within,
};

/// Between the end of a stream and the next try, as shipped apps do it.
const PAUSE: Duration = Duration::from_millis(500);

/// An instance that pings every 5 s, as shipped apps do.
pub(super) async fn pinging(address: SocketAddr) -> Wallet {
    pinging_as(address, fresh_key()).await
}

async fn pinging_as(address: SocketAddr, key: SecretKey) -> Wallet {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .expect("a URL")
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    let channel = within("connecting", endpoint.connect()).await.expect("connects");
    Wallet::on(channel, key)
}

/// An instance that calls from an address of its own.
pub(super) async fn from_address(host: [u8; 4], address: SocketAddr) -> Wallet {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .expect("a URL")
        .local_address(Some(host.into()));
    let channel = within("connecting", endpoint.connect()).await.expect("connects");
    Wallet::on(channel, fresh_key())
}

/// Instances of as many users, each on a connection of its own.
#[derive(Debug)]
pub(super) struct Listeners {
    apps: Vec<App>,
    ends: Arc<Mutex<Vec<Status>>>,
}

#[derive(Debug)]
struct App {
    wallet: Wallet,
    /// The newest revision it was told of.
    told: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listeners {
    /// Returns once all of them listen.
    pub(super) async fn start(address: SocketAddr, number: usize) -> Self {
        let ends = Arc::new(Mutex::new(Vec::new()));
        let apps = (0..number).map(|_| async {
            let wallet = pinging(address).await;
            let (sender, mut told) = watch::channel(0);
            let task = tokio::spawn(listen(wallet.clone(), sender, Arc::clone(&ends)));
            // The first notification is empty: it only says that the stream is there.
            within("the first notification", told.changed()).await.expect("it listens");
            App { wallet, told, task }
        });
        let apps = join_all(apps).await;
        Self { apps, ends }
    }

    /// How streams have ended.
    pub(super) fn ends(&self) -> Vec<Status> {
        self.ends.lock().expect("not poisoned").clone()
    }

    /// Every app is told of a write that somebody makes through `server`.
    pub(super) async fn all_hear(&self, server: &Server) {
        for app in &self.apps {
            let direct = app.wallet.connected_to(server.grpc).await;
            let head = direct.list(0).await.expect("lists").head_revision;
            let revision = direct.must_set(&format!("on {head}"), 0, b"x").await;
            let mut told = app.told.clone();
            // It may be between two streams: the first notification of the next one brings it up.
            let limit = TOLD_BOUND + 10 * PAUSE;
            let hears = timeout(limit, told.wait_for(|told| *told >= revision)).await;
            hears.expect("told in time").expect("it listens");
        }
    }
}

/// Listens for ever. After each end it asks for the head, as its first notification tells it to.
async fn listen(wallet: Wallet, told: watch::Sender<u64>, ends: Arc<Mutex<Vec<Status>>>) {
    loop {
        if let Ok(mut stream) = wallet.listen().await {
            loop {
                match stream.message().await {
                    Ok(Some(notification)) => {
                        let head = match notification.revision {
                            0 => wallet.list(0).await.map_or(0, |page| page.head_revision),
                            revision => revision,
                        };
                        told.send_modify(|told| *told = head.max(*told));
                    }
                    Ok(None) => panic!("a stream must not end with status OK"),
                    Err(status) => {
                        ends.lock().expect("not poisoned").push(status);
                        break;
                    }
                }
            }
        }
        sleep(PAUSE).await;
    }
}
