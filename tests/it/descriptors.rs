//! A server that may open no more files or sockets serves who is there, and waits without effort.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use crate::support::{
    client::{Wallet, fresh_key, next},
    engine::{Engine, Fixture},
    server::Server,
    wait::{until, within},
};

/// What the server may open: itself takes about thirty.
const OPEN_FILES: u32 = 64;
/// More connections than that.
const FLOOD: usize = 100;
/// How long the flood is watched, and how much of a core the server may take meanwhile.
const WATCHED: Duration = Duration::from_secs(3);
const LARGEST_SHARE_OF_A_CORE: f64 = 0.25;
/// A pause between two attempts is a tenth of a second, and two ports may be out of descriptors.
const MOST_ATTEMPTS: f64 = 2.0 * 10.0 * 3.0 + 10.0;

const FAILED: &str = r#"data_sync_connections_refused_total{listener="grpc",reason="accept"}"#;
/// Units of a process's times in `/proc`, on every Linux that there is.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads metrics over one connection, which is there before the descriptors run out. It speaks
/// HTTP/2: over HTTP/1 a client that finds its connection not yet free makes another one, which
/// nobody would accept.
struct Watch {
    client: reqwest::Client,
    url: String,
}

impl Watch {
    fn new(server: &Server) -> Self {
        let client = reqwest::Client::builder().http2_prior_knowledge().build();
        let url = format!("http://{}/metrics", server.admin);
        Self { client: client.expect("a client"), url }
    }

    /// The value of a series; 0 where it is not there yet.
    async fn read(&self, series: &str) -> f64 {
        let response = within("metrics", self.client.get(&self.url).send()).await.expect("answers");
        let page = within("metrics", response.text()).await.expect("text");
        let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }
}

/// Processor time that the server has taken, in seconds.
fn cpu_seconds(server: &Server) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.id())).expect("Linux");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let times = fields.split_whitespace().skip(11).take(2);
    times.map(|ticks| ticks.parse::<f64>().expect("a number")).sum::<f64>() / TICKS_PER_SECOND
}

async fn flood(address: SocketAddr) -> Vec<TcpStream> {
    let mut sockets = Vec::new();
    for _ in 0..FLOOD {
        // The system takes it, if not the server.
        sockets.push(within("connecting", TcpStream::connect(address)).await.expect("connects"));
    }
    sockets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn want_of_descriptors_costs_newcomers_only_and_passes() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let options = fixture.options().env("HANDSHAKE_TIMEOUT", "60s").open_files(OPEN_FILES);
    let server = options.env("MAX_CONNECTIONS_PER_ADDRESS", "10000").start();
    let watch = Watch::new(&server);
    assert_eq!(watch.read(FAILED).await, 0.0);
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let mut stream = wallet.listening().await;

    let sockets = flood(server.grpc).await;
    until("descriptors are wanting", async || watch.read(FAILED).await > 0.0).await;
    let (failed, cpu, began) = (watch.read(FAILED).await, cpu_seconds(&server), Instant::now());
    let mut writes = 0;
    while began.elapsed() < WATCHED {
        let revision = wallet.must_set(&format!("{writes}"), 0, b"x").await;
        assert_eq!(next(&mut stream).await.revision, revision);
        writes += 1;
        sleep(WATCHED / 10).await;
    }
    let failed = watch.read(FAILED).await - failed;
    let share = (cpu_seconds(&server) - cpu) / began.elapsed().as_secs_f64();
    eprintln!("{failed} attempts in {WATCHED:?}, {share:.3} of a core, {writes} writes");
    assert!((1.0..=MOST_ATTEMPTS).contains(&failed), "{failed} attempts");
    assert!(share < LARGEST_SHARE_OF_A_CORE, "{share} of a core");

    drop(sockets);
    let newcomer = Wallet::connect(server.grpc, fresh_key()).await;
    newcomer.must_set("a", 0, b"x").await;
    wallet.must_set("after", 0, b"x").await;
    let log = server.log();
    assert_eq!(log.matches("cannot accept connections").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_low_limit_that_may_be_raised_is_raised() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.options().open_files_at_first(OPEN_FILES).start();
    let watch = Watch::new(&server);
    assert!(watch.read("process_max_fds").await > f64::from(OPEN_FILES));
    let sockets = flood(server.grpc).await;
    let newcomer = Wallet::connect(server.grpc, fresh_key()).await;
    newcomer.must_set("a", 0, b"x").await;
    assert_eq!(watch.read(FAILED).await, 0.0);
    drop(sockets);
}
