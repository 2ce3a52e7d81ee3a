//! Moves every user, may be interrupted anywhere, and proves that all has arrived.

use std::{collections::HashMap, collections::VecDeque};

use anyhow::{Context as _, bail};
use uuid::Uuid;

use crate::{
    clock::{Clock as _, SystemClock},
    store::{
        StoreError, UserId,
        transfer::{Totals, Transfer, TransferLock, UserSummary},
    },
};

/// Users read at a time.
const USERS_A_READ: usize = 1_000;
/// Locks read and written at a time.
const LOCKS_A_READ: usize = 1_000;
/// Differences named in an error.
const SHOWN_DIFFERENCES: usize = 5;

/// What an import has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Moved {
    pub(super) users: u64,
    pub(super) skipped_users: u64,
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) locks: u64,
}

/// Where from and where to.
pub(super) struct Mover<'a> {
    pub(super) source: &'a dyn Transfer,
    pub(super) target: &'a dyn Transfer,
}

impl Mover<'_> {
    /// Moves everything and compares both sides; `progress` hears of each user.
    pub(super) async fn run(&self, progress: &mut dyn FnMut(&Moved)) -> anyhow::Result<Moved> {
        self.refuse_foreign_target().await?;
        let mut moved = Moved::default();
        // Before any lock, so that no token of the target can fall behind one of the source.
        let floor = self.source.fencing_token().await.context("cannot read the source")?;
        self.target.raise_fencing_token(floor).await.context("cannot write the target")?;
        let floor = self.source.head_floor().await.context("cannot read the source")?;
        if floor > 0 {
            self.target.raise_head_floor(floor).await.context("cannot write the target")?;
        }
        let mut pairs = Pairs::new(self.source, self.target);
        while let Some(pair) = pairs.next().await? {
            let Some(user) = pair.source else { continue };
            if pair.target == Some(user) {
                moved.skipped_users += 1;
            } else {
                self.move_user(user, &mut moved).await?;
            }
            progress(&moved);
        }
        moved.locks = self.move_locks().await?;
        self.verify().await?;
        Ok(moved)
    }

    /// A target that holds anything the source does not is no interrupted import of it.
    async fn refuse_foreign_target(&self) -> anyhow::Result<()> {
        let mut pairs = Pairs::new(self.source, self.target);
        while let Some(pair) = pairs.next().await? {
            let Some(target) = pair.target else { continue };
            let user = target.user;
            match pair.source {
                None => bail!(
                    "the target holds user {user}, whom the source does not have: databases are \
                     not merged; give an empty target, or one with an interrupted import of this \
                     very source"
                ),
                Some(source) if target.head > source.head => bail!(
                    "the target is ahead of the source for user {user} (revision {} against {}): \
                     somebody has used it; give an empty target",
                    target.head,
                    source.head
                ),
                Some(_) => {}
            }
        }
        Ok(())
    }

    async fn move_user(&self, user: UserSummary, moved: &mut Moved) -> anyhow::Result<()> {
        let mut after_revision = 0;
        loop {
            let records = self.source.records(user.user, after_revision).await;
            let records = records.context("cannot read the source")?;
            let Some(last) = records.last() else { break };
            if last.revision <= after_revision {
                bail!("the source lists records of user {} out of order", user.user);
            }
            after_revision = last.revision;
            moved.records += records.len() as u64;
            moved.bytes += records.iter().map(|record| record.data.len() as u64).sum::<u64>();
            self.target.put_records(user.user, records).await.context("cannot write the target")?;
        }
        self.target.raise_head(user.user, user.head).await.context("cannot write the target")?;
        moved.users += 1;
        Ok(())
    }

    async fn move_locks(&self) -> anyhow::Result<u64> {
        let mut cursor = LockCursor::new(self.source);
        let mut moved = 0;
        while let Some(locks) = cursor.next().await.context("cannot read the source")? {
            moved += locks.len() as u64;
            self.target.put_locks(locks).await.context("cannot write the target")?;
        }
        Ok(moved)
    }

    /// Compares every user, the totals and the locks that are live on both sides.
    async fn verify(&self) -> anyhow::Result<()> {
        let mut different = Vec::new();
        let mut pairs = Pairs::new(self.source, self.target);
        while let Some(pair) = pairs.next().await? {
            if pair.source != pair.target {
                different.extend(pair.source.or(pair.target).map(|user| user.user.to_string()));
            }
            if different.len() >= SHOWN_DIFFERENCES {
                break;
            }
        }
        if !different.is_empty() {
            bail!(
                "source and target differ after the import (users {}, …): was one of them in use? \
                 Stop the service on both and run the import again",
                different.join(", ")
            );
        }
        let expected = without_locks(self.source.totals().await?);
        let found = without_locks(self.target.totals().await?);
        if expected != found {
            bail!("source and target differ after the import: {expected:?} against {found:?}");
        }
        self.verify_locks().await
    }

    async fn verify_locks(&self) -> anyhow::Result<()> {
        let mut arrived: HashMap<(UserId, String, Uuid), TransferLock> = HashMap::new();
        let mut cursor = LockCursor::new(self.target);
        while let Some(locks) = cursor.next().await.context("cannot read the target")? {
            arrived.extend(locks.into_iter().map(|lock| (lock_key(&lock), lock)));
        }
        let mut cursor = LockCursor::new(self.source);
        while let Some(locks) = cursor.next().await.context("cannot read the source")? {
            let now_ms = SystemClock.now_ms();
            let missing = |lock: &&TransferLock| arrived.get(&lock_key(lock)) != Some(*lock);
            // One that expires between the two readings is no loss.
            let live = |lock: &&TransferLock| lock.expires_at_ms > now_ms;
            if let Some(lock) = locks.iter().filter(live).find(missing) {
                bail!("a lock of user {} did not arrive; run the import again", lock.user);
            }
        }
        Ok(())
    }
}

/// Locks may expire at any time, so only those that live are compared, one by one.
const fn without_locks(totals: Totals) -> Totals {
    Totals { locks: 0, ..totals }
}

fn lock_key(lock: &TransferLock) -> (UserId, String, Uuid) {
    (lock.user, lock.name.clone(), lock.instance)
}

/// One user as both sides hold it; at least one does.
#[derive(Debug, Clone, Copy)]
struct Pair {
    source: Option<UserSummary>,
    target: Option<UserSummary>,
}

/// Walks the users of both sides together, in ascending order.
struct Pairs<'a> {
    source: UserCursor<'a>,
    target: UserCursor<'a>,
}

impl<'a> Pairs<'a> {
    fn new(source: &'a dyn Transfer, target: &'a dyn Transfer) -> Self {
        Self { source: UserCursor::new(source), target: UserCursor::new(target) }
    }

    async fn next(&mut self) -> anyhow::Result<Option<Pair>> {
        let source = self.source.peek().await.context("cannot read the source")?;
        let target = self.target.peek().await.context("cannot read the target")?;
        let first = match (source, target) {
            (None, None) => return Ok(None),
            (Some(one), None) | (None, Some(one)) => one.user,
            (Some(source), Some(target)) => source.user.min(target.user),
        };
        Ok(Some(Pair { source: self.source.take(first), target: self.target.take(first) }))
    }
}

/// Reads users a page at a time.
struct UserCursor<'a> {
    store: &'a dyn Transfer,
    page: VecDeque<UserSummary>,
    after: Option<UserId>,
    at_end: bool,
}

impl<'a> UserCursor<'a> {
    fn new(store: &'a dyn Transfer) -> Self {
        Self { store, page: VecDeque::new(), after: None, at_end: false }
    }

    async fn peek(&mut self) -> Result<Option<UserSummary>, StoreError> {
        if self.page.is_empty() && !self.at_end {
            self.page = self.store.users(self.after, USERS_A_READ).await?.into();
            self.at_end = self.page.is_empty();
            self.after = self.page.back().map(|last| last.user).or(self.after);
        }
        Ok(self.page.front().copied())
    }

    fn take(&mut self, user: UserId) -> Option<UserSummary> {
        let is_next = self.page.front().is_some_and(|next| next.user == user);
        if is_next { self.page.pop_front() } else { None }
    }
}

/// Reads live locks a page at a time.
struct LockCursor<'a> {
    store: &'a dyn Transfer,
    after: Option<(UserId, String, Uuid)>,
}

impl<'a> LockCursor<'a> {
    fn new(store: &'a dyn Transfer) -> Self {
        Self { store, after: None }
    }

    async fn next(&mut self) -> Result<Option<Vec<TransferLock>>, StoreError> {
        let locks = self.store.locks(self.after.clone(), LOCKS_A_READ).await?;
        let Some(last) = locks.last() else { return Ok(None) };
        self.after = Some(lock_key(last));
        Ok(Some(locks))
    }
}

#[cfg(test)]
mod tests;
