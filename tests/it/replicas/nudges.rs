//! Nudges after cut pages, when the replica with the stream hears nothing of the others.

use std::{net::SocketAddr, time::Duration};

use data_sync::proto::Notification;
use tokio::time::{sleep, timeout};
use tonic::Streaming;

use super::{ANNOUNCED_BOUND, RECONCILE_BOUND, Replicas, hears, told_within};
use crate::support::{
    client::{Wallet, next},
    fault_proxy::FaultProxy,
    http::metric,
    pgbouncer::PgBouncer,
    postgres::migrated_database,
    server::ServerOptions,
};

/// Two pages of the largest records and a little.
const RECORDS: usize = 60;
/// More than an announcement takes to reach Postgres.
const ANNOUNCEMENT: Duration = Duration::from_millis(300);
/// A connection that says nothing is found out within ten seconds; then nudges are read.
const UNNOTICED_BOUND: Duration = Duration::from_secs(12);

/// The first replica serves the lists, the second one has the stream; only LISTEN is between them.
struct Site {
    replicas: Replicas,
    lister: Wallet,
    stream: Streaming<Notification>,
}

impl Site {
    async fn start(replicas: Replicas) -> Self {
        let lister = replicas.wallet(0).await;
        let data = vec![7; 65_536];
        for number in 0..RECORDS {
            lister.must_set(&format!("{number}"), 0, &data).await;
        }
        let stream = replicas.at(1, &lister).await.listening().await;
        let mut site = Self { replicas, lister, stream };
        // What the writes left to be told would be taken for a nudge.
        while timeout(ANNOUNCED_BOUND, next(&mut site.stream)).await.is_ok() {}
        site
    }

    async fn behind_a_proxy() -> (Self, FaultProxy) {
        let database = migrated_database().await;
        let target = SocketAddr::from(([127, 0, 0, 1], database.cluster.port()));
        let proxy = FaultProxy::start(target).await;
        let listen_url = database.url_through(proxy.address().port());
        let direct = ServerOptions::postgres(&database.url());
        let proxied = direct.clone().env("LISTEN_DATABASE_URL", &listen_url);
        let replicas = Replicas::start_each(database, &[direct, proxied]);
        replicas.all_hear().await;
        (Self::start(replicas).await, proxy)
    }

    /// Gets a cut page from the first replica; where it ends.
    async fn list_cut_page(&self, since: u64) -> u64 {
        let page = self.lister.list(since).await.expect("lists");
        assert!(page.has_more);
        page.changes.last().expect("a record").revision
    }

    /// The stream is told once to list again.
    async fn is_nudged_within(&mut self, bound: Duration) {
        let (told, elapsed) = told_within(bound, &mut self.stream).await;
        assert_eq!(told, Notification { client_id: None, revision: RECORDS as u64 });
        eprintln!("nudged after {elapsed:?}");
    }

    async fn is_left_in_peace_for(&mut self, time: Duration) {
        let told = timeout(time, next(&mut self.stream)).await;
        assert!(told.is_err(), "told {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_cut_while_the_other_replica_is_cut_off_wakes_its_stream_once() {
    let (mut site, proxy) = Site::behind_a_proxy().await;
    proxy.refuse();
    proxy.cut();
    hears(&site.replicas.servers[1], false).await;
    site.list_cut_page(0).await;
    site.is_nudged_within(RECONCILE_BOUND).await;
    // It is read again and again meanwhile.
    site.is_left_in_peace_for(Duration::from_secs(5)).await;
    proxy.heal();
    hears(&site.replicas.servers[1], true).await;
    let reads = "data_sync_missed_nudges_total";
    assert_eq!(metric(&site.replicas.servers[1], reads).await, 1.0);
    assert_eq!(metric(&site.replicas.servers[0], reads).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_cut_at_the_moment_of_a_short_loss_wakes_the_stream_on_listening_anew() {
    let (mut site, proxy) = Site::behind_a_proxy().await;
    proxy.refuse();
    proxy.cut();
    site.list_cut_page(0).await;
    // The announcement goes out meanwhile; the loss is over before heads are compared again.
    sleep(ANNOUNCEMENT).await;
    proxy.heal();
    site.is_nudged_within(RECONCILE_BOUND).await;
    hears(&site.replicas.servers[1], true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_cut_while_a_loss_is_unnoticed_wakes_the_stream_once_it_is_found_out() {
    let (mut site, proxy) = Site::behind_a_proxy().await;
    proxy.swallow();
    site.list_cut_page(0).await;
    site.is_nudged_within(UNNOTICED_BOUND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_never_hears_anything_wakes_its_streams_all_the_same() {
    let database = migrated_database().await;
    let pooler = PgBouncer::start(&database);
    let hearing = ServerOptions::postgres(&database.url());
    let deaf = ServerOptions::postgres(&pooler.url(&database));
    let replicas = Replicas::start_each(database, &[hearing, deaf]);
    hears(&replicas.servers[0], true).await;
    let mut site = Site::start(replicas).await;
    assert_eq!(metric(&site.replicas.servers[1], super::CONNECTED).await, 0.0);
    site.list_cut_page(0).await;
    site.is_nudged_within(RECONCILE_BOUND).await;
    // The client is stuck on that page: it is woken again, after a pause.
    site.list_cut_page(0).await;
    site.is_nudged_within(RECONCILE_BOUND).await;
}
