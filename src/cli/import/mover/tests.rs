//! Against stores in memory.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;

use super::*;
use crate::{
    notify::{Hub, LocalFeed},
    store::{
        Quotas, StoreContext,
        memory::MemoryStore,
        transfer::{Lifted, TransferRecord, UserCounters},
    },
    telemetry::metrics::Metrics,
};

fn store() -> MemoryStore {
    MemoryStore::new(StoreContext {
        feed: Arc::new(LocalFeed::new(Arc::new(Hub::new()), &Metrics::new())),
        quotas: Quotas::default(),
        clock: Arc::new(SystemClock),
        metrics: Arc::new(Metrics::new()),
    })
}

fn user(number: u8) -> UserId {
    UserId::new([number; UserId::BYTES])
}

fn record(revision: u64) -> TransferRecord {
    TransferRecord {
        id: format!("record {revision}"),
        revision,
        schema_version: "1.0.0".to_owned(),
        data: vec![7; 10].into(),
        digest: None,
    }
}

fn lock(number: u8) -> TransferLock {
    TransferLock {
        user: user(number),
        name: "sweep".to_owned(),
        instance: Uuid::from_u128(1),
        exclusive: true,
        expires_at_ms: SystemClock.now_ms() + 60_000,
        fencing_token: 41,
    }
}

/// Three users; the second one's head lies above its records.
async fn filled() -> MemoryStore {
    let source = store();
    for number in 1..=3 {
        source.put_records(user(number), vec![record(1), record(2)]).await.unwrap();
    }
    source.raise_head(user(2), 9).await.unwrap();
    source.put_locks(vec![lock(1), lock(3)]).await.unwrap();
    source.raise_fencing_token(41).await.unwrap();
    source.raise_head_floor(70).await.unwrap();
    source
}

async fn import(source: &dyn Transfer, target: &dyn Transfer) -> anyhow::Result<Moved> {
    Mover { source, target }.run(&mut |_| {}).await
}

async fn content(store: &dyn Transfer) -> (Totals, Vec<UserSummary>, [u64; 2]) {
    let floors = [store.fencing_token().await.unwrap(), store.head_floor().await.unwrap()];
    (store.totals().await.unwrap(), store.users(None, 100).await.unwrap(), floors)
}

/// A store that fails at one of its writes.
struct Failing<'a> {
    inner: &'a MemoryStore,
    writes_left: AtomicU32,
}

impl Failing<'_> {
    fn count(&self) -> Result<(), StoreError> {
        let left = self
            .writes_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map(|_| ()).map_err(|_| StoreError::Unavailable("cut".to_owned()))
    }
}

#[async_trait]
impl Transfer for Failing<'_> {
    async fn totals(&self) -> Result<Totals, StoreError> {
        self.inner.totals().await
    }

    async fn users(
        &self,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<UserSummary>, StoreError> {
        self.inner.users(after, limit).await
    }

    async fn counters(
        &self,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<UserCounters>, StoreError> {
        self.inner.counters(after, limit).await
    }

    async fn records(&self, user: UserId, after: u64) -> Result<Vec<TransferRecord>, StoreError> {
        self.inner.records(user, after).await
    }

    async fn locks(
        &self,
        after: Option<(UserId, String, Uuid)>,
        limit: usize,
    ) -> Result<Vec<TransferLock>, StoreError> {
        self.inner.locks(after, limit).await
    }

    async fn fencing_token(&self) -> Result<u64, StoreError> {
        self.inner.fencing_token().await
    }

    async fn put_records(
        &self,
        user: UserId,
        records: Vec<TransferRecord>,
    ) -> Result<(), StoreError> {
        self.count()?;
        self.inner.put_records(user, records).await
    }

    async fn raise_head(&self, user: UserId, head: u64) -> Result<(), StoreError> {
        self.count()?;
        self.inner.raise_head(user, head).await
    }

    async fn put_locks(&self, locks: Vec<TransferLock>) -> Result<(), StoreError> {
        self.count()?;
        self.inner.put_locks(locks).await
    }

    async fn raise_fencing_token(&self, floor: u64) -> Result<(), StoreError> {
        self.count()?;
        self.inner.raise_fencing_token(floor).await
    }

    async fn head_floor(&self) -> Result<u64, StoreError> {
        self.inner.head_floor().await
    }

    async fn raise_head_floor(&self, floor: u64) -> Result<(), StoreError> {
        self.count()?;
        self.inner.raise_head_floor(floor).await
    }

    async fn lift(&self, by: u64) -> Result<Lifted, StoreError> {
        self.count()?;
        self.inner.lift(by).await
    }
}

#[tokio::test]
async fn everything_arrives() {
    let (source, target) = (filled().await, store());
    let moved = import(&source, &target).await.unwrap();
    let expected = Moved { users: 3, skipped_users: 0, records: 6, bytes: 60, locks: 2 };
    assert_eq!(moved, expected);
    assert_eq!(content(&target).await, content(&source).await);
    assert_eq!(target.records(user(2), 0).await.unwrap(), [record(1), record(2)]);
}

#[tokio::test]
async fn an_import_cut_off_at_any_write_is_finished_by_the_next() {
    let source = filled().await;
    // Three users of two writes each, the fencing token, the floor and one page of locks.
    for writes in 0..9 {
        let target = store();
        let failing = Failing { inner: &target, writes_left: AtomicU32::new(writes) };
        let error = import(&source, &failing).await.unwrap_err();
        assert!(format!("{error:#}").contains("cut"), "{error:#}");
        let moved = import(&source, &target).await.unwrap();
        assert_eq!(moved.users + moved.skipped_users, 3);
        assert_eq!(content(&target).await, content(&source).await, "cut after {writes} writes");
    }
}

#[tokio::test]
async fn users_that_have_arrived_are_skipped() {
    let (source, target) = (filled().await, store());
    import(&source, &target).await.unwrap();
    let moved = import(&source, &target).await.unwrap();
    assert_eq!((moved.users, moved.skipped_users, moved.records), (0, 3, 0));
}

#[tokio::test]
async fn a_target_with_another_user_is_refused_untouched() {
    let (source, target) = (filled().await, store());
    target.put_records(user(4), vec![record(1)]).await.unwrap();
    let before = content(&target).await;
    let error = import(&source, &target).await.unwrap_err().to_string();
    assert!(error.contains("not merged"), "{error}");
    assert_eq!(content(&target).await, before);
}

#[tokio::test]
async fn a_target_that_was_used_is_refused() {
    let (source, target) = (filled().await, store());
    import(&source, &target).await.unwrap();
    target.raise_head(user(1), 3).await.unwrap();
    let error = import(&source, &target).await.unwrap_err().to_string();
    assert!(error.contains("ahead"), "{error}");
}

#[tokio::test]
async fn fencing_tokens_are_never_lowered() {
    let (source, target) = (filled().await, store());
    target.raise_fencing_token(100).await.unwrap();
    import(&source, &target).await.unwrap();
    assert!(target.fencing_token().await.unwrap() >= 100);
}

#[tokio::test]
async fn a_record_too_many_in_the_target_is_found() {
    let (source, target) = (filled().await, store());
    let extra = TransferRecord { id: "extra".to_owned(), ..record(2) };
    target.put_records(user(1), vec![extra]).await.unwrap();
    let error = import(&source, &target).await.unwrap_err().to_string();
    assert!(error.contains("differ after the import"), "{error}");
}
