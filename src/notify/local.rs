//! The feed of a store that only this process writes to.

use std::sync::Arc;

use prometheus::IntCounter;

use super::{Change, ChangeFeed, Hub};
use crate::{store::UserId, telemetry::metrics::Metrics};

/// Wakes the streams of this process and has nobody else to tell.
#[derive(Debug, Clone)]
pub struct LocalFeed {
    hub: Arc<Hub>,
    published: IntCounter,
}

impl LocalFeed {
    /// A feed into `hub`.
    #[must_use]
    pub fn new(hub: Arc<Hub>, metrics: &Metrics) -> Self {
        Self { hub, published: metrics.notifications_published.clone() }
    }
}

impl ChangeFeed for LocalFeed {
    fn announce(&self, changes: &[Change]) {
        for change in changes {
            self.hub.announce(change);
        }
        self.published.inc_by(changes.iter().map(Change::revisions).sum());
    }

    fn nudge(&self, user: UserId) {
        self.hub.nudge(user);
    }
}
