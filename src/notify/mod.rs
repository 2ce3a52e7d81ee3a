//! Who must know that something changed.
//!
//! A store engine tells its [`ChangeFeed`] of each committed write. The feed wakes the user's
//! streams on this replica through the [`Hub`] and carries the news to the other replicas.
//! A notification is a hint, never data: losing one costs time, not correctness.

use std::{fmt, sync::Arc};

use crate::store::UserId;

mod hub;
mod local;
#[cfg(feature = "postgres")]
pub mod postgres;
mod run;
mod tag;

pub use hub::{Hint, Hub, Subscription};
pub use local::LocalFeed;
pub use tag::UserTag;

/// Whether changes of other replicas are heard at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenState {
    /// Not yet known.
    Starting,
    /// They are: an announcement of our own came back.
    Hearing,
    /// The connection is lost and is made anew.
    Lost,
    /// LISTEN is in force and nothing is heard: the connection leads through a transaction pooler,
    /// or to another database.
    Deaf,
}

/// An unbroken run of one user's committed revisions, all written by the same client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Whose records changed.
    pub user: UserId,
    /// First revision of the run.
    pub from: u64,
    /// Last revision of the run, at least `from`.
    pub to: u64,
    /// Who wrote it; `None` where the writer gave no name or several writers had a share.
    pub client_id: Option<Arc<str>>,
}

impl Change {
    /// Number of revisions in the run.
    #[must_use]
    pub const fn revisions(&self) -> u64 {
        self.to.saturating_sub(self.from).saturating_add(1)
    }
}

/// Takes committed changes to every stream that waits for them.
pub trait ChangeFeed: fmt::Debug + Send + Sync + 'static {
    /// Announces changes after their commit. Never blocks and never fails: this replica's streams
    /// are woken before it returns, the other replicas' soon after.
    fn announce(&self, changes: &[Change]);

    /// Tells this user's streams, on every replica, to list again although nothing changed.
    fn nudge(&self, user: UserId);
}
