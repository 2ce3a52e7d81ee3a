//! Lends connections for reads and locks, and bounds every wait for one and on one.

use std::{fmt, sync::Arc, time::Duration};

use deadpool_postgres::{
    Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime, Timeouts,
};
use prometheus::{Histogram, IntGauge};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::Row;

use super::{
    connect::Connector,
    error::{Fault, is_connection_fault},
    transaction::{self, Ended, Parameter},
};
use crate::{
    config::PostgresConfig,
    limits::{CANCEL_TIMEOUT, MAX_CONNECTIONS_TRIED, POSTGRES_ANSWER_GRACE},
    store::StoreError,
    tasks::Tasks,
    telemetry::metrics::Metrics,
};

/// The pooled connections of one store.
pub(super) struct Lender {
    pool: Pool,
    connector: Arc<Connector>,
    tasks: Tasks,
    wait: Duration,
    statement_timeout: Duration,
    idle: IntGauge,
    used: IntGauge,
    wait_seconds: Histogram,
}

impl fmt::Debug for Lender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lender").field("status", &self.pool.status()).finish_non_exhaustive()
    }
}

impl Lender {
    /// A pool without connections; they are made as they are asked for.
    pub(super) fn new(
        connector: Arc<Connector>,
        config: &PostgresConfig,
        tasks: &Tasks,
        metrics: &Metrics,
    ) -> Result<Self, StoreError> {
        let manager = Manager::from_config(
            connector.config().clone(),
            connector.tls(),
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        let limit = Some(config.connect_timeout);
        let pool = Pool::builder(manager)
            .max_size(config.pool_size)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts { wait: limit, create: limit, recycle: limit })
            .build()
            .map_err(|error| StoreError::Internal(error.to_string()))?;
        let state = |state| metrics.pool_connections.with_label_values(&[state]);
        Ok(Self {
            pool,
            connector,
            tasks: tasks.clone(),
            wait: config.connect_timeout,
            statement_timeout: config.statement_timeout,
            idle: state("idle"),
            used: state("used"),
            wait_seconds: metrics.pool_wait_seconds.clone(),
        })
    }

    /// Longest wait for a connection.
    pub(super) const fn wait(&self) -> Duration {
        self.wait
    }

    /// Runs one reading statement. Where the connection turns out to be dead, another is tried.
    pub(super) async fn read(
        &self,
        sql: &str,
        parameters: &[Parameter<'_>],
        deadline: Instant,
    ) -> Result<Vec<Row>, StoreError> {
        self.read_within(sql, parameters, deadline, self.statement_timeout).await
    }

    /// [`Self::read`] with another limit for the statement.
    pub(super) async fn read_within(
        &self,
        sql: &str,
        parameters: &[Parameter<'_>],
        deadline: Instant,
        limit: Duration,
    ) -> Result<Vec<Row>, StoreError> {
        self.read_lent_by(deadline, sql, parameters, deadline, limit).await
    }

    /// [`Self::read`] for several callers: none of their deadlines bounds the statement, and all
    /// of them hear that the database is out of reach when no connection is lent by `lent_by`.
    pub(super) async fn read_for_many(
        &self,
        lent_by: Instant,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        let limit = self.statement_timeout;
        let deadline = Instant::now() + self.wait + limit;
        self.read_lent_by(lent_by, sql, parameters, deadline, limit).await.map_err(for_many)
    }

    async fn read_lent_by(
        &self,
        lent_by: Instant,
        sql: &str,
        parameters: &[Parameter<'_>],
        deadline: Instant,
        limit: Duration,
    ) -> Result<Vec<Row>, StoreError> {
        let mut tried = 0;
        loop {
            let client = self.lend(lent_by).await?;
            let until = deadline.min(Instant::now() + limit);
            let parameters = parameters.iter().map(|(value, kind)| (*value, kind.clone()));
            let parameters: Vec<Parameter<'_>> = parameters.collect();
            match timeout_at(until, client.query_typed(sql, &parameters)).await {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(error)) if is_connection_fault(&error) => {
                    discard(client);
                    tried += 1;
                    if tried == MAX_CONNECTIONS_TRIED {
                        return Err(StoreError::from(&error));
                    }
                }
                Ok(Err(error)) => return Err(StoreError::from(&error)),
                Err(_elapsed) => {
                    self.cancel(client);
                    return Err(late(deadline, "the statement took too long"));
                }
            }
        }
    }

    /// Runs one call in a transaction of its own; see [`transaction`].
    pub(super) async fn transact(
        &self,
        begin: &str,
        call: &str,
        parameters: &[Parameter<'_>],
        deadline: Instant,
        limit: Duration,
    ) -> Result<Ended, StoreError> {
        self.transact_lent_by(deadline, begin, call, parameters, deadline, limit).await
    }

    /// [`Self::transact`] for several callers; see [`Self::read_for_many`].
    pub(super) async fn transact_for_many(
        &self,
        lent_by: Instant,
        begin: &str,
        call: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Ended, StoreError> {
        let limit = self.statement_timeout;
        let deadline = Instant::now() + self.wait + limit + POSTGRES_ANSWER_GRACE;
        let ended = self.transact_lent_by(lent_by, begin, call, parameters, deadline, limit).await;
        ended.map_err(for_many)
    }

    async fn transact_lent_by(
        &self,
        lent_by: Instant,
        begin: &str,
        call: &str,
        parameters: &[Parameter<'_>],
        deadline: Instant,
        limit: Duration,
    ) -> Result<Ended, StoreError> {
        let client = self.lend(lent_by).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = left.min(limit + POSTGRES_ANSWER_GRACE);
        let ended = transaction::run(&client, begin, call, parameters, limit).await;
        match &ended {
            Ended::Unknown(_) if !client.is_closed() => self.cancel(client),
            Ended::Unknown(_) => discard(client),
            Ended::Committed(_) | Ended::RolledBack(_) => {}
        }
        Ok(ended)
    }

    /// Lends a connection for several statements; whoever borrows bounds their time.
    pub(super) async fn lend(&self, deadline: Instant) -> Result<Object, StoreError> {
        let started = Instant::now();
        if deadline <= started {
            return Err(StoreError::DeadlineExceeded);
        }
        let lent = timeout_at(deadline.min(started + self.wait), self.pool.get()).await;
        self.wait_seconds.observe(started.elapsed().as_secs_f64());
        self.count();
        match lent {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) => Err(refusal(&error)),
            Err(_elapsed) => Err(late(deadline, "no connection was free in time")),
        }
    }

    /// Lets every connection go; later calls fail at once.
    pub(super) fn close(&self) {
        self.pool.close();
        self.count();
    }

    fn count(&self) {
        let status = self.pool.status();
        let idle = status.available.min(status.size);
        self.idle.set(i64::try_from(idle).unwrap_or(i64::MAX));
        self.used.set(i64::try_from(status.size - idle).unwrap_or(i64::MAX));
    }

    /// Drops a connection whose statement still runs, and asks the server to stop it.
    fn cancel(&self, client: Object) {
        let token = client.cancel_token();
        discard(client);
        let tls = self.connector.tls();
        self.tasks.spawn("postgres cancel", async move {
            match timeout(CANCEL_TIMEOUT, token.cancel_query(tls)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a statement could not be cancelled"),
                Err(_elapsed) => tracing::debug!("cancelling a statement took too long"),
            }
        });
    }
}

/// Takes a connection out of the pool, which may then make another.
fn discard(client: Object) {
    drop(Object::take(client));
}

/// None of several callers' deadlines was the one that passed.
fn for_many(error: StoreError) -> StoreError {
    match error {
        StoreError::DeadlineExceeded => {
            StoreError::Unavailable("no connection was free in time".to_owned())
        }
        error => error,
    }
}

/// The error of a wait that was cut: by the caller's deadline, or by a limit of ours.
pub(super) fn late(deadline: Instant, otherwise: &str) -> StoreError {
    if deadline <= Instant::now() {
        StoreError::DeadlineExceeded
    } else {
        StoreError::Unavailable(otherwise.to_owned())
    }
}

fn refusal(error: &PoolError) -> StoreError {
    match error {
        PoolError::Backend(error) => match Fault::of(error) {
            // Whatever the cause, without a connection there is no database to serve from.
            Fault::Other(StoreError::Internal(text)) => StoreError::Unavailable(text),
            fault => fault.into_store_error(),
        },
        PoolError::Closed => StoreError::Unavailable("the store is closed".to_owned()),
        PoolError::Timeout(_) => {
            StoreError::Unavailable("no connection was ready in time".to_owned())
        }
        error => StoreError::Internal(error.to_string()),
    }
}
