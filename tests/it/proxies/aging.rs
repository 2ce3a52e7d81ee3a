//! A balancer of connections sees no calls: there the age of connections and streams spreads
//! clients anew when a replica is added.

use super::{
    LISTENERS, Listeners,
    site::{Machines, Proxy, RunningProxy},
};
use crate::support::{
    http::metric_sum,
    postgres::migrated_database,
    server::{Server, ServerOptions},
    wait::until,
};

async fn streams(server: &Server) -> f64 {
    metric_sum(server, "data_sync_active_streams", &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_spread_over_a_replica_that_is_added() {
    let database = migrated_database().await;
    let machines = Machines::new();
    let options = ServerOptions::postgres(&database.url())
        .env("PROXY_PROTOCOL", "on")
        .env("CONNECTION_MAX_AGE", "2s")
        .env("STREAM_MAX_AGE", "3s");
    let first = machines.replica(1, &options).start();
    let proxy = RunningProxy::start(Proxy::HaproxyTcp, &machines);
    proxy.listens(machines.proxy_grpc()).await;
    let listeners = Listeners::start(machines.proxy_grpc(), LISTENERS).await;
    assert!(streams(&first).await > 0.0);

    let second = machines.replica(2, &options).start();
    let share = f64::from(u32::try_from(LISTENERS / 4).expect("few"));
    until("both replicas hold a share of the streams", async || {
        streams(&first).await >= share && streams(&second).await >= share
    })
    .await;
    let ends = listeners.ends();
    assert!(!ends.is_empty(), "nothing made them move");
    assert!(ends.iter().all(|end| end.code() == tonic::Code::Unavailable), "{ends:?}");
}
