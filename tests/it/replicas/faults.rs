//! Lost announcements: a change is told nonetheless, a stream never ends, and everything heals.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use data_sync::{
    clock::SystemClock,
    proto::Notification,
    store::{
        Quotas, RecordWrite, RequestDigest, Store as _, StoreContext, WriteOutcome,
        conformance::{RecordingFeed, soon},
        postgres::PostgresStore,
    },
    tasks::Tasks,
    telemetry::metrics::Metrics,
};
use tokio::time::sleep;
use tonic::Streaming;

use super::{ANNOUNCED_BOUND, RECONCILE_BOUND, Replicas, hears, listen_check, told_within};
use crate::support::{
    client::Wallet, fault_proxy::FaultProxy, http::metric, postgres::migrated_database,
    server::ServerOptions, wait::until,
};

/// Two replicas; the second one's LISTEN connection leads through a proxy.
struct Site {
    replicas: Replicas,
    proxy: FaultProxy,
    writer: Wallet,
    /// Of the same user, on the second replica.
    stream: Streaming<Notification>,
}

impl Site {
    async fn start() -> Self {
        let database = migrated_database().await;
        let target = SocketAddr::from(([127, 0, 0, 1], database.cluster.port()));
        let proxy = FaultProxy::start(target).await;
        let listen_url =
            format!("{}&application_name=ear", database.url_through(proxy.address().port()));
        let direct = ServerOptions::postgres(&database.url());
        let proxied = direct.clone().env("LISTEN_DATABASE_URL", &listen_url);
        let replicas = Replicas::start_each(database, &[direct, proxied]);
        replicas.all_hear().await;
        let writer = replicas.wallet(0).await;
        let stream = replicas.at(1, &writer).await.listening().await;
        Self { replicas, proxy, writer, stream }
    }

    /// A write on the first replica is told within the bound that needs no announcement.
    async fn is_told_seconds_late(&mut self, id: &str) {
        let revision = self.writer.must_set(id, 0, b"x").await;
        let (told, elapsed) = told_within(RECONCILE_BOUND, &mut self.stream).await;
        assert_eq!(told.revision, revision);
        eprintln!("{id}: told after {elapsed:?}");
    }

    /// A write on the first replica is told at once, with its writer.
    async fn is_told_at_once(&mut self, id: &str) {
        let revision = self.writer.must_set(id, 0, b"x").await;
        let (told, _) = told_within(ANNOUNCED_BOUND, &mut self.stream).await;
        let client_id = Some(self.writer.instance.to_string());
        assert_eq!(told, Notification { client_id, revision });
    }

    async fn hears(&self, expected: bool) {
        hears(&self.replicas.servers[1], expected).await;
    }

    async fn listen_check(&self) -> String {
        listen_check(&self.replicas.servers[1]).await
    }

    async fn metric(&self, series: &str) -> f64 {
        metric(&self.replicas.servers[1], series).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listen_connection_that_is_cut_costs_seconds_and_heals() {
    let mut site = Site::start().await;
    site.is_told_at_once("before").await;
    assert!(site.listen_check().await.starts_with("[+] listen ok"));
    site.proxy.refuse();
    site.proxy.cut();
    site.hears(false).await;
    assert!(site.listen_check().await.starts_with("[~] listen degraded"));
    site.is_told_seconds_late("during").await;
    site.is_told_seconds_late("during, later").await;
    site.proxy.heal();
    site.hears(true).await;
    site.is_told_at_once("after").await;
    assert!(site.metric("data_sync_listener_reconnects_total").await >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listen_connection_that_says_nothing_is_found_out() {
    let mut site = Site::start().await;
    site.proxy.swallow();
    // Nobody knows yet.
    site.is_told_seconds_late("unnoticed").await;
    site.hears(false).await;
    site.is_told_seconds_late("noticed").await;
    assert!(site.metric("data_sync_reconciled_users_total").await >= 2.0);
    site.proxy.heal();
    site.hears(true).await;
    site.is_told_at_once("after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_listener_is_back_at_once() {
    let mut site = Site::start().await;
    let admin = site.replicas.database.connect().await;
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                     WHERE datname = current_database() AND application_name = 'ear'";
    let row = admin.query_one(terminate, &[]).await.expect("terminates");
    assert_eq!(row.get::<_, i64>(0), 1);
    until("it was made anew", async || {
        site.metric("data_sync_listener_reconnects_total").await >= 1.0
    })
    .await;
    site.hears(true).await;
    site.is_told_at_once("after").await;
}

/// What a replica leaves behind that is killed between its commit and its announcement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_nobody_announced_is_told_nonetheless() {
    let mut site = Site::start().await;
    let tasks = Tasks::new();
    let context = StoreContext {
        feed: Arc::new(RecordingFeed::new()),
        quotas: Quotas::default(),
        clock: Arc::new(SystemClock),
        metrics: Arc::new(Metrics::new()),
    };
    let config = site.replicas.database.config();
    let silent = PostgresStore::open(&config, context, &tasks).expect("a usable configuration");
    let write = RecordWrite {
        user: site.writer.user(),
        id: "silent".to_owned(),
        base_revision: 0,
        schema_version: "1.0.0".to_owned(),
        data: b"x".as_slice().into(),
        digest: RequestDigest([1; 32]),
        client_id: Some(site.writer.instance.to_string().into()),
    };
    let written = silent.set_record(write, soon()).await;
    assert_eq!(written, Ok(WriteOutcome::Written { revision: 1 }));
    let (told, elapsed) = told_within(RECONCILE_BOUND, &mut site.stream).await;
    assert_eq!(told, Notification { client_id: None, revision: 1 });
    eprintln!("told after {elapsed:?}");
    assert_eq!(site.metric("data_sync_reconciled_users_total").await, 1.0);
    site.is_told_at_once("after").await;
}

/// Writes one record over and over until the replica takes no more; the last revision it gave.
async fn write_until_refused(wallet: &Wallet) -> u64 {
    let mut acknowledged = 0;
    while let Ok(reply) = wallet.set("r", acknowledged, b"x").await {
        acknowledged = reply.new_revision;
    }
    assert!(acknowledged > 0);
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_killed_under_load_hurts_no_stream_elsewhere() {
    let mut replicas = Replicas::start().await;
    let doomed = replicas.wallet(0).await;
    let mut stream = replicas.at(1, &doomed).await.listening().await;
    let kill = async {
        sleep(Duration::from_millis(300)).await;
        replicas.servers[0].kill();
    };
    let (acknowledged, ()) = tokio::join!(write_until_refused(&doomed), kill);
    let mut told = 0;
    while told < acknowledged {
        told = told_within(RECONCILE_BOUND, &mut stream).await.0.revision;
    }
    let survivor = replicas.at(2, &doomed).await;
    let head = survivor.list(0).await.expect("lists").head_revision;
    assert!(head <= acknowledged + 1, "at most the last write was committed and not acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_stops_announces_to_the_last_and_in_time() {
    let mut replicas = Replicas::start().await;
    let leaving = replicas.wallet(0).await;
    let mut stream = replicas.at(1, &leaving).await.listening().await;
    let stop = async {
        sleep(Duration::from_millis(300)).await;
        replicas.servers[0].signal("TERM");
    };
    let (acknowledged, ()) = tokio::join!(write_until_refused(&leaving), stop);
    let mut told = 0;
    while told < acknowledged {
        told = told_within(ANNOUNCED_BOUND, &mut stream).await.0.revision;
    }
    assert_eq!(replicas.servers[0].wait_for_exit(Duration::from_secs(10)).code(), Some(0));
    let log = replicas.servers[0].log();
    assert!(!log.contains("did not end in time"), "{log}");
    let reconciled = metric(&replicas.servers[1], "data_sync_reconciled_users_total").await;
    assert_eq!(reconciled, 0.0);
}
