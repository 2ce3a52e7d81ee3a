//! Every replica is restarted, one after the other, under load and behind a load balancer: nobody
//! loses a write, and everybody is back soon, but not all at once.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    task::block_in_place,
    time::{Instant, sleep},
};

use super::{RECONCILE_BOUND, hears};
use crate::support::{
    haproxy::{Backend, Haproxy},
    http::metric,
    postgres::migrated_database,
    process::{allow_open_files, lasting_port},
    server::{Server, ServerOptions},
    wait::until,
};

mod fleet;

use fleet::{Fleet, USERS};

const REPLICAS: usize = 3;
/// How a replica goes: out of the load balancer, its streams, its calls.
const DELAY: Duration = Duration::from_secs(1);
const SPREAD: Duration = Duration::from_secs(4);
const DRAIN: Duration = Duration::from_secs(5);
/// What a grace period would be set to: all of the above, and time for the store.
const GRACE: Duration =
    Duration::from_secs(DELAY.as_secs() + SPREAD.as_secs() + DRAIN.as_secs() + 5);
/// The largest share of a replica's streams that may end within a tenth of the spread. A tenth is
/// meant; chance and a busy machine add to it.
const LARGEST_SHARE: f64 = 0.3;
/// Sockets of the test itself, with room for its neighbours; the load balancer needs twice that.
const OPEN_FILES: u64 = 8_192;

/// Replicas that keep their addresses.
struct Rolling {
    options: Vec<ServerOptions>,
    servers: Vec<Server>,
}

impl Rolling {
    fn start(database: &str) -> Self {
        let options: Vec<ServerOptions> = (0..REPLICAS)
            .map(|_| {
                let address = || SocketAddr::from(([127, 0, 0, 1], lasting_port())).to_string();
                ServerOptions::postgres(database)
                    .env("GRPC_LISTEN_ADDRESS", &address())
                    .env("ADMIN_LISTEN_ADDRESS", &address())
                    .env("SHUTDOWN_DELAY", &format!("{}s", DELAY.as_secs()))
                    .env("SHUTDOWN_SPREAD", &format!("{}s", SPREAD.as_secs()))
                    .env("SHUTDOWN_DRAIN", &format!("{}s", DRAIN.as_secs()))
            })
            .collect();
        let servers = block_in_place(|| options.iter().map(ServerOptions::start).collect());
        Self { options, servers }
    }

    fn backends(&self) -> Vec<Backend> {
        let backend = |server: &Server| Backend { grpc: server.grpc, admin: server.admin };
        self.servers.iter().map(backend).collect()
    }

    /// Restarts one as a rollout does; how long it took to stop.
    async fn restart(&mut self, replica: usize) -> Duration {
        let began = Instant::now();
        let server = &mut self.servers[replica];
        server.signal("TERM");
        let status = block_in_place(|| server.wait_for_exit(GRACE));
        assert_eq!(status.code(), Some(0), "{}", server.log());
        let took = began.elapsed();
        assert!(!server.log().contains("draining: cutting"), "{}", server.log());
        self.servers[replica] = block_in_place(|| self.options[replica].start());
        hears(&self.servers[replica], true).await;
        took
    }
}

/// The largest share of `ends` within any tenth of the spread.
fn largest_share(ends: &[Instant]) -> f64 {
    let most = ends.iter().map(|first| {
        ends.iter().filter(|end| **end >= *first && **end < *first + SPREAD / 10).count()
    });
    most.max().unwrap_or_default() as f64 / ends.len() as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_loses_nothing_and_spreads_who_comes_back() {
    allow_open_files(OPEN_FILES);
    let database = migrated_database().await;
    let mut rolling = Rolling::start(&database.url());
    let backends = rolling.backends();
    let balancer = block_in_place(|| Haproxy::start(&backends, fleet::DEVICES * 3));
    let all_up = async || balancer.replicas_up().await == REPLICAS;
    until("the balancer sees all replicas", all_up).await;

    let began = Instant::now();
    let fleet = Fleet::start(balancer.address);
    fleet.all_listen().await;
    let opened = began.elapsed();
    let mut stops = Vec::new();
    let mut shares = Vec::new();
    for replica in 0..REPLICAS {
        let began = Instant::now();
        stops.push(rolling.restart(replica).await);
        let ends = fleet.ends_since(began);
        assert!(ends.len() > fleet::DEVICES / 6, "only {} streams were moved", ends.len());
        shares.push(largest_share(&ends));
        until("the balancer sees all replicas", all_up).await;
        fleet.all_listen().await;
        // Some calm, so that the load finds its way to the newcomer.
        sleep(Duration::from_millis(500)).await;
    }
    fleet.stop_writing().await;
    // An announcement may be lost with a replica; comparing heads makes up for it.
    let converged = fleet.converge(RECONCILE_BOUND + Duration::from_secs(5)).await;
    let report = fleet.finish().await;
    for server in &rolling.servers {
        let lost = metric(server, "data_sync_notifications_dropped_total").await;
        assert_eq!(lost, 0.0);
    }

    eprintln!(
        "rolling restart: {report}; {} streams of {USERS} users opened in {opened:.1?}; \
         replicas stopped in {stops:.1?}; largest share of ends in a tenth of the spread \
         {shares:.2?}; all agreed {converged:.1?} after the last write; {:.1?} in all",
        fleet::DEVICES,
        began.elapsed()
    );
    assert!(shares.iter().all(|share| *share <= LARGEST_SHARE), "{shares:.2?}");
    report.assert_sound();
}
