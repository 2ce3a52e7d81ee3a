//! A private Postgres, replicas as processes, and proxies between them.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use data_sync::store::{Quotas, UserId};
use secp256k1::SecretKey;
use tokio::task::block_in_place;

use crate::support::{
    client,
    fault_proxy::FaultProxy,
    pgbouncer::PgBouncer,
    postgres::{Cluster, Database},
    server::{Server, ServerOptions},
    wait::until,
};

/// Where the replicas that are up take connections; none where one is down.
pub(super) type Way = Arc<Mutex<Vec<Option<SocketAddr>>>>;

/// A replica that is asked to stop is gone within this time.
const GRACE: Duration = Duration::from_secs(30);

/// What differs between one run and another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) replicas: usize,
    /// PgBouncer in transaction mode stands before everything but LISTEN.
    pub(super) pooled: bool,
    pub(super) quotas: Quotas,
}

/// A cluster of its own: it is restarted.
pub(super) fn postgres() -> Cluster {
    block_in_place(|| Cluster::start(&[("max_connections", "100")]))
}

/// A limit as a setting: 0 is none.
fn number(limit: Option<u64>) -> String {
    limit.unwrap_or_default().to_string()
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
    _pooler: Option<PgBouncer>,
    /// Between replicas and Postgres, or its pooler.
    pub(super) database: FaultProxy,
    /// Between replicas and Postgres, for LISTEN alone.
    pub(super) listen: FaultProxy,
}

impl<'p> Site<'p> {
    /// Starts the replicas over an empty database.
    pub(super) async fn start(postgres: &'p Cluster, setting: Setting) -> Self {
        let Setting { replicas, pooled, quotas } = setting;
        let store = postgres.create_migrated_database().await;
        let pooler = pooled.then(|| block_in_place(|| PgBouncer::start(&store)));
        let target = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let direct = postgres.port();
        let database = target(pooler.as_ref().map_or(direct, PgBouncer::port));
        let (database, listen) =
            (FaultProxy::start(database).await, FaultProxy::start(target(direct)).await);
        let through = |proxy: &FaultProxy| {
            let (address, name) = (proxy.address(), &store.name);
            format!("postgres://postgres@{address}/{name}?sslmode=disable")
        };
        let options = ServerOptions::postgres(&through(&database))
            .env("LISTEN_DATABASE_URL", &through(&listen))
            .env("MAX_USER_RECORDS", &number(quotas.max_records))
            .env("MAX_USER_BYTES", &number(quotas.max_bytes))
            .env("MAX_USER_LOCKS", &number(quotas.max_locks));
        let mut site = Self {
            postgres,
            store,
            options,
            servers: (0..replicas).map(|_| None).collect(),
            way: Arc::new(Mutex::new(vec![None; replicas])),
            _pooler: pooler,
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

    /// Asks a replica to stop, and waits until it did so in peace.
    pub(super) fn drain(&mut self, replica: usize) {
        self.way.lock().expect("not poisoned")[replica] = None;
        if let Some(mut server) = self.servers[replica].take() {
            server.signal("TERM");
            let status = block_in_place(|| server.wait_for_exit(GRACE));
            assert_eq!(status.code(), Some(0), "{}", server.log());
        }
    }

    /// Starts a replica that is down.
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

    /// What the database counts of a user: records and bytes.
    pub(super) async fn counters(&self, user: UserId) -> (u64, u64) {
        let read = "SELECT records, bytes FROM data_sync.users WHERE user_id = $1";
        let rows = self.store.connect().await.query(read, &[&user.as_bytes().as_slice()]).await;
        rows.expect("reads").first().map_or((0, 0), |row| {
            let count = |column| u64::try_from(row.get::<_, i64>(column)).expect("not negative");
            (count(0), count(1))
        })
    }

    /// Has the counters of all users compared to a recount, as an operator would.
    pub(super) fn recount(&self) {
        let arguments = ["check", "--recount", "--database-url", &self.store.url()];
        let check = Command::new(env!("CARGO_BIN_EXE_data-sync")).args(arguments).output();
        let check = check.expect("the binary runs");
        let said = String::from_utf8_lossy(&check.stdout);
        assert!(check.status.success() && said.contains("right for all"), "{said}");
    }
}
