//! Opens single connections: those of writers, of the status check and of migrations.

use std::time::Duration;

use tokio_postgres::{Client, Socket, tls::MakeTlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{error::Fault, tls, url::Target};
use crate::{
    config::{PostgresConfig, Secret},
    store::StoreError,
    tasks::Tasks,
};

/// What does the reading and writing of one connection.
pub(crate) type Connection =
    tokio_postgres::Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// Knows how to reach one database.
#[derive(Clone)]
pub(crate) struct Connector {
    target: Target,
    tls: MakeRustlsConnect,
    timeout: Duration,
    tasks: Tasks,
}

impl Connector {
    /// Reads `url` and the authorities of its server; contacts nobody.
    pub(crate) fn new(
        url: &Secret,
        config: &PostgresConfig,
        tasks: &Tasks,
    ) -> Result<Self, StoreError> {
        let target =
            Target::parse(url.expose()).map_err(|error| StoreError::Internal(error.to_string()))?;
        let tls =
            tls::connector(&target, config.ca_file.as_deref()).map_err(StoreError::Internal)?;
        Ok(Self { target, tls, timeout: config.connect_timeout, tasks: tasks.clone() })
    }

    /// Says what in the URL has no effect.
    pub(super) fn log_oddities(&self) {
        if !self.target.ignored.is_empty() {
            tracing::warn!(
                parameters = self.target.ignored.join(","),
                "parameters of the database url have no meaning here and are ignored"
            );
        }
    }

    /// The driver's view of the URL.
    pub(super) const fn config(&self) -> &tokio_postgres::Config {
        &self.target.config
    }

    /// What dials with TLS.
    pub(super) fn tls(&self) -> MakeRustlsConnect {
        self.tls.clone()
    }

    /// Where unqualified names are looked up, if the URL says so.
    pub(super) fn search_path(&self) -> Option<&str> {
        self.target.search_path.as_deref()
    }

    /// Opens a connection; it closes when the client is dropped.
    pub(crate) async fn connect(&self) -> Result<Client, StoreError> {
        let (client, connection) = self.connect_apart().await?;
        self.tasks.spawn("postgres connection", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to postgres ended");
            }
        });
        Ok(client)
    }

    /// Opens a connection that the caller drives.
    pub(crate) async fn connect_apart(&self) -> Result<(Client, Connection), StoreError> {
        let dialled = tokio::time::timeout(self.timeout, self.config().connect(self.tls()));
        dialled
            .await
            .map_err(|_elapsed| StoreError::Unavailable("connecting took too long".to_owned()))?
            .map_err(|error| match Fault::of(&error) {
                // Whatever the cause, without a connection there is no database to serve from.
                Fault::Other(StoreError::Internal(text)) => StoreError::Unavailable(text),
                fault => fault.into_store_error(),
            })
    }
}
