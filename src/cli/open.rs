//! Opens databases for commands: the one place of the command line that names engines.

use std::sync::Arc;

use crate::{
    auth::revocation::RevocationList,
    clock::SystemClock,
    config::{EngineConfig, RevocationConfig, StoreConfig},
    store::{
        Store, StoreError,
        migrate::{AdoptionReport, MigrateError, SchemaState},
        transfer::Transfer,
    },
    telemetry::metrics::Metrics,
};

/// The engine's name, for messages.
pub(super) const fn engine_name(engine: &EngineConfig) -> &'static str {
    match engine {
        EngineConfig::Sqlite(_) => "sqlite",
        EngineConfig::Postgres(_) => "postgres",
    }
}

fn missing(engine: &EngineConfig) -> String {
    format!("this program was built without {}", engine_name(engine))
}

/// Where the database stands. Changes nothing.
pub(super) async fn schema_state(engine: &EngineConfig) -> Result<SchemaState, MigrateError> {
    Err(MigrateError::Unavailable(missing(engine)))
}

/// Applies what is missing, and takes over the Go server's data where that is allowed.
pub(super) async fn migrate(
    engine: &EngineConfig,
    _adopt: bool,
) -> Result<Option<AdoptionReport>, MigrateError> {
    Err(MigrateError::Unavailable(missing(engine)))
}

/// Opens the store as the service does, without announcing anything to anybody.
pub(super) async fn store(config: &StoreConfig) -> Result<Arc<dyn Store>, StoreError> {
    Err(StoreError::Unavailable(missing(&config.engine)))
}

/// Opens the database for moving its whole content.
pub(super) async fn transfer(config: &StoreConfig) -> Result<Box<dyn Transfer>, StoreError> {
    Err(StoreError::Unavailable(missing(&config.engine)))
}

/// Fetches the revocation list once; returns the number of its entries.
pub(super) async fn revocation_list(config: &RevocationConfig) -> anyhow::Result<usize> {
    let list = RevocationList::new(config, Arc::new(SystemClock), Arc::new(Metrics::new()))?;
    list.fetch_once().await?;
    Ok(list.entries().unwrap_or(0))
}
