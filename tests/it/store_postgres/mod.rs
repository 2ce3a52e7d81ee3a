//! The Postgres engine against a real Postgres.

#![allow(clippy::panic, reason = "an unexpected answer ends its test")]

use std::sync::Arc;

use data_sync::{
    clock::SystemClock,
    config::PostgresConfig,
    store::{
        Quotas, StoreContext,
        conformance::{Fixture, RecordingFeed, Time},
        postgres::PostgresStore,
    },
    tasks::Tasks,
    telemetry::metrics::Metrics,
};

use crate::support::{
    pgbouncer::PgBouncer,
    postgres::{Database, migrated_database},
};

mod adoption;
mod contention;
mod lists;
mod locks;
mod migrations;
mod outages;
mod plans;
mod tls;

/// A store and what it tells.
struct Opened {
    store: Arc<PostgresStore>,
    feed: Arc<RecordingFeed>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
}

fn open(config: &PostgresConfig, quotas: Quotas) -> Opened {
    let feed = Arc::new(RecordingFeed::new());
    let metrics = Arc::new(Metrics::new());
    let tasks = Tasks::new();
    let context = StoreContext {
        feed: feed.clone(),
        quotas,
        clock: Arc::new(SystemClock),
        metrics: Arc::clone(&metrics),
    };
    let store = PostgresStore::open(config, context, &tasks).expect("a usable configuration");
    Opened { store: Arc::new(store), feed, metrics, tasks }
}

impl Opened {
    /// Times the store tried something again for `reason`.
    fn retries(&self, op: &str, reason: &str) -> u64 {
        self.metrics.store_retries.with_label_values(&[op, reason]).get()
    }
}

fn fixture(opened: Opened, guard: impl std::any::Any + Send) -> Fixture {
    Fixture {
        store: opened.store.clone(),
        transfer: opened.store.clone(),
        feed: opened.feed.clone(),
        time: Time::Real,
        guard: Box::new((guard, opened.tasks)),
    }
}

async fn start(quotas: Quotas) -> Fixture {
    let database: Database<'static> = migrated_database().await;
    fixture(open(&database.config(), quotas), ())
}

async fn start_behind_pgbouncer(quotas: Quotas) -> Fixture {
    let database = migrated_database().await;
    let pooler = PgBouncer::start(&database);
    let mut config = database.config();
    config.url = data_sync::config::Secret::new(pooler.url(&database));
    fixture(open(&config, quotas), pooler)
}

mod direct {
    use super::*;
    data_sync::store_conformance_tests!(start);
}

mod behind_pgbouncer {
    use super::*;
    data_sync::store_conformance_tests!(start_behind_pgbouncer);
}
