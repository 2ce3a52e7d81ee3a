//! Opens the store behind listeners that are up already.
//!
//! A database that is out of reach at start is waited for: the replica is alive and not ready.
//! What waiting cannot cure (a failed migration, an unadopted database) ends the process.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};

use super::Replica;
#[cfg(feature = "postgres")]
use crate::store::postgres::{self, PostgresStore};
#[cfg(feature = "sqlite")]
use crate::store::sqlite::{self, SqliteStore};
use crate::{
    auth::Authenticator,
    config::{EngineConfig, MigrateMode, PostgresConfig, SqliteConfig},
    limits,
    store::{
        Store, StoreContext,
        migrate::{AdoptionReport, MigrateError, SchemaState},
    },
};

impl Replica {
    /// Who may call; with a revocation list that was asked for once already.
    pub(super) async fn authenticator(&self) -> anyhow::Result<Arc<Authenticator>> {
        let config = self.config.api_key.as_ref();
        let auth = Authenticator::new(config, &self.clock, Arc::clone(&self.metrics))?;
        if let Some(list) = auth.revocation() {
            let list = Arc::clone(list);
            // A failure is logged and counted there, and the policy says what it means.
            let _ = list.fetch_once().await;
            let stop = self.background.stop_signal();
            self.background.spawn("revocation list", async move { list.run(stop).await });
        }
        Ok(Arc::new(auth))
    }

    /// Opens the store and turns the replica ready. Waits for as long as the database is away.
    pub(super) async fn open_store(&self) -> anyhow::Result<()> {
        let context = StoreContext {
            feed: Arc::clone(&self.feed),
            quotas: self.config.store.quotas,
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
        };
        let store = match &self.config.store.engine {
            EngineConfig::Sqlite(config) => self.open_sqlite(config.clone(), context).await?,
            EngineConfig::Postgres(config) => self.open_postgres(config, context).await?,
        };
        self.store.set(store);
        self.health.set_ready(true).await;
        Ok(())
    }

    #[cfg(feature = "sqlite")]
    async fn open_sqlite(
        &self,
        config: SqliteConfig,
        context: StoreContext,
    ) -> anyhow::Result<Arc<dyn Store>> {
        let clock = Arc::clone(&self.clock);
        self.prepare_schema(async || {
            let (config, clock) = (config.clone(), Arc::clone(&clock));
            let migrates = self.config.migrate == MigrateMode::Auto;
            blocking(move || {
                let adopted =
                    if migrates { sqlite::migrate(&config, clock.as_ref())? } else { None };
                Ok(Prepared { state: sqlite::schema_state(&config)?, adopted })
            })
            .await
        })
        .await?;
        let store = blocking(move || SqliteStore::open(&config, context)).await?;
        Ok(Arc::new(store))
    }

    #[cfg(not(feature = "sqlite"))]
    async fn open_sqlite(
        &self,
        _config: SqliteConfig,
        _context: StoreContext,
    ) -> anyhow::Result<Arc<dyn Store>> {
        bail!("this program was built without sqlite; set DATABASE_URL")
    }

    #[cfg(feature = "postgres")]
    async fn open_postgres(
        &self,
        config: &PostgresConfig,
        context: StoreContext,
    ) -> anyhow::Result<Arc<dyn Store>> {
        self.prepare_schema(async || match self.config.migrate {
            MigrateMode::Auto => {
                let (state, adopted) = postgres::migrate(config, false).await?;
                Ok(Prepared { state, adopted })
            }
            MigrateMode::Wait | MigrateMode::Off => {
                Ok(Prepared { state: postgres::schema_state(config).await?, adopted: None })
            }
        })
        .await?;
        Ok(Arc::new(PostgresStore::open(config, context, &self.background)?))
    }

    #[cfg(not(feature = "postgres"))]
    async fn open_postgres(
        &self,
        _config: &PostgresConfig,
        _context: StoreContext,
    ) -> anyhow::Result<Arc<dyn Store>> {
        bail!("this program was built without postgres; unset DATABASE_URL")
    }

    /// Tries again and again until the schema serves this program.
    async fn prepare_schema(
        &self,
        attempt: impl AsyncFn() -> Result<Prepared, MigrateError>,
    ) -> anyhow::Result<()> {
        let mut pause = limits::STORE_OPEN_FIRST_PAUSE;
        loop {
            match attempt().await {
                Ok(Prepared { state, adopted }) => {
                    if let Some(report) = adopted {
                        tracing::info!(%report, "took over the data of the Go server");
                    }
                    self.metrics.schema_version.set(state.applied.into());
                    self.metrics.schema_latest_version.set(state.latest.into());
                    if state.is_ready() {
                        return Ok(());
                    }
                    self.check_wait(&state)?;
                }
                Err(error @ (MigrateError::Unavailable(_) | MigrateError::Locked(_))) => {
                    tracing::warn!(%error, "cannot prepare the database yet, trying again");
                }
                Err(error) => return Err(error).context("cannot prepare the database"),
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(limits::STORE_OPEN_MAX_PAUSE);
        }
    }

    /// Whether a schema that is behind is to be waited for.
    fn check_wait(&self, state: &SchemaState) -> anyhow::Result<()> {
        let SchemaState { applied, latest, .. } = *state;
        if self.config.migrate == MigrateMode::Off {
            bail!(
                "the database is at schema version {applied}, {latest} is needed; run `data-sync migrate` or set MIGRATE=auto"
            );
        }
        tracing::info!(applied, latest, "waiting for `data-sync migrate`");
        Ok(())
    }
}

/// What one attempt at a ready schema came to.
struct Prepared {
    state: SchemaState,
    /// What was taken over from the Go server, if this attempt did.
    adopted: Option<AdoptionReport>,
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.0))
}

/// Runs file-system work apart from the async threads.
#[cfg(feature = "sqlite")]
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MigrateError> + Send + 'static,
) -> Result<T, MigrateError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(MigrateError::Unavailable(error.to_string())))
}
