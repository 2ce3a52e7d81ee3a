//! Opens databases for commands: the one place of the command line that names engines.

use std::sync::Arc;

use anyhow::Context as _;

#[cfg(feature = "postgres")]
use crate::store::postgres::{self, PostgresStore};
#[cfg(feature = "sqlite")]
use crate::store::sqlite::{self, SqliteStore};
use crate::{
    auth::revocation::RevocationList,
    clock::SystemClock,
    config::{EngineConfig, LogFormat, RevocationConfig, StoreConfig, TelemetryConfig},
    limits::TASK_JOIN_TIMEOUT,
    notify::{Hub, LocalFeed},
    store::{
        Store, StoreContext,
        migrate::{AdoptionReport, MigrateError, SchemaState},
        transfer::Transfer,
    },
    tasks::Tasks,
    telemetry::{Telemetry, metrics::Metrics},
};

/// The engine's name, for messages.
pub(super) const fn engine_name(engine: &EngineConfig) -> &'static str {
    match engine {
        EngineConfig::Sqlite(_) => "sqlite",
        EngineConfig::Postgres(_) => "postgres",
    }
}

/// What a program says that lacks the engine.
#[cfg(not(all(feature = "postgres", feature = "sqlite")))]
fn missing(engine: &EngineConfig) -> MigrateError {
    let name = engine_name(engine);
    MigrateError::Unavailable(format!("this program was built without {name}"))
}

/// Shows the warnings of what a command sets in motion, on standard error.
pub(super) fn log_warnings() -> anyhow::Result<()> {
    let telemetry = Telemetry::init(&TelemetryConfig {
        log_level: "warn".to_owned(),
        log_format: LogFormat::Text,
        otlp_endpoint: None,
        trace_sample_ratio: 0.0,
    });
    telemetry.context("cannot set up the log")?;
    Ok(())
}

/// Work that blocks on the file system, off the runtime's thread.
#[cfg(feature = "sqlite")]
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MigrateError> + Send + 'static,
) -> Result<T, MigrateError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|error| Err(MigrateError::Unavailable(error.to_string())))
}

/// Where the database stands. Changes nothing.
pub(super) async fn schema_state(engine: &EngineConfig) -> Result<SchemaState, MigrateError> {
    match engine {
        #[cfg(feature = "sqlite")]
        EngineConfig::Sqlite(config) => {
            let config = config.clone();
            blocking(move || sqlite::schema_state(&config)).await
        }
        #[cfg(feature = "postgres")]
        EngineConfig::Postgres(config) => postgres::schema_state(config).await,
        #[cfg(not(all(feature = "postgres", feature = "sqlite")))]
        engine => Err(missing(engine)),
    }
}

/// Applies what is missing, and takes over the Go server's data: always in SQLite, where a copy
/// stays beside the file, and only if `adopt` says so in Postgres.
#[cfg_attr(not(feature = "postgres"), allow(unused_variables, reason = "SQLite never asks"))]
pub(super) async fn migrate(
    engine: &EngineConfig,
    adopt: bool,
) -> Result<Option<AdoptionReport>, MigrateError> {
    match engine {
        #[cfg(feature = "sqlite")]
        EngineConfig::Sqlite(config) => {
            let config = config.clone();
            blocking(move || sqlite::migrate(&config, &SystemClock)).await
        }
        #[cfg(feature = "postgres")]
        EngineConfig::Postgres(config) => {
            let (_, report) = postgres::migrate(config, adopt).await?;
            Ok(report)
        }
        #[cfg(not(all(feature = "postgres", feature = "sqlite")))]
        engine => Err(missing(engine)),
    }
}

/// A database opened for a command.
pub(super) struct Database {
    /// As the service uses it, but nobody hears of its writes.
    pub(super) store: Arc<dyn Store>,
    /// For moving its whole content.
    pub(super) transfer: Arc<dyn Transfer>,
    tasks: Tasks,
}

impl Database {
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    fn new<Engine: Store + Transfer>(engine: Engine, tasks: Tasks) -> Self {
        let engine = Arc::new(engine);
        let transfer = Arc::clone(&engine);
        Self { store: engine, transfer, tasks }
    }

    /// Lets the database go.
    pub(super) async fn close(self) {
        self.store.close().await;
        self.tasks.stop(TASK_JOIN_TIMEOUT).await;
    }
}

/// Opens a database whose schema is ready.
pub(super) async fn database(config: &StoreConfig) -> anyhow::Result<Database> {
    let metrics = Arc::new(Metrics::new());
    let context = StoreContext {
        feed: Arc::new(LocalFeed::new(Arc::new(Hub::new()), &metrics)),
        quotas: config.quotas,
        clock: Arc::new(SystemClock),
        metrics,
    };
    let tasks = Tasks::new();
    match &config.engine {
        #[cfg(feature = "sqlite")]
        EngineConfig::Sqlite(config) => {
            let config = config.clone();
            let store = blocking(move || SqliteStore::open(&config, context)).await?;
            Ok(Database::new(store, tasks))
        }
        #[cfg(feature = "postgres")]
        EngineConfig::Postgres(config) => {
            let store = PostgresStore::open(config, context, &tasks)?;
            Ok(Database::new(store, tasks))
        }
        #[cfg(not(all(feature = "postgres", feature = "sqlite")))]
        engine => {
            drop((context, tasks));
            Err(missing(engine).into())
        }
    }
}

/// Fetches the revocation list once; returns the number of its entries.
pub(super) async fn revocation_list(config: &RevocationConfig) -> anyhow::Result<usize> {
    let list = RevocationList::new(config, Arc::new(SystemClock), Arc::new(Metrics::new()))?;
    list.fetch_once().await?;
    Ok(list.entries().unwrap_or(0))
}
