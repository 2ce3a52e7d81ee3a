//! Background tasks: each has a name, is told to stop, and is joined within a bound.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A group of tasks that stop together.
#[derive(Debug, Clone, Default)]
pub struct Tasks(Arc<Group>);

#[derive(Debug, Default)]
struct Group {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The signal that asks the group's tasks to stop.
    #[must_use]
    pub fn stop_signal(&self) -> CancellationToken {
        self.0.stop.clone()
    }

    /// Runs `task` in the background. It watches [`Self::stop_signal`] itself, where it has
    /// anything to finish; a panic ends only the task and is logged with its name.
    #[allow(clippy::disallowed_methods, reason = "this is the one place that spawns")]
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // Put together by hand: an async block would hold the task twice, before and after.
        self.0.tracker.spawn(AssertUnwindSafe(task).catch_unwind().map(move |ended| {
            if ended.is_err() {
                tracing::error!(task = name, "task panicked");
            }
        }));
    }

    /// Asks every task to stop and waits for them, at most `limit`; true if all have ended.
    pub async fn stop(&self, limit: Duration) -> bool {
        self.0.stop.cancel();
        self.0.tracker.close();
        tokio::time::timeout(limit, self.0.tracker.wait()).await.is_ok()
    }

    /// Number of tasks that have not ended.
    #[must_use]
    pub fn running(&self) -> usize {
        self.0.tracker.len()
    }
}
