//! Opens the store behind listeners that are up already.

use std::sync::Arc;

use super::Replica;
use crate::{
    auth::Authenticator,
    config::EngineConfig,
    store::{Store, StoreContext, memory::MemoryStore},
};

impl Replica {
    pub(super) fn instrumented_store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as Arc<dyn Store>
    }

    /// Who may call; with a revocation list that was asked for once already.
    pub(super) async fn authenticator(&self) -> anyhow::Result<Arc<Authenticator>> {
        let config = self.config.api_key.as_ref();
        let auth = Authenticator::new(config, &self.clock, Arc::clone(&self.metrics))?;
        if let Some(list) = auth.revocation() {
            let list = Arc::clone(list);
            if let Err(error) = list.fetch_once().await {
                tracing::warn!(%error, "cannot fetch the revocation list");
            }
            let stop = self.background.stop_signal();
            self.background.spawn("revocation list", async move { list.run(stop).await });
        }
        Ok(Arc::new(auth))
    }

    pub(super) async fn open_store(&self) -> anyhow::Result<()> {
        let context = StoreContext {
            feed: Arc::clone(&self.feed),
            quotas: self.config.store.quotas,
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
        };
        match &self.config.store.engine {
            EngineConfig::Sqlite(_) | EngineConfig::Postgres(_) => {
                self.store.set(Arc::new(MemoryStore::new(context)));
            }
        }
        self.health.set_ready(true).await;
        Ok(())
    }
}
