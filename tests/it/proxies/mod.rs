//! Real proxies in front of two real replicas over one Postgres, with the very files of
//! `examples/`: only names and addresses of the machines are put in place.

use std::time::Duration;

use data_sync::proto::Notification;
use tokio::time::sleep;
use tonic::Code;

use crate::support::{
    client::{Wallet, fresh_key, next},
    http::metric_sum,
    wait::{until, within},
};

mod aging;
mod listeners;
mod round_robin;
mod site;
mod web;

use listeners::Listeners;
use site::{Proxy, Site};

/// A change is told within this time through any replica, on however busy a machine.
const TOLD_BOUND: Duration = Duration::from_secs(2);
/// Listeners of a test; enough that both replicas get some, whatever the proxy's dice say.
const LISTENERS: usize = 16;

/// Stamps out one test for each proxy from an `async fn(Proxy)`.
macro_rules! behind_each_proxy {
    ($($name:ident),* $(,)?) => {
        behind_each_proxy!(@proxy envoy Envoy $($name)*);
        behind_each_proxy!(@proxy haproxy Haproxy $($name)*);
        behind_each_proxy!(@proxy nginx Nginx $($name)*);
    };
    (@proxy $module:ident $proxy:ident $($name:ident)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(super::Proxy::$proxy).await;
                }
            )*
        }
    };
}

behind_each_proxy!(
    calls_on_both_ports_reach_both_replicas,
    streams_live_through_silence_and_see_what_other_replicas_write,
    a_drained_replica_costs_no_call_and_its_streams_come_back,
    streams_of_a_replica_lost_without_a_word_come_back,
    limits_meet_each_client_and_not_the_proxy,
);

async fn calls_on_both_ports_reach_both_replicas(proxy: Proxy) {
    const CALLS: u64 = 40;
    let site = Site::start(proxy).await;
    let wallet = Wallet::connect(site.grpc(), fresh_key()).await;
    for base in 0..CALLS {
        assert_eq!(wallet.must_set("r", base, b"x").await, base + 1);
    }
    for head in 0..CALLS {
        assert_eq!(web::list(site.web(), &wallet, head).await.head_revision, CALLS);
    }
    for (number, server) in site.servers.iter().enumerate() {
        let methods = [r#"grpc_method="SetRecord""#, r#"grpc_method="ListChanges""#];
        for method in methods {
            let served = metric_sum(server, "grpc_server_started_total", &[method]).await;
            assert!(served > 0.0, "replica {number} served no call of {method}");
        }
    }
}

/// Native clients PING every 5 s, and for as long nothing else is sent.
async fn streams_live_through_silence_and_see_what_other_replicas_write(proxy: Proxy) {
    const SILENCE: Duration = Duration::from_secs(12);
    let site = Site::start(proxy).await;
    let mut listeners = Vec::new();
    for _ in 0..LISTENERS {
        let wallet = listeners::pinging(site.grpc()).await;
        listeners.push((wallet.listening().await, wallet));
    }
    let browser = Wallet::connect(site.grpc(), fresh_key()).await;
    let mut page = web::listen(site.web(), &browser).await;
    for server in &site.servers {
        let streams = metric_sum(server, "data_sync_active_streams", &[]).await;
        assert!(streams > 0.0, "a replica holds no stream");
    }
    sleep(SILENCE).await;
    for (number, server) in site.servers.iter().enumerate() {
        for (stream, wallet) in &mut listeners {
            let direct = wallet.connected_to(server.grpc).await;
            let revision = direct.must_set(&format!("from {number}"), 0, b"x").await;
            let told = tokio::time::timeout(TOLD_BOUND, next(stream)).await.expect("told in time");
            let client_id = Some(wallet.instance.to_string());
            assert_eq!(told, Notification { client_id, revision });
        }
        let direct = browser.connected_to(server.grpc).await;
        let revision = direct.must_set(&format!("from {number}"), 0, b"x").await;
        let told = tokio::time::timeout(TOLD_BOUND, page.next()).await.expect("told in time");
        assert_eq!(told.revision, revision);
    }
    for server in &site.servers {
        let ended = metric_sum(server, "data_sync_streams_ended_total", &[]).await;
        assert!(ended.abs() < f64::EPSILON, "{ended} streams ended");
    }
}

async fn a_drained_replica_costs_no_call_and_its_streams_come_back(proxy: Proxy) {
    let mut site = Site::start(proxy).await;
    let listeners = Listeners::start(site.grpc(), LISTENERS).await;
    let writer = Wallet::connect(site.grpc(), fresh_key()).await;
    let moved = metric_sum(&site.servers[0], "data_sync_active_streams", &[]).await;
    assert!(moved > 0.0, "the replica to be stopped holds no stream");

    let (mut written, mut failures) = (0, Vec::new());
    site.servers[0].signal("TERM");
    while !site.servers[0].has_exited() {
        let request = writer.set_request("r", written, b"x");
        // As applications do: the same signed request, until it is answered.
        while let Err(status) = writer.send_set(request.clone()).await {
            failures.push(status);
            assert!(failures.len() < 50, "{failures:?}");
            sleep(Duration::from_millis(100)).await;
        }
        written += 1;
        sleep(Duration::from_millis(20)).await;
    }
    if proxy.asks_for_health() {
        assert!(failures.is_empty(), "{failures:?}");
    } else {
        assert!(failures.iter().all(|status| status.code() == Code::Unavailable), "{failures:?}");
    }
    assert_eq!(site.servers[0].wait_for_exit(Duration::from_secs(1)).code(), Some(0));
    assert!(written > 10, "only {written} writes");
    let direct = writer.connected_to(site.servers[1].grpc).await;
    let page = direct.list(0).await.expect("lists");
    assert_eq!((page.head_revision, page.changes.len()), (written, 1));

    listeners.all_hear(&site.servers[1]).await;
    let ends = listeners.ends();
    assert!(!ends.is_empty());
    assert!(ends.iter().all(|status| status.code() == Code::Unavailable), "{ends:?}");
}

async fn streams_of_a_replica_lost_without_a_word_come_back(proxy: Proxy) {
    let mut site = Site::start(proxy).await;
    let listeners = Listeners::start(site.grpc(), LISTENERS).await;
    let lost = metric_sum(&site.servers[0], "data_sync_active_streams", &[]).await;
    assert!(lost > 0.0, "the replica to be killed holds no stream");
    site.servers[0].kill();
    until("every stream is on the other replica", async || {
        let streams = metric_sum(&site.servers[1], "data_sync_active_streams", &[]).await;
        streams >= f64::from(u32::try_from(LISTENERS).expect("few"))
    })
    .await;
    listeners.all_hear(&site.servers[1]).await;
    assert!(!listeners.ends().is_empty());
}

async fn limits_meet_each_client_and_not_the_proxy(proxy: Proxy) {
    // One call a second, and thirty at once, for each address on each replica.
    let settings = [("TRUSTED_PROXY_HOPS", "1"), ("RATE_LIMIT_PER_ADDRESS", "1")];
    let site = Site::start_with(proxy, &settings).await;
    let greedy = listeners::from_address([127, 0, 0, 11], site.grpc()).await;
    let mut refused = 0;
    for _ in 0..1_000 {
        match greedy.locked("l").await {
            Err(status) if status.code() == Code::ResourceExhausted => refused += 1,
            answer => assert!(answer.is_ok(), "{answer:?}"),
        }
        if refused == 20 {
            break;
        }
    }
    assert_eq!(refused, 20, "the limit has met nobody");
    let modest = listeners::from_address([127, 0, 0, 12], site.grpc()).await;
    for _ in 0..10 {
        modest.locked("l").await.expect("another client is not refused");
    }
    // What a client says of its own address counts for nothing.
    let mut lies = 0;
    for _ in 0..20 {
        let mut request = tonic::Request::new(greedy.lock_query("l"));
        let address = "127.0.0.13".parse().expect("a header");
        request.metadata_mut().insert("x-forwarded-for", address);
        let answer = within("GetLock", greedy.raw().get_lock(request)).await;
        lies += u32::from(answer.is_err_and(|status| status.code() == Code::ResourceExhausted));
    }
    assert!(lies > 0, "a made-up address was believed");
}
