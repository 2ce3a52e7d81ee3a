//! The feed of a store that only this process writes to.

use std::sync::Arc;

use super::{Change, ChangeFeed, Hub};
use crate::store::UserId;

/// Wakes the streams of this process and has nobody else to tell.
#[derive(Debug, Clone)]
pub struct LocalFeed {
    hub: Arc<Hub>,
}

impl LocalFeed {
    /// A feed into `hub`.
    #[must_use]
    pub const fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }
}

impl ChangeFeed for LocalFeed {
    fn announce(&self, changes: &[Change]) {
        for change in changes {
            self.hub.announce(change);
        }
    }

    fn nudge(&self, user: UserId) {
        self.hub.nudge(user);
    }
}
