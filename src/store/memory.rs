//! An engine in memory, for tests and simulations.
//!
//! It is the rules of [`Store`] written down as plainly as they can be: one mutex, one map per
//! user, every operation at once. Nothing survives the process.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    LockAction, LockOutcome, LockRequest, Page, PageLimit, Quota, RecordWrite, RequestDigest,
    Store, StoreContext, StoreError, StoreStatus, StoredRecord, UserId, WriteOutcome,
    transfer::{
        Holdings, Lifted, Totals, Transfer, TransferLock, TransferRecord, UserCounters, UserSummary,
    },
};
use crate::{limits::RECORD_OVERHEAD_BYTES, notify::Change};

/// A store whose content is gone with it.
#[derive(Debug)]
pub struct MemoryStore {
    context: StoreContext,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    users: BTreeMap<UserId, User>,
    locks: BTreeMap<(UserId, String, Uuid), Hold>,
    fencing_token: u64,
    head_floor: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct User {
    head: u64,
    records: BTreeMap<String, Record>,
}

#[derive(Debug, Clone)]
struct Record {
    revision: u64,
    schema_version: String,
    data: Bytes,
    digest: Option<RequestDigest>,
}

#[derive(Debug, Clone, Copy)]
struct Hold {
    exclusive: bool,
    expires_at_ms: u64,
    fencing_token: u64,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new(context: StoreContext) -> Self {
        Self { context, state: Mutex::default() }
    }

    fn open(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(StoreError::Unavailable("the store is closed".to_owned()));
        }
        Ok(state)
    }

    fn open_before(&self, deadline: Instant) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.open()?;
        if deadline <= Instant::now() {
            return Err(StoreError::DeadlineExceeded);
        }
        Ok(state)
    }

    fn write(&self, state: &mut State, write: RecordWrite) -> WriteOutcome {
        let quotas = self.context.quotas;
        let floor = state.head_floor;
        let new_user = || User { head: floor, ..User::default() };
        let user = state.users.entry(write.user).or_insert_with(new_user);
        let held = user.records.get(&write.id);
        if let Some(held) = held {
            if held.digest == Some(write.digest) {
                return WriteOutcome::Repeated { revision: held.revision };
            }
            if held.revision != write.base_revision {
                return WriteOutcome::Conflict;
            }
        }
        let is_new = held.is_none();
        let old_bytes = held.map_or(0, |held| held.data.len());
        let count = user.records.len() as u64 + u64::from(is_new);
        if is_new && quotas.max_records.is_some_and(|most| count > most) {
            return WriteOutcome::OverQuota(Quota::Records);
        }
        let bytes = user.bytes() - old_bytes as u64 + write.data.len() as u64;
        let grows = write.data.len() > old_bytes;
        if grows && quotas.max_bytes.is_some_and(|most| bytes > most) {
            return WriteOutcome::OverQuota(Quota::Bytes);
        }
        user.head += 1;
        let revision = user.head;
        let record = Record {
            revision,
            schema_version: write.schema_version,
            data: write.data,
            digest: Some(write.digest),
        };
        user.records.insert(write.id, record);
        // Still under the mutex, so that announcements keep the order of the revisions.
        self.context.feed.announce(&[Change {
            user: write.user,
            from: revision,
            to: revision,
            client_id: write.client_id,
        }]);
        WriteOutcome::Written { revision }
    }

    fn acquire(
        &self,
        state: &mut State,
        request: LockRequest,
        exclusive: bool,
        ttl_ms: u64,
    ) -> LockOutcome {
        let now = self.context.clock.now_ms();
        let LockRequest { user, name, instance, .. } = request;
        state.locks.retain(|_, hold| hold.expires_at_ms > now);
        let mut others = state
            .locks
            .iter()
            .filter(|((u, n, i), _)| *u == user && *n == name && *i != instance)
            .map(|(_, hold)| hold.exclusive);
        if others.any(|held_exclusive| exclusive || held_exclusive) {
            return LockOutcome::Held;
        }
        let users_locks = state.locks.keys().filter(|(u, _, _)| *u == user).count() as u64;
        let key = (user, name, instance);
        let own = state.locks.get(&key).copied();
        let over = self.context.quotas.max_locks.is_some_and(|most| users_locks >= most);
        if own.is_none() && over {
            return LockOutcome::OverQuota;
        }
        let fencing_token = match own {
            Some(own) if own.exclusive || !exclusive => own.fencing_token,
            _ => {
                state.fencing_token += 1;
                state.fencing_token
            }
        };
        let expires_at_ms = now.saturating_add(ttl_ms);
        state.locks.insert(key, Hold { exclusive, expires_at_ms, fencing_token });
        LockOutcome::Acquired { fencing_token, expires_at_ms }
    }
}

impl User {
    fn bytes(&self) -> u64 {
        self.records.values().map(|record| record.data.len() as u64).sum()
    }

    /// Records above `after` in ascending revision.
    fn above(&self, after: u64) -> Vec<(&String, &Record)> {
        let mut records: Vec<_> =
            self.records.iter().filter(|(_, record)| record.revision > after).collect();
        records.sort_unstable_by_key(|(_, record)| record.revision);
        records
    }
}

/// How many of `records` fit on one page.
fn fitting(records: &[(&String, &Record)], limit: PageLimit) -> usize {
    let mut bytes = 0_usize;
    let fit = records.iter().take(limit.max_records).take_while(|(id, record)| {
        let size = id.len() + record.schema_version.len() + record.data.len();
        bytes = bytes.saturating_add(size + RECORD_OVERHEAD_BYTES);
        bytes <= limit.max_bytes
    });
    fit.count().max(1).min(records.len())
}

fn stored(id: &str, record: &Record) -> StoredRecord {
    StoredRecord {
        id: id.to_owned(),
        revision: record.revision,
        schema_version: record.schema_version.clone(),
        data: record.data.clone(),
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn set_record(
        &self,
        write: RecordWrite,
        deadline: Instant,
    ) -> Result<WriteOutcome, StoreError> {
        let mut state = self.open_before(deadline)?;
        Ok(self.write(&mut state, write))
    }

    async fn record(
        &self,
        user: UserId,
        id: &str,
        deadline: Instant,
    ) -> Result<Option<StoredRecord>, StoreError> {
        let state = self.open_before(deadline)?;
        let record = state.users.get(&user).and_then(|user| user.records.get(id));
        Ok(record.map(|record| stored(id, record)))
    }

    async fn list_changes(
        &self,
        user: UserId,
        since: u64,
        limit: PageLimit,
        deadline: Instant,
    ) -> Result<Page, StoreError> {
        let state = self.open_before(deadline)?;
        let Some(user) = state.users.get(&user) else {
            return Ok(Page::default());
        };
        let above = user.above(since);
        let fit = fitting(&above, limit);
        let records = above[..fit].iter().map(|(id, record)| stored(id, record)).collect();
        Ok(Page { records, head: user.head, has_more: fit < above.len() })
    }

    async fn heads(&self, users: &[UserId], deadline: Instant) -> Result<Vec<u64>, StoreError> {
        let state = self.open_before(deadline)?;
        let head = |user| state.users.get(user).map_or(0, |user| user.head);
        Ok(users.iter().map(head).collect())
    }

    async fn set_lock(
        &self,
        request: LockRequest,
        deadline: Instant,
    ) -> Result<LockOutcome, StoreError> {
        let mut state = self.open_before(deadline)?;
        match request.action {
            LockAction::Acquire { exclusive, ttl_ms } => {
                Ok(self.acquire(&mut state, request, exclusive, ttl_ms))
            }
            LockAction::Release => {
                state.locks.remove(&(request.user, request.name, request.instance));
                Ok(LockOutcome::Released)
            }
        }
    }

    async fn is_locked(
        &self,
        user: UserId,
        name: &str,
        deadline: Instant,
    ) -> Result<bool, StoreError> {
        let state = self.open_before(deadline)?;
        let now = self.context.clock.now_ms();
        let mut locks = state.locks.iter();
        Ok(locks.any(|((u, n, _), hold)| *u == user && n == name && hold.expires_at_ms > now))
    }

    async fn status(&self, deadline: Instant) -> Result<StoreStatus, StoreError> {
        drop(self.open_before(deadline)?);
        Ok(StoreStatus { schema_version: 1, database_time_ms: self.context.clock.now_ms() })
    }

    fn engine(&self) -> &'static str {
        "memory"
    }

    async fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
    }
}

#[async_trait]
impl Transfer for MemoryStore {
    async fn totals(&self) -> Result<Totals, StoreError> {
        let state = self.open()?;
        let now = self.context.clock.now_ms();
        let users = state.users.values();
        Ok(Totals {
            users: users.clone().filter(|user| user.head > 0).count() as u64,
            records: users.clone().map(|user| user.records.len() as u64).sum(),
            bytes: users.map(User::bytes).sum(),
            locks: state.locks.values().filter(|hold| hold.expires_at_ms > now).count() as u64,
        })
    }

    async fn users(
        &self,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<UserSummary>, StoreError> {
        let state = self.open()?;
        let later = state.users.iter().filter(|(id, user)| Some(**id) > after && user.head > 0);
        let summary = |(id, user): (&UserId, &User)| UserSummary {
            user: *id,
            head: user.head,
            records: user.records.len() as u64,
            bytes: user.bytes(),
        };
        Ok(later.take(limit).map(summary).collect())
    }

    async fn counters(
        &self,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<UserCounters>, StoreError> {
        let state = self.open()?;
        let later = state.users.iter().filter(|(id, _)| Some(**id) > after);
        let counters = |(id, user): (&UserId, &User)| {
            // Nothing is kept beside the records themselves.
            let real = Holdings { records: user.records.len() as u64, bytes: user.bytes() };
            UserCounters { user: *id, kept: real, real }
        };
        Ok(later.take(limit).map(counters).collect())
    }

    async fn records(
        &self,
        user: UserId,
        after_revision: u64,
    ) -> Result<Vec<TransferRecord>, StoreError> {
        let state = self.open()?;
        let Some(user) = state.users.get(&user) else {
            return Ok(Vec::new());
        };
        let above = user.above(after_revision);
        let page = above[..fitting(&above, PageLimit::WIRE)].iter();
        let transfer = |(id, record): &(&String, &Record)| TransferRecord {
            id: (*id).clone(),
            revision: record.revision,
            schema_version: record.schema_version.clone(),
            data: record.data.clone(),
            digest: record.digest,
        };
        Ok(page.map(transfer).collect())
    }

    async fn locks(
        &self,
        after: Option<(UserId, String, Uuid)>,
        limit: usize,
    ) -> Result<Vec<TransferLock>, StoreError> {
        let state = self.open()?;
        let now = self.context.clock.now_ms();
        let is_later = |key| after.as_ref().is_none_or(|after| key > after);
        let live = |(key, hold): &(_, &Hold)| is_later(*key) && hold.expires_at_ms > now;
        let transfer =
            |((user, name, instance), hold): (&(UserId, String, Uuid), &Hold)| TransferLock {
                user: *user,
                name: name.clone(),
                instance: *instance,
                exclusive: hold.exclusive,
                expires_at_ms: hold.expires_at_ms,
                fencing_token: hold.fencing_token,
            };
        Ok(state.locks.iter().filter(live).take(limit).map(transfer).collect())
    }

    async fn fencing_token(&self) -> Result<u64, StoreError> {
        Ok(self.open()?.fencing_token)
    }

    async fn put_records(
        &self,
        user: UserId,
        records: Vec<TransferRecord>,
    ) -> Result<(), StoreError> {
        let mut state = self.open()?;
        let user = state.users.entry(user).or_default();
        for TransferRecord { id, revision, schema_version, data, digest } in records {
            user.head = user.head.max(revision);
            user.records.insert(id, Record { revision, schema_version, data, digest });
        }
        Ok(())
    }

    async fn raise_head(&self, user: UserId, head: u64) -> Result<(), StoreError> {
        let mut state = self.open()?;
        let user = state.users.entry(user).or_default();
        user.head = user.head.max(head);
        Ok(())
    }

    async fn put_locks(&self, locks: Vec<TransferLock>) -> Result<(), StoreError> {
        let mut state = self.open()?;
        for lock in locks {
            let TransferLock { user, name, instance, exclusive, expires_at_ms, fencing_token } =
                lock;
            let hold = Hold { exclusive, expires_at_ms, fencing_token };
            state.locks.insert((user, name, instance), hold);
        }
        Ok(())
    }

    async fn raise_fencing_token(&self, floor: u64) -> Result<(), StoreError> {
        let mut state = self.open()?;
        state.fencing_token = state.fencing_token.max(floor);
        Ok(())
    }

    async fn head_floor(&self) -> Result<u64, StoreError> {
        Ok(self.open()?.head_floor)
    }

    async fn raise_head_floor(&self, floor: u64) -> Result<(), StoreError> {
        let mut state = self.open()?;
        state.head_floor = state.head_floor.max(floor);
        Ok(())
    }

    async fn lift(&self, by: u64) -> Result<Lifted, StoreError> {
        let mut state = self.open()?;
        let mut records = 0;
        for user in state.users.values_mut() {
            user.head += by;
            let mut ascending: Vec<&mut Record> = user.records.values_mut().collect();
            ascending.sort_by_key(|record| record.revision);
            records += ascending.len() as u64;
            for record in ascending {
                user.head += 1;
                record.revision = user.head;
            }
        }
        state.head_floor += by;
        state.fencing_token += by;
        Ok(Lifted {
            users: state.users.len() as u64,
            records,
            head_floor: state.head_floor,
            fencing_token: state.fencing_token,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        clock::ManualClock,
        store::{
            Quotas,
            conformance::{Fixture, RecordingFeed, Time},
        },
        telemetry::metrics::Metrics,
    };

    async fn start(quotas: Quotas) -> Fixture {
        let clock = ManualClock::at(1_700_000_000_000);
        let feed = Arc::new(RecordingFeed::new());
        let store = Arc::new(MemoryStore::new(StoreContext {
            feed: feed.clone(),
            quotas,
            clock: Arc::new(clock.clone()),
            metrics: Arc::new(Metrics::new()),
        }));
        Fixture {
            store: store.clone(),
            transfer: store,
            feed,
            time: Time::Manual(clock),
            guard: Box::new(()),
        }
    }

    crate::store_conformance_tests!(start);
}
