//! A replica at its start: databases that are away, behind, or somebody else's.

use std::process::Command;

use crate::support::{
    client::{Wallet, fresh_key},
    engine::{Engine, Fixture},
    postgres::Cluster,
    server::{Server, ServerOptions},
    wait::within,
};

/// Starts a server apart from the test's thread, since starting waits until it listens.
async fn starting(options: ServerOptions) -> tokio::task::JoinHandle<Result<Server, String>> {
    let starting = tokio::task::spawn_blocking(move || options.try_start());
    tokio::task::yield_now().await;
    starting
}

fn migrate(url: &str) {
    let status = Command::new(env!("CARGO_BIN_EXE_data-sync"))
        .arg("migrate")
        .env("DATABASE_URL", url)
        .status()
        .expect("the binary runs");
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_waits_for_a_database_that_is_down() {
    let cluster = Cluster::start(&[]);
    let url = cluster.create_database().await.url();
    cluster.stop("QUIT");
    let starting = starting(ServerOptions::postgres(&url)).await;
    assert!(!starting.is_finished());
    cluster.resume();
    let server = within("the start", starting).await.expect("no panic").expect("starts");
    Wallet::connect(server.grpc, fresh_key()).await.must_set("a", 0, b"x").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_may_not_migrate_waits_for_somebody_who_does() {
    let database = Cluster::shared().create_database().await;
    let options = ServerOptions::postgres(&database.url()).env("MIGRATE", "wait");
    let starting = starting(options).await;
    migrate(&database.url());
    let server = within("the start", starting).await.expect("no panic").expect("starts");
    Wallet::connect(server.grpc, fresh_key()).await.must_set("a", 0, b"x").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_migrations_a_schema_that_is_behind_is_refused_with_advice() {
    for engine in [Engine::Sqlite, Engine::Postgres] {
        let fixture = Fixture::new(engine).await;
        let log = fixture.options().env("MIGRATE", "off").try_start().expect_err("refused");
        assert!(log.contains("data-sync migrate"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_the_go_server_is_refused_with_the_command_that_adopts_it() {
    let database = Cluster::shared().create_database().await;
    let go_tables = "CREATE TABLE user_revisions (user_id text, revision int, PRIMARY KEY (user_id, revision));
        CREATE TABLE records (user_id text, id text, data bytea, revision int, schema_version text, PRIMARY KEY (user_id, id));";
    database.connect().await.batch_execute(go_tables).await.expect("creates the tables");
    let log = ServerOptions::postgres(&database.url()).try_start().expect_err("refused");
    assert!(log.contains("data-sync migrate --adopt"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_replicas_may_start_at_once_on_an_empty_database() {
    let database = Cluster::shared().create_database().await;
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(starting(ServerOptions::postgres(&database.url())).await);
    }
    for replica in replicas {
        let server = within("the start", replica).await.expect("no panic").expect("starts");
        Wallet::connect(server.grpc, fresh_key()).await.must_set("a", 0, b"x").await;
    }
}
