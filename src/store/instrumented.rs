//! Times every operation of a store and gives it a span; engines stay plain.

use std::{
    fmt,
    future::Future,
    sync::{Arc, OnceLock},
    time::Instant as Started,
};

use async_trait::async_trait;
use prometheus::Histogram;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{
    LockOutcome, LockRequest, Page, PageLimit, RecordWrite, Store, StoreError, StoreStatus,
    StoredRecord, UserId, WriteOutcome,
};
use crate::telemetry::metrics::Metrics;

/// The operations of a store.
#[derive(Debug, Clone, Copy)]
enum Op {
    SetRecord,
    Record,
    ListChanges,
    Heads,
    SetLock,
    IsLocked,
    Status,
}

impl Op {
    const ALL: [Self; 7] = [
        Self::SetRecord,
        Self::Record,
        Self::ListChanges,
        Self::Heads,
        Self::SetLock,
        Self::IsLocked,
        Self::Status,
    ];

    /// The value of the label `op`.
    const fn as_str(self) -> &'static str {
        match self {
            Self::SetRecord => "set_record",
            Self::Record => "record",
            Self::ListChanges => "list_changes",
            Self::Heads => "heads",
            Self::SetLock => "set_lock",
            Self::IsLocked => "is_locked",
            Self::Status => "status",
        }
    }
}

/// How an operation ends.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Ok,
    Unavailable,
    Overloaded,
    Contended,
    DeadlineExceeded,
    StorageFull,
    Internal,
    /// The caller stopped waiting; a write may still happen.
    Cancelled,
}

impl Outcome {
    const COUNT: usize = 8;

    /// The value of the label `outcome`.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unavailable => "unavailable",
            Self::Overloaded => "overloaded",
            Self::Contended => "contended",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::StorageFull => "storage_full",
            Self::Internal => "internal",
            Self::Cancelled => "cancelled",
        }
    }
}

impl<T> From<&Result<T, StoreError>> for Outcome {
    fn from(result: &Result<T, StoreError>) -> Self {
        match result {
            Ok(_) => Self::Ok,
            Err(StoreError::Unavailable(_)) => Self::Unavailable,
            Err(StoreError::Overloaded) => Self::Overloaded,
            Err(StoreError::Contended) => Self::Contended,
            Err(StoreError::DeadlineExceeded) => Self::DeadlineExceeded,
            Err(StoreError::StorageFull) => Self::StorageFull,
            Err(StoreError::Internal(_)) => Self::Internal,
        }
    }
}

/// A store around another one that measures it.
pub struct Instrumented {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    /// Resolved when first needed: most of the pairs never happen.
    seconds: [[OnceLock<Histogram>; Outcome::COUNT]; Op::ALL.len()],
}

impl Instrumented {
    /// Measures `store` from now on.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        let instrumented = Self { store, metrics, seconds: Default::default() };
        // Successes happen to all of them, so that their series begin at zero.
        for op in Op::ALL {
            instrumented.seconds(op, Outcome::Ok);
        }
        instrumented
    }

    fn seconds(&self, op: Op, outcome: Outcome) -> &Histogram {
        self.seconds[op as usize][outcome as usize].get_or_init(|| {
            self.metrics.store_seconds.with_label_values(&[op.as_str(), outcome.as_str()])
        })
    }

    async fn measure<T>(
        &self,
        op: Op,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut timer =
            Timer { store: self, op, start: Started::now(), outcome: Outcome::Cancelled };
        let span = tracing::debug_span!("store", op = op.as_str());
        let result = operation.instrument(span).await;
        timer.outcome = Outcome::from(&result);
        result
    }
}

/// Notes the time of an operation when it ends or is given up.
struct Timer<'a> {
    store: &'a Instrumented,
    op: Op,
    start: Started,
    outcome: Outcome,
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        let elapsed = self.start.elapsed();
        self.store.seconds(self.op, self.outcome).observe(elapsed.as_secs_f64());
    }
}

impl fmt::Debug for Instrumented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Instrumented").field(&self.store).finish()
    }
}

#[async_trait]
impl Store for Instrumented {
    async fn set_record(
        &self,
        write: RecordWrite,
        deadline: Instant,
    ) -> Result<WriteOutcome, StoreError> {
        self.measure(Op::SetRecord, self.store.set_record(write, deadline)).await
    }

    async fn record(
        &self,
        user: UserId,
        id: &str,
        deadline: Instant,
    ) -> Result<Option<StoredRecord>, StoreError> {
        self.measure(Op::Record, self.store.record(user, id, deadline)).await
    }

    async fn list_changes(
        &self,
        user: UserId,
        since: u64,
        limit: PageLimit,
        deadline: Instant,
    ) -> Result<Page, StoreError> {
        self.measure(Op::ListChanges, self.store.list_changes(user, since, limit, deadline)).await
    }

    async fn heads(&self, users: &[UserId], deadline: Instant) -> Result<Vec<u64>, StoreError> {
        self.measure(Op::Heads, self.store.heads(users, deadline)).await
    }

    async fn set_lock(
        &self,
        request: LockRequest,
        deadline: Instant,
    ) -> Result<LockOutcome, StoreError> {
        self.measure(Op::SetLock, self.store.set_lock(request, deadline)).await
    }

    async fn is_locked(
        &self,
        user: UserId,
        name: &str,
        deadline: Instant,
    ) -> Result<bool, StoreError> {
        self.measure(Op::IsLocked, self.store.is_locked(user, name, deadline)).await
    }

    async fn status(&self, deadline: Instant) -> Result<StoreStatus, StoreError> {
        self.measure(Op::Status, self.store.status(deadline)).await
    }

    fn engine(&self) -> &'static str {
        self.store.engine()
    }

    async fn close(&self) {
        self.store.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knows one user, of 7 changes; is full, and never answers about locks.
    #[derive(Debug)]
    struct Fake;

    #[async_trait]
    impl Store for Fake {
        async fn set_record(&self, _: RecordWrite, _: Instant) -> Result<WriteOutcome, StoreError> {
            Err(StoreError::StorageFull)
        }

        async fn record(
            &self,
            _: UserId,
            _: &str,
            _: Instant,
        ) -> Result<Option<StoredRecord>, StoreError> {
            Err(StoreError::Unavailable("refused".to_owned()))
        }

        async fn list_changes(
            &self,
            _: UserId,
            _: u64,
            _: PageLimit,
            _: Instant,
        ) -> Result<Page, StoreError> {
            Ok(Page { head: 7, ..Page::default() })
        }

        async fn heads(&self, _: &[UserId], _: Instant) -> Result<Vec<u64>, StoreError> {
            Ok(vec![7])
        }

        async fn set_lock(&self, _: LockRequest, _: Instant) -> Result<LockOutcome, StoreError> {
            std::future::pending().await
        }

        async fn is_locked(&self, _: UserId, _: &str, _: Instant) -> Result<bool, StoreError> {
            std::future::pending().await
        }

        async fn status(&self, _: Instant) -> Result<StoreStatus, StoreError> {
            Err(StoreError::DeadlineExceeded)
        }

        fn engine(&self) -> &'static str {
            "fake"
        }

        async fn close(&self) {}
    }

    const USER: UserId = UserId::new([2; UserId::BYTES]);

    fn counted(metrics: &Metrics, op: &str, outcome: &str) -> u64 {
        metrics.store_seconds.with_label_values(&[op, outcome]).get_sample_count()
    }

    #[tokio::test]
    async fn answers_pass_through_and_are_timed() {
        let metrics = Arc::new(Metrics::new());
        let store = Instrumented::new(Arc::new(Fake), Arc::clone(&metrics));
        let now = Instant::now();
        assert_eq!(store.engine(), "fake");
        assert_eq!(store.heads(&[USER], now).await, Ok(vec![7]));
        assert_eq!(store.list_changes(USER, 0, PageLimit::WIRE, now).await.map(|p| p.head), Ok(7));
        assert_eq!(counted(&metrics, "heads", "ok"), 1);
        assert_eq!(counted(&metrics, "list_changes", "ok"), 1);
    }

    #[tokio::test]
    async fn failures_pass_through_and_are_told_apart() {
        let metrics = Arc::new(Metrics::new());
        let store = Instrumented::new(Arc::new(Fake), Arc::clone(&metrics));
        let now = Instant::now();
        assert_eq!(store.status(now).await, Err(StoreError::DeadlineExceeded));
        assert!(store.record(USER, "", now).await.is_err());
        assert_eq!(counted(&metrics, "status", "deadline_exceeded"), 1);
        assert_eq!(counted(&metrics, "record", "unavailable"), 1);
        assert_eq!(counted(&metrics, "record", "ok"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_operation_given_up_is_counted_as_cancelled() {
        let metrics = Arc::new(Metrics::new());
        let store = Instrumented::new(Arc::new(Fake), Arc::clone(&metrics));
        let asked = store.is_locked(USER, "lock", Instant::now());
        let limit = std::time::Duration::from_secs(1);
        assert!(tokio::time::timeout(limit, asked).await.is_err());
        assert_eq!(counted(&metrics, "is_locked", "cancelled"), 1);
    }
}
