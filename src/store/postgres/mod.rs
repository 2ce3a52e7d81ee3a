//! The engine for any number of replicas.
//!
//! Records are written in batches by [`writer`] tasks that own their connections; short pages are
//! read in batches by the readers of [`lists`]; these and everything else borrow from a [`pool`]. The rules themselves live in the functions of
//! `migrations/postgres`; this module carries requests there and answers back. Nothing needs a
//! session: a transaction pooler may stand between.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::{Instant, timeout};
use tokio_postgres::Row;
use tokio_util::sync::CancellationToken;

use super::{
    LockOutcome, LockRequest, Page, PageLimit, RecordWrite, Store, StoreContext, StoreError,
    StoreStatus, StoredRecord, UserId, WriteOutcome,
};
use crate::{config::PostgresConfig, limits::STORE_CLOSE_TIMEOUT, tasks::Tasks};

mod adopt;
mod batch;
mod connect;
mod error;
mod grouped;
mod lanes;
mod lists;
mod locks;
mod migrate;
mod pool;
mod records;
mod status;
mod tls;
mod transaction;
mod transfer;
mod url;
mod writer;

pub use migrate::{migrate, schema_state};

pub(crate) use connect::{Connection, Connector};
pub(crate) use writer::jittered;

use grouped::Grouped;
use lists::{List, Lists};
use locks::Locks;
use pool::Lender;
use status::StatusCheck;
use writer::Writers;

/// Records, heads and locks in Postgres.
#[derive(Debug)]
pub struct PostgresStore {
    lender: Arc<Lender>,
    lists: Grouped<Lists>,
    writers: Writers,
    locks: Locks,
    status: StatusCheck,
    /// Set once the store is closed or the process stops; no call is begun afterwards.
    closed: CancellationToken,
}

impl PostgresStore {
    /// Prepares a store; contacts nobody. Connections are made when needed and made anew when
    /// lost, so a database that is down is no reason not to start.
    ///
    /// # Errors
    /// `Internal` for a URL or an authority file that cannot be used.
    pub fn open(
        config: &PostgresConfig,
        context: StoreContext,
        tasks: &Tasks,
    ) -> Result<Self, StoreError> {
        let connector = Arc::new(Connector::new(&config.url, config, tasks)?);
        connector.log_oddities();
        let closed = tasks.stop_signal().child_token();
        let StoreContext { feed, quotas, clock: _, metrics } = context;
        let lender = Arc::new(Lender::new(Arc::clone(&connector), config, tasks, &metrics)?);
        let lists = Grouped::start(Lists, &lender, tasks, &closed);
        let locks = Locks::start(
            config.statement_timeout,
            quotas.max_locks,
            metrics.store_retries.clone(),
            &lender,
            tasks,
            &closed,
        );
        let status = StatusCheck::new(
            Arc::clone(&connector),
            config.connect_timeout,
            metrics.schema_version.clone(),
        );
        let writers = Writers::start(config, &connector, &feed, quotas, &metrics, tasks, &closed);
        Ok(Self { lender, lists, writers, locks, status, closed })
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.closed.is_cancelled() {
            return Err(StoreError::Unavailable("the store is closed".to_owned()));
        }
        Ok(())
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn set_record(
        &self,
        write: RecordWrite,
        deadline: Instant,
    ) -> Result<WriteOutcome, StoreError> {
        self.check_open()?;
        self.writers.write(write, deadline).await
    }

    async fn record(
        &self,
        user: UserId,
        id: &str,
        deadline: Instant,
    ) -> Result<Option<StoredRecord>, StoreError> {
        records::record(&self.lender, user, id, deadline).await
    }

    async fn list_changes(
        &self,
        user: UserId,
        since: u64,
        limit: PageLimit,
        deadline: Instant,
    ) -> Result<Page, StoreError> {
        // Who lists from the beginning finds much, most often.
        if since > 0
            && let Some(page) = self.lists.make(List { user, since, limit }, deadline).await?
        {
            return Ok(page);
        }
        records::list_changes(&self.lender, user, since, limit, deadline).await
    }

    async fn heads(&self, users: &[UserId], deadline: Instant) -> Result<Vec<u64>, StoreError> {
        // Behind every revision there is nothing but the head.
        if let [user] = *users {
            let list = List { user, since: u64::MAX, limit: PageLimit::WIRE };
            if let Some(page) = self.lists.make(list, deadline).await? {
                return Ok(vec![page.head]);
            }
        }
        records::heads(&self.lender, users, deadline).await
    }

    async fn set_lock(
        &self,
        request: LockRequest,
        deadline: Instant,
    ) -> Result<LockOutcome, StoreError> {
        self.locks.set(&self.lender, &request, deadline).await
    }

    async fn is_locked(
        &self,
        user: UserId,
        name: &str,
        deadline: Instant,
    ) -> Result<bool, StoreError> {
        self.locks.is_locked(user, name, deadline).await
    }

    async fn status(&self, deadline: Instant) -> Result<StoreStatus, StoreError> {
        self.check_open()?;
        self.status.ask(deadline).await
    }

    fn engine(&self) -> &'static str {
        "postgres"
    }

    async fn close(&self) {
        let finished = self.writers.finish(STORE_CLOSE_TIMEOUT).await;
        if !finished {
            tracing::warn!("writes were still waiting when the store was closed");
        }
        self.closed.cancel();
        self.lender.close();
        if timeout(Duration::from_secs(1), self.status.close()).await.is_err() {
            tracing::debug!("a status check was still running when the store was closed");
        }
    }
}

/// Runs one call in a transaction of its own; see [`transaction`].
///
/// # Errors
/// Any but `DeadlineExceeded`; the connection must then not be used again, and whether the
/// transaction was committed is not known.
pub(crate) async fn transact(
    client: &tokio_postgres::Client,
    begin: &str,
    call: &str,
    parameters: &[transaction::Parameter<'_>],
    limit: Duration,
) -> Result<Vec<Row>, StoreError> {
    match transaction::run(client, begin, call, parameters, limit).await {
        transaction::Ended::Committed(rows) => Ok(rows),
        transaction::Ended::RolledBack(fault) => Err(fault.into_store_error()),
        transaction::Ended::Unknown(reason) => Err(StoreError::Unavailable(reason)),
    }
}

/// A limit as the functions take it, where none is more than anybody can hold.
fn bound(limit: Option<u64>) -> i64 {
    limit.and_then(|limit| i64::try_from(limit).ok()).unwrap_or(i64::MAX / 2)
}

/// A number as SQL has it; a larger one than SQL can name means "all".
fn bigint<N: TryInto<i64>>(number: N) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// A column that holds a count, a revision or a time.
fn number(row: &Row, column: usize) -> Result<u64, StoreError> {
    let value: i64 = row.try_get(column).map_err(|error| text_error(&error))?;
    u64::try_from(value)
        .map_err(|_negative| StoreError::Internal(format!("column {column} is negative")))
}

/// An answer that does not have the shape this program expects.
fn text_error(error: &tokio_postgres::Error) -> StoreError {
    StoreError::Internal(format!("an answer of postgres cannot be read: {error}"))
}
