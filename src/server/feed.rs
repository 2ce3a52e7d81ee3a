//! The change feed that fits the store.

use std::sync::Arc;

use tokio::sync::watch;

use super::admin::{Check, Health};
#[cfg(feature = "postgres")]
use crate::notify::postgres::PostgresFeed;
use crate::{
    config::EngineConfig,
    notify::{ChangeFeed, Hub, ListenState, LocalFeed},
    store::{Store, StoreError},
    tasks::Tasks,
    telemetry::metrics::Metrics,
};

/// A feed, and whether it hears other replicas where there may be any.
pub(super) type Feed = (Arc<dyn ChangeFeed>, Option<watch::Receiver<ListenState>>);

#[cfg_attr(
    not(feature = "postgres"),
    allow(unused_variables, clippy::needless_pass_by_value, reason = "only Postgres has replicas")
)]
/// Starts the feed for a store of this kind. Contacts nobody before `tasks` get to it.
pub(super) fn start(
    engine: &EngineConfig,
    hub: &Arc<Hub>,
    store: Arc<dyn Store>,
    metrics: &Arc<Metrics>,
    tasks: &Tasks,
) -> Result<Feed, StoreError> {
    #[cfg(feature = "postgres")]
    if let EngineConfig::Postgres(config) = engine {
        let feed = PostgresFeed::start(config, hub, store, metrics, tasks)?;
        let listening = feed.listening();
        return Ok((Arc::new(feed), Some(listening)));
    }
    // There are no other replicas to hear.
    metrics.listener_connected.set(1);
    Ok((Arc::new(LocalFeed::new(Arc::clone(hub), metrics)), None))
}

/// What an operator is told of it.
pub(super) fn check(state: ListenState) -> Check {
    let (health, detail) = match state {
        ListenState::Hearing => (Health::Ok, "changes of other replicas are heard at once"),
        ListenState::Starting => {
            (Health::Degraded, "not proven yet; other replicas' changes come seconds late")
        }
        ListenState::Lost => (
            Health::Degraded,
            "the LISTEN connection is lost; other replicas' changes come seconds late",
        ),
        ListenState::Deaf => (
            Health::Degraded,
            "LISTEN is in force but nothing is heard, as behind a transaction pooler; set \
             LISTEN_DATABASE_URL; other replicas' changes come seconds late",
        ),
    };
    Check { name: "listen", health, detail: detail.to_owned() }
}
