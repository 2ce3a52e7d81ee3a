//! A few connections that read beside the writer, off the async threads.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::Connection;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

use super::connection::{open_reader, store_error};
use crate::{
    limits::{MAX_QUEUED_SQLITE_READS, SQLITE_CLOSE_TIMEOUT},
    store::StoreError,
};

/// A bounded pool of reading connections.
#[derive(Debug)]
pub(super) struct Readers {
    size: usize,
    idle: Arc<Mutex<Vec<Connection>>>,
    /// One permit per connection.
    free: Arc<Semaphore>,
    /// One permit per read that waits or runs.
    queue: Arc<Semaphore>,
}

/// A connection on loan; goes back when dropped, also by a panic, and frees its place then.
struct Loan {
    connection: Option<Connection>,
    idle: Arc<Mutex<Vec<Connection>>>,
    _free: OwnedSemaphorePermit,
    _queued: OwnedSemaphorePermit,
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".to_owned())
}

impl Readers {
    /// Opens `size` connections to the file.
    pub(super) fn open(path: &Path, size: usize) -> rusqlite::Result<Self> {
        let connections = (0..size).map(|_| open_reader(path)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            size,
            idle: Arc::new(Mutex::new(connections)),
            free: Arc::new(Semaphore::new(size)),
            queue: Arc::new(Semaphore::new(MAX_QUEUED_SQLITE_READS)),
        })
    }

    /// Runs `read` in one read transaction on a free connection.
    pub(super) async fn read<T, F>(&self, deadline: Instant, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let loan = self.borrow(deadline).await?;
        // A caller that gives up leaves the read running: the loan ends with it.
        let task = tokio::task::spawn_blocking(move || {
            let mut loan = loan;
            let connection = loan.connection.as_mut().ok_or_else(closed)?;
            let transaction = connection.transaction().map_err(store_error)?;
            read(&transaction).map_err(store_error)
        });
        match timeout_at(deadline, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(StoreError::Internal("a read did not finish".to_owned())),
            Err(_) => Err(StoreError::DeadlineExceeded),
        }
    }

    async fn borrow(&self, deadline: Instant) -> Result<Loan, StoreError> {
        if self.free.is_closed() {
            return Err(closed());
        }
        if deadline <= Instant::now() {
            return Err(StoreError::DeadlineExceeded);
        }
        let queued = self.queue.clone().try_acquire_owned().map_err(|_| StoreError::Overloaded)?;
        let free = match timeout_at(deadline, self.free.clone().acquire_owned()).await {
            Ok(permit) => permit.map_err(|_| closed())?,
            Err(_) => return Err(StoreError::DeadlineExceeded),
        };
        let connection = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Ok(Loan { connection, idle: self.idle.clone(), _free: free, _queued: queued })
    }

    /// Waits for running reads, within a bound, and closes the connections. Waiting and later
    /// reads are refused.
    pub(super) async fn close(&self) {
        let all = u32::try_from(self.size).unwrap_or(u32::MAX);
        let running = timeout(SQLITE_CLOSE_TIMEOUT, self.free.acquire_many(all)).await;
        self.free.close();
        if running.is_err() {
            tracing::warn!("reads still run while the sqlite file is closed");
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
