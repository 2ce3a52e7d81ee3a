//! PgBouncer in transaction mode before everything but LISTEN, and before LISTEN too.

use data_sync::proto::Notification;
use tonic::Code;

use super::{ANNOUNCED_BOUND, RECONCILE_BOUND, Replicas, hears, listen_check, told_within};
use crate::support::{
    pgbouncer::PgBouncer, postgres::migrated_database, server::ServerOptions, wait::until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_behind_a_pooler_serve_everything() {
    let database = migrated_database().await;
    let pooler = PgBouncer::start(&database);
    let options =
        ServerOptions::postgres(&pooler.url(&database)).env("LISTEN_DATABASE_URL", &database.url());
    let replicas = Replicas::start_each(database, &[options.clone(), options.clone(), options]);
    replicas.all_hear().await;

    let first = replicas.wallet(0).await;
    let wallets = [first.clone(), replicas.at(1, &first).await, replicas.at(2, &first).await];
    let mut latencies = Vec::new();
    for (number, writer) in wallets.iter().enumerate() {
        let mut streams = Vec::new();
        for wallet in &wallets {
            streams.push(wallet.listening().await);
        }
        let revision = writer.must_set(&format!("{number}"), 0, b"x").await;
        let client_id = Some(writer.instance.to_string());
        for stream in &mut streams {
            let (told, elapsed) = told_within(ANNOUNCED_BOUND, stream).await;
            assert_eq!(told, Notification { client_id: client_id.clone(), revision });
            latencies.push(elapsed);
        }
        for wallet in &wallets {
            assert_eq!(wallet.list(0).await.expect("lists").head_revision, revision);
        }
        let lock = format!("lock {number}");
        writer.lock(&lock, true, None).await.expect("takes a lock");
        for wallet in &wallets {
            assert!(wallet.locked(&lock).await.expect("asks"));
            let refused = wallet.sibling().lock(&lock, true, None).await.expect_err("held");
            assert_eq!(refused.code(), Code::FailedPrecondition);
        }
        writer.unlock(&lock).await.expect("releases");
    }
    eprintln!("told after the reply, at the longest: {:?}", latencies.iter().max().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listening_through_a_pooler_is_found_out_and_comes_seconds_late() {
    let database = migrated_database().await;
    let pooler = PgBouncer::start(&database);
    let options = ServerOptions::postgres(&pooler.url(&database));
    let replicas = Replicas::start_each(database, &[options.clone(), options]);
    for server in &replicas.servers {
        until("it is said", async || server.log().contains("nothing is heard")).await;
        hears(server, false).await;
        let check = listen_check(server).await;
        assert!(check.starts_with("[~] listen degraded"), "{check}");
        assert!(check.contains("LISTEN_DATABASE_URL"), "{check}");
    }
    let writer = replicas.wallet(0).await;
    let mut stream = replicas.at(1, &writer).await.listening().await;
    for id in ["first", "second"] {
        let revision = writer.must_set(id, 0, b"x").await;
        let (told, elapsed) = told_within(RECONCILE_BOUND, &mut stream).await;
        assert_eq!(told, Notification { client_id: None, revision });
        eprintln!("told after {elapsed:?}");
    }
}
