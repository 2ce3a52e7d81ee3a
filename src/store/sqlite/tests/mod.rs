//! The suite, and what is this engine's alone.

use std::{path::Path, sync::Arc};

use tempfile::TempDir;

use super::*;
use crate::{
    clock::{Clock, ManualClock},
    notify::ChangeFeed,
    store::{
        Quotas,
        conformance::{Fixture, RecordingFeed, Time},
    },
    telemetry::metrics::Metrics,
};

mod adoption;
mod engine;
mod files;

/// When the clocks of these tests start.
const NOW_MS: u64 = 1_700_000_000_000;

fn config_in(directory: &Path) -> SqliteConfig {
    SqliteConfig { path: directory.join("db.sqlite") }
}

fn context(feed: Arc<dyn ChangeFeed>, quotas: Quotas, clock: &ManualClock) -> StoreContext {
    let metrics = Arc::new(Metrics::new());
    StoreContext { feed, quotas, clock: Arc::new(clock.clone()), metrics }
}

/// Opens the file in `directory`, made ready if need be.
fn opened(directory: &Path, clock: &ManualClock) -> (SqliteStore, Arc<RecordingFeed>) {
    let feed = Arc::new(RecordingFeed::new());
    let context = context(feed.clone(), Quotas::default(), clock);
    let config = config_in(directory);
    migrate(&config, clock as &dyn Clock).unwrap();
    (SqliteStore::open(&config, context).unwrap(), feed)
}

async fn start(quotas: Quotas) -> Fixture {
    let directory = TempDir::new().unwrap();
    let clock = ManualClock::at(NOW_MS);
    let feed = Arc::new(RecordingFeed::new());
    let config = config_in(directory.path());
    migrate(&config, &clock).unwrap();
    let store =
        Arc::new(SqliteStore::open(&config, context(feed.clone(), quotas, &clock)).unwrap());
    Fixture {
        store: store.clone(),
        transfer: store,
        feed,
        time: Time::Manual(clock),
        guard: Box::new(directory),
    }
}

crate::store_conformance_tests!(start);
