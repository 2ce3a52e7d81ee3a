//! What the store holds, in the store's own words.
//!
//! Values arrive here checked: the service parses every request once and engines never look again.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use uuid::Uuid;

/// A user: the compressed secp256k1 public key that signed the request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId([u8; Self::BYTES]);

impl UserId {
    /// Length of a compressed public key.
    pub const BYTES: usize = 33;

    /// Wraps a compressed public key.
    #[must_use]
    pub const fn new(key: [u8; Self::BYTES]) -> Self {
        Self(key)
    }

    /// Reads a user id as the store keeps it; `None` unless it has exactly 33 bytes.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Reads lower- or upper-case hex, as the Go server keeps user ids.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?;
        Self::from_slice(&bytes)
    }

    /// The compressed key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// The whole key as lower-case hex.
    #[must_use]
    pub fn to_hex(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }
}

/// Shows the first four bytes only: enough to follow one user through a log, too little to name one.
impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", data_encoding::HEXLOWER.encode(&self.0[..4]))
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The digest a request's signature covers; two arrivals of one signed request share it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestDigest(pub [u8; 32]);

impl fmt::Debug for RequestDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestDigest")
    }
}

/// One record to be written on condition.
///
/// The rule (design §2, semantics 1 and 8), in this order: a stored record with the same `digest`
/// is this very request come again ([`WriteOutcome::Repeated`]); an absent record is created
/// whatever `base_revision` says; a record at `base_revision` is replaced; all else is a conflict.
#[derive(Clone)]
pub struct RecordWrite {
    /// Whose record.
    pub user: UserId,
    /// The record's name among the user's; at most 64 bytes, may be empty.
    pub id: String,
    /// The revision the writer knows; any `u64`, those from 2^63 on match no record.
    pub base_revision: u64,
    /// At most 15 bytes.
    pub schema_version: String,
    /// At most 65,536 bytes.
    pub data: Bytes,
    /// The digest of the signed request.
    pub digest: RequestDigest,
    /// The writer's instance, told to the user's streams.
    pub client_id: Option<Arc<str>>,
}

impl fmt::Debug for RecordWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordWrite")
            .field("user", &self.user)
            .field("base_revision", &self.base_revision)
            .field("data_bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

/// What became of a [`RecordWrite`]. Only `Written` changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Stored, as the user's next revision.
    Written {
        /// The revision given.
        revision: u64,
    },
    /// The same signed request was stored before and is still the record's current version.
    Repeated {
        /// The revision given then.
        revision: u64,
    },
    /// The record is held at another revision.
    Conflict,
    /// The write would exceed a quota.
    OverQuota(Quota),
}

/// What a user may hold only so much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quota {
    /// Number of records.
    Records,
    /// Bytes of record data.
    Bytes,
    /// Number of live locks (name and instance).
    Locks,
}

impl Quota {
    /// The quota's name in error details and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Records => "records",
            Self::Bytes => "bytes",
            Self::Locks => "locks",
        }
    }
}

/// How much a user may hold; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quotas {
    /// Most records.
    pub max_records: Option<u64>,
    /// Most bytes of record data, over all records.
    pub max_bytes: Option<u64>,
    /// Most live locks.
    pub max_locks: Option<u64>,
}

/// A record as stored.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// The record's name.
    pub id: String,
    /// The revision its last write was given, from 1 to 2^63 − 1.
    pub revision: u64,
    /// As the writer sent it.
    pub schema_version: String,
    /// As the writer sent it.
    pub data: Bytes,
}

impl fmt::Debug for StoredRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredRecord")
            .field("revision", &self.revision)
            .field("data_bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

/// Where a page of changes is cut. A page holds at least one record if there is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimit {
    /// Most records.
    pub max_records: usize,
    /// Most bytes, counting for each record the bytes of id, schema version and data plus
    /// [`crate::limits::RECORD_OVERHEAD_BYTES`].
    pub max_bytes: usize,
}

impl PageLimit {
    /// The cut that every shipped client can take.
    pub const WIRE: Self = Self {
        max_records: crate::limits::MAX_PAGE_RECORDS,
        max_bytes: crate::limits::MAX_PAGE_BYTES,
    };
}

/// Changes of one user, read from one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// In ascending revision.
    pub records: Vec<StoredRecord>,
    /// The user's newest revision in that snapshot; 0 for a user who never wrote.
    pub head: u64,
    /// More changes exist beyond the last record of this page.
    pub has_more: bool,
}

/// A request to take or release one named lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockRequest {
    /// Whose lock.
    pub user: UserId,
    /// 1 to 256 bytes.
    pub name: String,
    /// Who takes or releases it.
    pub instance: Uuid,
    /// What to do.
    pub action: LockAction,
}

/// What a [`LockRequest`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockAction {
    /// Take the lock, or take it again with a new expiry or kind.
    Acquire {
        /// Exclusive locks tolerate no other holder; shared ones tolerate each other.
        exclusive: bool,
        /// Time to live in milliseconds, counted by the database's clock.
        ttl_ms: u64,
    },
    /// Give it back; a no-op for anybody but a holder.
    Release,
}

/// What became of a [`LockRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockOutcome {
    /// The caller holds the lock.
    Acquired {
        /// Rises over all of the store's locks with each change of holder or kind upward; a live
        /// holder's renewal keeps it.
        fencing_token: u64,
        /// Milliseconds since 1970-01-01 UTC on the database's clock.
        expires_at_ms: u64,
    },
    /// The caller does not hold the lock (any more).
    Released,
    /// Another instance's live lock forbids it.
    Held,
    /// The user holds as many locks as allowed.
    OverQuota,
}

/// How the store is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreStatus {
    /// Newest migration that is applied.
    pub schema_version: u32,
    /// Milliseconds since 1970-01-01 UTC on the database's clock.
    pub database_time_ms: u64,
}
