//! The embedded engine: one file, one thread that writes, a few connections that read.
//!
//! The log is written ahead (WAL) and flushed at every commit; writes that wait share one. The
//! single writer makes every rule of [`Store`] plain sequential code, and nobody ever hears
//! "database is locked". Another process may use the file too: SQLite keeps the data right, but
//! the other process's changes are announced there only, so a second server is warned about.

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    LockOutcome, LockRequest, Page, PageLimit, RecordWrite, Store, StoreContext, StoreError,
    StoreStatus, StoredRecord, UserId, WriteOutcome,
    migrate::{LegacyState, MigrateError},
};
use crate::{config::SqliteConfig, limits::SQLITE_READERS};

mod adopt;
mod connection;
mod locks;
mod migrate;
mod readers;
mod records;
#[cfg(test)]
mod tests;
mod transfer;
mod writer;

pub use migrate::{MIGRATIONS, migrate, schema_state};
use readers::Readers;
use writer::{Operation, Outcome, Writer};

/// A store in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    context: StoreContext,
    writer: Writer,
    readers: Readers,
    /// Apart from the others, so that asking for the status never waits for them.
    status_reader: Readers,
    /// Held while this process serves the file, if it was the first.
    serving: Option<File>,
}

impl SqliteStore {
    /// Opens a file whose schema is ready; see [`schema_state`] and [`migrate`]. Blocks on the
    /// file system.
    ///
    /// # Errors
    /// [`MigrateError::Unadopted`] for a file of the Go server, [`MigrateError::Unavailable`] for
    /// one that cannot be opened or misses migrations.
    pub fn open(config: &SqliteConfig, context: StoreContext) -> Result<Self, MigrateError> {
        let state = schema_state(config)?;
        if state.legacy == LegacyState::Unadopted {
            return Err(MigrateError::Unadopted);
        }
        if !state.is_ready() {
            let reason =
                format!("schema is at version {}, {} is needed", state.applied, state.latest);
            return Err(MigrateError::Unavailable(reason));
        }
        context.metrics.schema_version.set(i64::from(state.applied));
        let path = &config.path;
        let serving = announce_serving(path);
        let connection = connection::open_writer(path).map_err(unavailable)?;
        let readers = Readers::open(path, SQLITE_READERS).map_err(unavailable)?;
        let status_reader = Readers::open(path, 1).map_err(unavailable)?;
        let writer = Writer::start(connection, context.clone())
            .map_err(|error| MigrateError::Unavailable(error.to_string()))?;
        Ok(Self { context, writer, readers, status_reader, serving })
    }

    /// Reads beside the writer. Refused once the writer is gone: a store that cannot write is
    /// no store, and another replica of the process must take over.
    async fn read<T, F>(&self, deadline: Instant, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.check_writer()?;
        self.readers.read(deadline, read).await
    }

    /// Another process had the file first.
    const fn is_served_elsewhere(&self) -> bool {
        self.serving.is_none()
    }

    fn check_writer(&self) -> Result<(), StoreError> {
        if self.writer.is_gone() {
            return Err(StoreError::Unavailable("the store is closed".to_owned()));
        }
        Ok(())
    }
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "used as a function of `map_err`, which hands over the error"
)]
fn unavailable(error: rusqlite::Error) -> MigrateError {
    MigrateError::Unavailable(connection::reason(&error))
}

/// Takes the mark that this process serves the file, and warns if another holds it. Only a
/// warning: a rolling restart overlaps for a moment, and the data is safe.
fn announce_serving(path: &Path) -> Option<File> {
    let mark = beside(path, "serving");
    let file = OpenOptions::new().create(true).append(true).open(&mark);
    let marked = file.and_then(|file| file.try_lock().map(|()| file).map_err(Into::into));
    marked
        .inspect_err(|error| {
            tracing::warn!(
                %error,
                "another process seems to serve this sqlite file, its changes are not told here at once"
            );
        })
        .ok()
}

/// The path of a file next to the database.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

/// The writer answered a record with a lock or the other way round, which its code rules out.
fn mixed_up() -> StoreError {
    StoreError::Internal("the writer mixed up its answers".to_owned())
}

#[async_trait]
impl Store for SqliteStore {
    async fn set_record(
        &self,
        write: RecordWrite,
        deadline: Instant,
    ) -> Result<WriteOutcome, StoreError> {
        match self.writer.write(Operation::Record(write), deadline).await? {
            Outcome::Record(outcome) => Ok(outcome),
            Outcome::Lock(_) => Err(mixed_up()),
        }
    }

    async fn record(
        &self,
        user: UserId,
        id: &str,
        deadline: Instant,
    ) -> Result<Option<StoredRecord>, StoreError> {
        let id = id.to_owned();
        self.read(deadline, move |connection| records::record(connection, user, &id)).await
    }

    async fn list_changes(
        &self,
        user: UserId,
        since: u64,
        limit: PageLimit,
        deadline: Instant,
    ) -> Result<Page, StoreError> {
        self.read(deadline, move |connection| records::changes(connection, user, since, limit))
            .await
    }

    async fn heads(&self, users: &[UserId], deadline: Instant) -> Result<Vec<u64>, StoreError> {
        let users = users.to_vec();
        self.read(deadline, move |connection| records::heads(connection, &users)).await
    }

    async fn set_lock(
        &self,
        request: LockRequest,
        deadline: Instant,
    ) -> Result<LockOutcome, StoreError> {
        match self.writer.write(Operation::Lock(request), deadline).await? {
            Outcome::Lock(outcome) => Ok(outcome),
            Outcome::Record(_) => Err(mixed_up()),
        }
    }

    async fn is_locked(
        &self,
        user: UserId,
        name: &str,
        deadline: Instant,
    ) -> Result<bool, StoreError> {
        let name = name.to_owned();
        let clock = self.context.clock.clone();
        self.read(deadline, move |connection| {
            locks::is_locked(connection, user, &name, clock.now_ms())
        })
        .await
    }

    async fn status(&self, deadline: Instant) -> Result<StoreStatus, StoreError> {
        self.check_writer()?;
        let schema_version = self.status_reader.read(deadline, migrate::applied).await?;
        Ok(StoreStatus { schema_version, database_time_ms: self.context.clock.now_ms() })
    }

    fn engine(&self) -> &'static str {
        "sqlite"
    }

    async fn close(&self) {
        self.readers.close().await;
        self.status_reader.close().await;
        if !self.writer.close().await {
            tracing::warn!("sqlite writer did not end in time");
        }
    }
}
