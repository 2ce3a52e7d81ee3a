//! No proxy at all: a client that balances over the addresses of a headless Service.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::support::{
    client::{Wallet, fresh_key},
    http::metric_sum,
    postgres::migrated_database,
    server::{Server, ServerOptions},
};

const SERVED: &str = "grpc_server_started_total";
const SET_RECORD: &[&str] = &[r#"grpc_method="SetRecord""#];

fn balanced(servers: &[Server]) -> Channel {
    let endpoint = |server: &Server| {
        Endpoint::from_shared(format!("http://{}", server.grpc))
            .expect("a URL")
            .connect_timeout(Duration::from_secs(1))
    };
    Channel::balance_list(servers.iter().map(endpoint))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancing_client_uses_every_address_and_outlives_one() {
    const CALLS: u64 = 40;
    let database = migrated_database().await;
    let options = ServerOptions::postgres(&database.url()).env("SHUTDOWN_DELAY", "1s");
    let mut servers = [options.start(), options.start()];
    let wallet = Wallet::on(balanced(&servers), fresh_key());
    for base in 0..CALLS {
        wallet.must_set("r", base, b"x").await;
    }
    for server in &servers {
        assert!(metric_sum(server, SERVED, SET_RECORD).await > 0.0);
    }

    servers[0].signal("TERM");
    let mut written = CALLS;
    let mut failures = 0;
    while !servers[0].has_exited() || written < 2 * CALLS {
        let request = wallet.set_request("r", written, b"x");
        while let Err(status) = wallet.send_set(request.clone()).await {
            failures += 1;
            assert!(failures < 50, "{status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        written += 1;
    }
    let page = wallet.list(0).await;
    let head = match page {
        Ok(page) => page.head_revision,
        // The balancer may still try the address that is gone.
        Err(_) => wallet.connected_to(servers[1].grpc).await.list(0).await.unwrap().head_revision,
    };
    assert_eq!(head, written);
}
