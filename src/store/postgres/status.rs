//! Asks the database how it is, over a connection of its own: a pool in use must not look like a
//! database that is down.

use std::{fmt, sync::Arc, time::Duration};

use prometheus::IntGauge;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};
use tokio_postgres::Client;

use super::{connect::Connector, number, pool::late, text_error};
use crate::store::{StoreError, StoreStatus};

const STATUS: &str = "SELECT coalesce(max(version), 0)::int8, \
                      floor(extract(epoch FROM clock_timestamp()) * 1000)::int8 \
                      FROM data_sync.migrations";

/// The connection kept for it, made when first needed.
pub(super) struct StatusCheck {
    connector: Arc<Connector>,
    client: Mutex<Option<Client>>,
    /// Longest time one check may take: for connecting and for the answer.
    limit: Duration,
    schema_version: IntGauge,
}

impl fmt::Debug for StatusCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusCheck").finish_non_exhaustive()
    }
}

impl StatusCheck {
    pub(super) fn new(
        connector: Arc<Connector>,
        connect_timeout: Duration,
        schema_version: IntGauge,
    ) -> Self {
        Self { connector, client: Mutex::new(None), limit: connect_timeout * 2, schema_version }
    }

    /// Newest migration and time, by the database's own word.
    pub(super) async fn ask(&self, deadline: Instant) -> Result<StoreStatus, StoreError> {
        let until = deadline.min(Instant::now() + self.limit);
        timeout_at(until, self.ask_in_turn())
            .await
            .map_err(|_elapsed| late(deadline, "the database did not answer a check in time"))?
    }

    async fn ask_in_turn(&self) -> Result<StoreStatus, StoreError> {
        let mut kept = self.client.lock().await;
        // Taken out, so that a check cut short leaves no half-read connection behind.
        let client = match kept.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.connector.connect().await?,
        };
        let rows = client.query_typed(STATUS, &[]).await.map_err(|e| StoreError::from(&e))?;
        let row = rows
            .first()
            .ok_or_else(|| StoreError::Internal("the status came without an answer".to_owned()))?;
        let schema_version: i64 = row.try_get(0).map_err(|error| text_error(&error))?;
        let database_time_ms = number(row, 1)?;
        *kept = Some(client);
        self.schema_version.set(schema_version);
        let schema_version = u32::try_from(schema_version).unwrap_or(u32::MAX);
        Ok(StoreStatus { schema_version, database_time_ms })
    }

    /// Lets the connection go.
    pub(super) async fn close(&self) {
        self.client.lock().await.take();
    }
}
