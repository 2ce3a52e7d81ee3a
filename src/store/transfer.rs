//! Moves whole users from one store to another, in pieces that may be repeated.
//!
//! A piece is one user: head, records with their digests, live locks. Writing a piece again
//! leaves the same result, so an interrupted move starts over at the last piece that was seen.

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use super::{RequestDigest, StoreError, UserId};

/// How much a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Users with a head.
    pub users: u64,
    /// Records of all users.
    pub records: u64,
    /// Bytes of record data of all users.
    pub bytes: u64,
    /// Live locks.
    pub locks: u64,
}

/// A user's head and how much the user holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserSummary {
    /// Who.
    pub user: UserId,
    /// Newest revision.
    pub head: u64,
    /// Number of records, counted (not the quota counter).
    pub records: u64,
    /// Bytes of record data, summed (not the quota counter).
    pub bytes: u64,
}

/// How much of what quotas count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holdings {
    /// Number of records.
    pub records: u64,
    /// Bytes of record data.
    pub bytes: u64,
}

/// What the quotas believe that a user holds, and what the user does hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserCounters {
    /// Who.
    pub user: UserId,
    /// The counters that quotas are checked against.
    pub kept: Holdings,
    /// Counted anew, from the same snapshot.
    pub real: Holdings,
}

/// What [`Transfer::lift`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifted {
    /// Users whose head was lifted.
    pub users: u64,
    /// Records that got a new revision.
    pub records: u64,
    /// Revision above which users begin who are not known yet.
    pub head_floor: u64,
    /// Every later fencing token is larger.
    pub fencing_token: u64,
}

/// A record with everything a store keeps of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferRecord {
    /// The record's name.
    pub id: String,
    /// Its revision.
    pub revision: u64,
    /// As the writer sent it.
    pub schema_version: String,
    /// As the writer sent it.
    pub data: Bytes,
    /// Of the request that wrote it; none for records adopted from the Go server.
    pub digest: Option<RequestDigest>,
}

/// A live lock with everything a store keeps of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferLock {
    /// Whose lock.
    pub user: UserId,
    /// The lock's name.
    pub name: String,
    /// The holder.
    pub instance: Uuid,
    /// Whether it tolerates other holders.
    pub exclusive: bool,
    /// Milliseconds since 1970-01-01 UTC.
    pub expires_at_ms: u64,
    /// As drawn in the source.
    pub fencing_token: u64,
}

/// Reads and writes a store's whole content. Implemented by each engine.
///
/// Nobody may write to either store while a transfer runs; the final comparison of
/// [`Totals`] and summaries finds it when somebody did.
#[async_trait]
pub trait Transfer: Send + Sync {
    /// Counts everything.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn totals(&self) -> Result<Totals, StoreError>;

    /// The next users in ascending id after `after`, at most `limit`.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn users(
        &self,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<UserSummary>, StoreError>;

    /// The quota counters of the next users in ascending id after `after`, at most `limit`, and
    /// what they should be. True under concurrent writes too.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn counters(
        &self,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<UserCounters>, StoreError>;

    /// The user's records above `after_revision`, ascending, cut at the page limits of the wire.
    /// Empty at the end.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn records(
        &self,
        user: UserId,
        after_revision: u64,
    ) -> Result<Vec<TransferRecord>, StoreError>;

    /// All live locks after the given key in ascending (user, name, instance), at most `limit`.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn locks(
        &self,
        after: Option<(UserId, String, Uuid)>,
        limit: usize,
    ) -> Result<Vec<TransferLock>, StoreError>;

    /// Newest fencing token drawn; 0 if none was.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn fencing_token(&self) -> Result<u64, StoreError>;

    /// Writes records of a user as they are, replacing records of the same id, and keeps the
    /// user's quota counters true. Raises the head to the largest revision among them, if lower.
    ///
    /// # Errors
    /// Any [`StoreError`]; then nothing of these records was written.
    async fn put_records(
        &self,
        user: UserId,
        records: Vec<TransferRecord>,
    ) -> Result<(), StoreError>;

    /// Raises the user's head to `head`, if lower; creates the user if need be.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn raise_head(&self, user: UserId, head: u64) -> Result<(), StoreError>;

    /// Writes locks as they are, replacing those of the same user, name and instance.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn put_locks(&self, locks: Vec<TransferLock>) -> Result<(), StoreError>;

    /// Makes every later fencing token larger than `floor`.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn raise_fencing_token(&self, floor: u64) -> Result<(), StoreError>;

    /// Revision above which users begin who have written nothing yet; 0 before any lift.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn head_floor(&self) -> Result<u64, StoreError>;

    /// Makes users who have written nothing yet begin above `floor`, if they would not.
    ///
    /// # Errors
    /// Any [`StoreError`].
    async fn raise_head_floor(&self, floor: u64) -> Result<(), StoreError>;

    /// Puts a restored store ahead of every device: each user's records get new revisions in
    /// their old order, the first one `by + 1` above the user's head, which then is the last one
    /// of them. Users who are not known, and fencing tokens, go on higher by as much. All of it
    /// happens or nothing does. Doing it again is safe: devices list everything once more.
    ///
    /// # Errors
    /// Any [`StoreError`]; then nothing was changed.
    async fn lift(&self, by: u64) -> Result<Lifted, StoreError>;
}
