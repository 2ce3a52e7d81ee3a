//! Bringing databases to the schema.

use data_sync::store::{
    migrate::{LegacyState, MigrateError},
    postgres::{migrate, schema_state},
};

use crate::support::postgres::{Cluster, config};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_processes_migrate_one_database_at_once() {
    let database = Cluster::shared().create_database().await;
    let before = schema_state(&database.config()).await.expect("a readable database");
    assert_eq!((before.applied, before.legacy, before.is_ready()), (0, LegacyState::None, false));

    let config = database.config();
    let all = (0..8).map(|_| migrate(&config, false));
    for result in futures_util::future::join_all(all).await {
        let (state, report) = result.expect("migrated, by whomever");
        assert!(state.is_ready());
        assert_eq!((state.applied, report), (before.latest, None));
    }
    let client = database.connect().await;
    let rows = client.query("SELECT version FROM data_sync.migrations ORDER BY 1", &[]).await;
    let versions: Vec<i32> = rows.expect("a ledger").iter().map(|row| row.get(0)).collect();
    assert_eq!(versions, (1..=i32::try_from(before.latest).expect("few")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_newer_schema_serves_this_program() {
    let database = Cluster::shared().create_migrated_database().await;
    let client = database.connect().await;
    client
        .batch_execute("INSERT INTO data_sync.migrations (version, name) VALUES (9999, 'later')")
        .await
        .expect("a ledger");
    let (state, _) = migrate(&database.config(), false).await.expect("nothing to do");
    assert_eq!(state.applied, 9999);
    assert!(state.is_ready());
}

#[tokio::test]
async fn a_role_without_create_on_the_database_migrates_into_a_given_schema() {
    let database = Cluster::shared().create_database().await;
    let client = database.connect().await;
    let role = format!("{}_owner", database.name);
    client
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN; CREATE SCHEMA data_sync AUTHORIZATION {role}"
        ))
        .await
        .expect("a role and a schema");
    let url = database.url().replace("postgres@", &format!("{role}@"));
    let (state, _) = migrate(&config(&url), false).await.expect("enough rights");
    assert!(state.is_ready());
}

#[tokio::test]
async fn an_unreachable_database_is_told_apart() {
    let config = config("postgres://postgres@127.0.0.1:1/none?sslmode=disable");
    assert!(matches!(migrate(&config, false).await, Err(MigrateError::Unavailable(_))));
    assert!(matches!(schema_state(&config).await, Err(MigrateError::Unavailable(_))));
}
