//! A real Prometheus scrapes real replicas and knows the chart's alerts.

use std::{collections::BTreeSet, fs, net::SocketAddr, path::Path};

use serde_json::Value;

use crate::support::{
    client::{Wallet, fresh_key},
    fault_proxy::FaultProxy,
    postgres::{Database, migrated_database},
    prometheus::Prometheus,
    server::{Server, ServerOptions},
    wait::until,
};

/// How long a condition must hold in this test before its alert fires.
const PATIENCE_OF_ALERTS: &str = "4s";
/// Alerts that judge speed: on a machine full of other tests they fire, and rightly.
const OF_SPEED: &str = "DataSyncLatencyHigh|DataSyncNotificationDelayHigh|DataSyncPoolSaturated";
/// Made by others: a recorded series begins with the colon form, these are of Kubernetes.
const FOREIGN: &[&str] = &["kube_pod_container_resource_limits"];

fn chart_file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/data-sync/files").join(path);
    fs::read_to_string(path).expect("a file of the chart")
}

/// Selects alerts that fire.
fn alerts(range: &str) -> String {
    format!(r#"ALERTS{{alertstate="firing",alertname!~"{OF_SPEED}"}}{range}"#)
}

/// The chart's alerts, which fire after seconds instead of minutes.
fn hasty_alerts() -> String {
    let shorten = |line: &str| match line.split_once("for: ") {
        Some((indent, _)) if indent.trim().is_empty() => {
            format!("{indent}for: {PATIENCE_OF_ALERTS}\n")
        }
        _ => format!("{line}\n"),
    };
    chart_file("alerts/data-sync.yaml").lines().map(shorten).collect()
}

/// Every metric that alerts and dashboards name.
fn named_metrics() -> BTreeSet<String> {
    let files = [
        "alerts/data-sync.yaml",
        "dashboards/data-sync-overview.json",
        "dashboards/data-sync-internals.json",
    ];
    let prefixes = ["data_sync_", "data_sync:", "grpc_server_", "process_", "tokio_"];
    let mut names = BTreeSet::new();
    for file in files {
        let text = chart_file(file);
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
        let named = words.map(|word| word.trim_end_matches(':'));
        let named = named.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix)));
        names.extend(named.map(str::to_owned));
    }
    assert!(names.len() > 30, "found only {names:?}");
    names
}

/// Two replicas; the LISTEN connection of the second one leads through a proxy.
struct Site {
    servers: Vec<Server>,
    listen: FaultProxy,
    prometheus: Prometheus,
    _database: Database<'static>,
}

impl Site {
    async fn start() -> Self {
        let database = migrated_database().await;
        let target = SocketAddr::from(([127, 0, 0, 1], database.cluster.port()));
        let listen = FaultProxy::start(target).await;
        let direct = ServerOptions::postgres(&database.url());
        let proxied = direct.clone();
        let proxied =
            proxied.env("LISTEN_DATABASE_URL", &database.url_through(listen.address().port()));
        let servers = vec![direct.start(), proxied.start()];
        let prometheus = Prometheus::start(&servers, &hasty_alerts()).await;
        Self { servers, listen, prometheus, _database: database }
    }

    /// Both replicas do a little of everything.
    async fn work(&self) {
        let [one, other] = &self.servers[..] else { panic!("two replicas") };
        let writer = Wallet::connect(one.grpc, fresh_key()).await;
        let reader = writer.connected_to(other.grpc).await;
        let mut stream = reader.listening().await;
        for base in 0..10 {
            writer.must_set("r", base, b"x").await;
            crate::support::client::next(&mut stream).await;
            reader.list(base).await.expect("lists");
        }
        reader.lock("l", true, None).await.expect("locks");
    }

    /// Waits until both replicas were seen `scrapes` times more.
    async fn is_scraped(&self, scrapes: u32) {
        let seen = async || {
            let up = self.prometheus.query("count_over_time(up[1h]) * up").await;
            let least = up.iter().map(|(_, count)| *count).fold(f64::INFINITY, f64::min);
            if up.len() == self.servers.len() { least } else { 0.0 }
        };
        let before = seen().await;
        let wanted = before + f64::from(scrapes);
        until("both replicas are scraped", async || seen().await >= wanted).await;
    }

    /// Alerts that fire now, each with the instance it is about, where it is about one.
    async fn firing(&self) -> BTreeSet<(String, String)> {
        let firing = self.prometheus.query(&alerts("")).await;
        let label = |alert: &Value, name: &str| alert[name].as_str().unwrap_or_default().to_owned();
        let alert = |alert: &Value| (label(alert, "alertname"), label(alert, "instance"));
        firing.iter().map(|(labels, _)| alert(labels)).collect()
    }

    async fn fires(&self, alerts: &[(&str, &str)]) {
        let expected: BTreeSet<(String, String)> =
            alerts.iter().map(|(name, at)| ((*name).to_owned(), (*at).to_owned())).collect();
        until(&format!("{alerts:?} fires"), async || self.firing().await == expected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_pair_has_every_metric_and_no_alert() {
    let site = Site::start().await;
    site.is_scraped(2).await;
    // Before its first scrape Prometheus knows of no replica, which is an alert.
    site.fires(&[]).await;
    let ever = format!("count_over_time({})", alerts("[1h]"));
    let before = site.prometheus.query(&ever).await;
    site.work().await;
    // Long enough for every condition that holds to have become an alert.
    site.is_scraped(14).await;
    assert_eq!(site.prometheus.query(&ever).await, before);
    assert_eq!(site.prometheus.broken_rules().await, [""; 0]);

    let scraped = site.prometheus.names().await;
    let missing: Vec<String> = named_metrics()
        .into_iter()
        .filter(|name| !scraped.contains(name) && !FOREIGN.contains(&name.as_str()))
        .collect();
    assert!(missing.is_empty(), "no series of {missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provoked_fault_fires_its_alert_and_no_other() {
    let mut site = Site::start().await;
    site.is_scraped(2).await;
    site.fires(&[]).await;

    site.listen.refuse();
    site.listen.cut();
    let deaf = site.servers[1].admin.to_string();
    site.fires(&[("DataSyncListenerDisconnected", &deaf)]).await;
    site.listen.heal();
    site.fires(&[]).await;

    // One replica of two is no outage.
    site.servers[0].kill();
    until("one replica is missed", async || {
        let up = site.prometheus.query("sum(up)").await;
        up.iter().map(|(_, up)| *up).collect::<Vec<_>>() == [1.0]
    })
    .await;
    assert_eq!(site.firing().await, BTreeSet::new());
    site.servers[1].kill();
    site.fires(&[("DataSyncDown", "")]).await;
}
