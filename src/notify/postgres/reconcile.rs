//! Finds what no announcement told: compares the heads of users with open streams to what their
//! streams were told.
//!
//! Announcements get lost: with a replica that dies after its commit, with the LISTEN connection,
//! with a full outbox. A comparison makes up for them, and can name no writer; so a head that is
//! ahead is looked at a second time, after an announcement on its way would have arrived. Without
//! that a device would be woken by its own writes.

use std::sync::Arc;

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    limits::{
        RECONCILE_CHUNK_USERS, RECONCILE_DEAF_INTERVAL, RECONCILE_INTERVAL, RECONCILE_READ_TIMEOUT,
        RECONCILE_RETRY_PAUSE, RECONCILE_SECOND_LOOK,
    },
    notify::{Hub, ListenState},
    store::{Store, StoreError, UserId},
    telemetry::metrics::Metrics,
};

/// Asks for a comparison out of turn.
#[derive(Debug, Clone, Default)]
pub(super) struct Resync(Arc<Notify>);

impl Resync {
    /// LISTEN is in force from here on: whatever was missed before is to be found.
    pub(super) fn connected(&self) {
        self.0.notify_one();
    }
}

/// The task that compares.
pub(super) struct Reconciler {
    pub(super) hub: Arc<Hub>,
    pub(super) store: Arc<dyn Store>,
    pub(super) resync: Resync,
    pub(super) listening: watch::Receiver<ListenState>,
    pub(super) metrics: Arc<Metrics>,
}

impl Reconciler {
    /// Works until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        // Dropped at whatever it does: a comparison leaves nothing half done.
        stop.run_until_cancelled(self.compare_for_ever()).await;
    }

    async fn compare_for_ever(&mut self) {
        let mut warned = false;
        loop {
            let reason = self.turn().await;
            self.metrics.resyncs.with_label_values(&[reason]).inc();
            match self.compare().await {
                Ok(()) if warned => {
                    tracing::info!("heads can be compared again");
                    warned = false;
                }
                Ok(()) => {}
                Err(error) => {
                    if !warned {
                        tracing::warn!(%error, "heads cannot be compared");
                        warned = true;
                    }
                    sleep(RECONCILE_RETRY_PAUSE).await;
                    self.resync.connected();
                }
            }
        }
    }

    /// Waits for the next turn; tells what made it.
    async fn turn(&mut self) -> &'static str {
        let last = Instant::now();
        let chance = rand::random_range(0.0..1.0);
        loop {
            let (shortest, longest) = match *self.listening.borrow_and_update() {
                ListenState::Hearing => RECONCILE_INTERVAL,
                ListenState::Starting | ListenState::Lost | ListenState::Deaf => {
                    RECONCILE_DEAF_INTERVAL
                }
            };
            let due = last + shortest + (longest - shortest).mul_f64(chance);
            tokio::select! {
                () = self.resync.0.notified() => return "connected",
                () = sleep_until(due) => return "periodic",
                // The pace may be another one now. The sender ends with the process.
                Ok(()) = self.listening.changed() => {}
            }
        }
    }

    /// Wakes the streams of users whose head moved without their being told.
    async fn compare(&self) -> Result<(), StoreError> {
        let told = self.hub.told_heads();
        let mut ahead = Vec::new();
        let mut read = Ok(());
        for chunk in told.chunks(RECONCILE_CHUNK_USERS) {
            read = self.find_ahead(chunk, &mut ahead).await;
            if read.is_err() {
                break;
            }
        }
        if !ahead.is_empty() {
            sleep(RECONCILE_SECOND_LOOK).await;
            let lost = ahead.iter().filter(|(user, head)| self.hub.reconcile(*user, *head)).count();
            self.metrics.reconciled_users.inc_by(u64::try_from(lost).unwrap_or(u64::MAX));
            if lost > 0 {
                tracing::debug!(users = lost, "changes were found that no announcement told");
            }
        }
        read
    }

    async fn find_ahead(
        &self,
        told: &[(UserId, u64)],
        ahead: &mut Vec<(UserId, u64)>,
    ) -> Result<(), StoreError> {
        let users: Vec<UserId> = told.iter().map(|(user, _)| *user).collect();
        let heads = self.store.heads(&users, Instant::now() + RECONCILE_READ_TIMEOUT).await?;
        let pairs = told.iter().zip(heads);
        ahead.extend(
            pairs.filter(|((_, told), head)| head > told).map(|((user, _), head)| (*user, head)),
        );
        Ok(())
    }
}
