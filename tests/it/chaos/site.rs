//! A private Postgres, replicas as processes, and proxies between them.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use secp256k1::SecretKey;
use tokio::task::block_in_place;

use crate::support::{
    client,
    fault_proxy::FaultProxy,
    postgres::{Cluster, Database},
    server::{Server, ServerOptions},
    wait::until,
};

/// Where the replicas that are up take connections; none where one is down.
pub(super) type Way = Arc<Mutex<Vec<Option<SocketAddr>>>>;

/// A cluster of its own: it is restarted.
pub(super) fn postgres() -> Cluster {
    block_in_place(|| Cluster::start(&[("max_connections", "100")]))
}

/// Keys that no other test uses.
pub(super) fn fresh_keys(count: u32) -> Vec<SecretKey> {
    (0..count).map(|_| client::fresh_key()).collect()
}

/// Everything under test.
#[derive(Debug)]
pub(super) struct Site<'p> {
    postgres: &'p Cluster,
    store: Database<'p>,
    options: ServerOptions,
    servers: Vec<Option<Server>>,
    way: Way,
    /// Between replicas and Postgres.
    pub(super) database: FaultProxy,
    /// Between replicas and Postgres, for LISTEN alone.
    pub(super) listen: FaultProxy,
}

impl<'p> Site<'p> {
    /// Starts `replicas` replicas over an empty database.
    pub(super) async fn start(postgres: &'p Cluster, replicas: usize) -> Self {
        let store = postgres.create_migrated_database().await;
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, postgres.port()));
        let (database, listen) = (FaultProxy::start(target).await, FaultProxy::start(target).await);
        let through = |proxy: &FaultProxy| {
            let (address, name) = (proxy.address(), &store.name);
            format!("postgres://postgres@{address}/{name}?sslmode=disable")
        };
        let options = ServerOptions::postgres(&through(&database))
            .env("LISTEN_DATABASE_URL", &through(&listen));
        let mut site = Self {
            postgres,
            store,
            options,
            servers: (0..replicas).map(|_| None).collect(),
            way: Arc::new(Mutex::new(vec![None; replicas])),
            database,
            listen,
        };
        for replica in 0..replicas {
            site.start_replica(replica);
        }
        site
    }

    pub(super) fn way(&self) -> Way {
        Arc::clone(&self.way)
    }

    pub(super) fn replicas(&self) -> usize {
        self.servers.len()
    }

    /// Ends a replica with SIGKILL.
    pub(super) fn kill(&mut self, replica: usize) {
        self.way.lock().expect("not poisoned")[replica] = None;
        if let Some(mut server) = self.servers[replica].take() {
            block_in_place(|| server.kill());
        }
    }

    /// Starts a replica that was killed.
    pub(super) fn start_replica(&mut self, replica: usize) {
        let server = block_in_place(|| self.options.start());
        self.way.lock().expect("not poisoned")[replica] = Some(server.grpc);
        self.servers[replica] = Some(server);
    }

    /// Sends a replica a signal.
    pub(super) fn signal(&self, replica: usize, name: &str) {
        if let Some(server) = &self.servers[replica] {
            server.signal(name);
        }
    }

    /// Ends every session in the replicas' database, from within Postgres.
    pub(super) async fn terminate_backends(&self) {
        let admin = self.store.connect().await;
        admin
            .batch_execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
            .await
            .expect("a superuser may");
    }

    /// Crashes Postgres and starts it again.
    pub(super) fn restart_postgres(&self) {
        block_in_place(|| {
            self.postgres.stop("QUIT");
            self.postgres.resume();
        });
    }

    /// Undoes every fault and waits until all replicas reach the database.
    pub(super) async fn heal(&mut self) {
        self.database.heal();
        self.listen.heal();
        for replica in 0..self.replicas() {
            self.signal(replica, "CONT");
            if self.servers[replica].is_none() {
                self.start_replica(replica);
            }
            let address = self.way.lock().expect("not poisoned")[replica].expect("it is up");
            let wallet = client::Wallet::connect(address, client::fresh_key()).await;
            until("the replica serves again", async || wallet.list(0).await.is_ok()).await;
        }
    }
}
