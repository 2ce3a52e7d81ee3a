//! Finds what no announcement told: compares the heads of users with open streams to what their
//! streams were told.
//!
//! Announcements get lost: with a replica that dies after its commit, with the LISTEN connection,
//! with a full outbox. A comparison makes up for them, and can name no writer; so a head that is
//! ahead is looked at a second time, after an announcement on its way would have arrived. Without
//! that a device would be woken by its own writes.
//!
//! Nudges move no head; what makes up for them is [`super::missed`], in the same turns.

use std::sync::Arc;

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::missed::{MissedNudges, NudgeLog};
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
pub(super) struct Reconciler<L> {
    pub(super) hub: Arc<Hub>,
    pub(super) store: Arc<dyn Store>,
    pub(super) resync: Resync,
    pub(super) listening: watch::Receiver<ListenState>,
    pub(super) missed: MissedNudges<L>,
    pub(super) metrics: Arc<Metrics>,
}

/// What made a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Periodic,
    /// LISTEN is in force anew.
    Connected,
    /// The turn before failed.
    Retry,
}

impl Turn {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Periodic => "periodic",
            Self::Connected => "connected",
            Self::Retry => "retry",
        }
    }
}

impl<L: NudgeLog> Reconciler<L> {
    /// Works until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        // Dropped at whatever it does: a comparison leaves nothing half done.
        stop.run_until_cancelled(self.compare_for_ever()).await;
    }

    async fn compare_for_ever(&mut self) {
        let mut warned = false;
        let mut turn = self.turn().await;
        loop {
            self.metrics.resyncs.with_label_values(&[turn.as_str()]).inc();
            turn = match self.make_up(turn).await {
                Ok(()) => {
                    if warned {
                        tracing::info!("heads can be compared again");
                        warned = false;
                    }
                    self.turn().await
                }
                Err(error) => {
                    if !warned {
                        tracing::warn!(%error, "heads cannot be compared");
                        warned = true;
                    }
                    sleep(RECONCILE_RETRY_PAUSE).await;
                    Turn::Retry
                }
            };
        }
    }

    /// Finds what was lost, of changes and of nudges.
    async fn make_up(&mut self, turn: Turn) -> Result<(), StoreError> {
        let is_hearing = *self.listening.borrow() == ListenState::Hearing;
        let nudges = self.missed.make_up(turn == Turn::Connected || !is_hearing).await;
        self.compare().await.and(nudges)
    }

    /// Waits for the next turn; tells what made it.
    async fn turn(&mut self) -> Turn {
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
                // A new connection counts as one even if the turn was due anyway.
                biased;
                () = self.resync.0.notified() => return Turn::Connected,
                () = sleep_until(due) => return Turn::Periodic,
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::{
        clock::SystemClock,
        notify::{Change, Hint, Subscription, postgres::missed::tests::Log},
        store::{
            Quotas, StoreContext,
            conformance::{RecordingFeed, new_write, soon, user},
            memory::MemoryStore,
        },
        tasks::Tasks,
    };

    /// What the five seconds promised to a stream must cover.
    const BOUND: Duration = Duration::from_secs(5);

    struct Fixture {
        hub: Arc<Hub>,
        /// Announces nothing to anybody.
        store: Arc<MemoryStore>,
        log: Log,
        stream: Subscription,
        state: watch::Sender<ListenState>,
        resync: Resync,
        metrics: Arc<Metrics>,
        tasks: Tasks,
    }

    /// A running reconciler, and a stream of a user who has not written yet.
    fn start(state: ListenState) -> Fixture {
        let metrics = Arc::new(Metrics::new());
        let store = Arc::new(MemoryStore::new(StoreContext {
            feed: Arc::new(RecordingFeed::new()),
            quotas: Quotas::default(),
            clock: Arc::new(SystemClock),
            metrics: Arc::clone(&metrics),
        }));
        let hub = Arc::new(Hub::new());
        let mut stream = hub.subscribe(user(1));
        stream.start_at(0);
        let (state, listening) = watch::channel(state);
        let (resync, log) = (Resync::default(), Log::default());
        let reconciler = Reconciler {
            hub: Arc::clone(&hub),
            store: Arc::clone(&store) as _,
            resync: resync.clone(),
            listening,
            missed: MissedNudges::new(log.clone(), Arc::clone(&hub), metrics.missed_nudges.clone()),
            metrics: Arc::clone(&metrics),
        };
        let tasks = Tasks::new();
        tasks.spawn("reconciler", reconciler.run(tasks.stop_signal()));
        Fixture { hub, store, log, stream, state, resync, metrics, tasks }
    }

    impl Fixture {
        async fn write(&self, id: &str) {
            self.store.set_record(new_write(user(1), id, 0, b"x"), soon()).await.expect("written");
        }

        async fn told_within(&mut self, limit: Duration) -> Option<Hint> {
            timeout(limit, self.stream.next()).await.ok()
        }

        fn resyncs(&self, reason: &str) -> u64 {
            self.metrics.resyncs.with_label_values(&[reason]).get()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_announcement_is_made_up_for_whenever_it_is_lost() {
        for wait_ms in [0, 1_000, 3_100, 3_900, 4_100] {
            let mut f = start(ListenState::Hearing);
            sleep(Duration::from_millis(wait_ms)).await;
            f.write("a").await;
            let hint = f.told_within(BOUND).await.expect("told in time");
            assert_eq!((hint.client_id, hint.revision, hint.committed), (None, 1, None));
            assert_eq!(f.metrics.reconciled_users.get(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_announcement_on_its_way_is_waited_for() {
        let mut f = start(ListenState::Hearing);
        f.write("a").await;
        while f.resyncs("periodic") == 0 {
            sleep(Duration::from_millis(10)).await;
        }
        sleep(RECONCILE_SECOND_LOOK / 2).await;
        let client_id = Some("device".into());
        f.hub.announce(&Change { user: user(1), from: 1, to: 1, client_id: client_id.clone() });
        assert_eq!(f.told_within(BOUND).await.map(|hint| hint.client_id), Some(client_id));
        assert_eq!(f.told_within(BOUND).await, None);
        assert_eq!(f.metrics.reconciled_users.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_told_everything_is_left_in_peace() {
        let mut f = start(ListenState::Hearing);
        f.write("a").await;
        f.hub.announce(&Change { user: user(1), from: 1, to: 1, client_id: None });
        assert!(f.told_within(BOUND).await.is_some());
        assert_eq!(f.told_within(BOUND * 4).await, None);
        assert!(f.resyncs("periodic") >= 4);
    }

    #[tokio::test(start_paused = true)]
    async fn listening_anew_compares_at_once() {
        let mut f = start(ListenState::Hearing);
        f.write("a").await;
        f.resync.connected();
        let soon = RECONCILE_SECOND_LOOK + Duration::from_millis(100);
        assert!(f.told_within(soon).await.is_some());
        assert_eq!((f.resyncs("connected"), f.resyncs("periodic")), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn while_nothing_is_heard_heads_are_compared_more_often() {
        let often = RECONCILE_DEAF_INTERVAL.1 + RECONCILE_SECOND_LOOK + Duration::from_millis(100);
        let mut f = start(ListenState::Deaf);
        f.write("a").await;
        assert!(f.told_within(often).await.is_some());
        // Also from the moment on that it is noticed.
        let mut f = start(ListenState::Hearing);
        sleep(Duration::from_millis(500)).await;
        f.write("a").await;
        f.state.send_replace(ListenState::Lost);
        assert!(f.told_within(often).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_nudge_that_was_not_heard_is_made_up_for_while_deaf_and_when_listening_anew() {
        let mut f = start(ListenState::Deaf);
        f.log.note(user(1));
        let often = RECONCILE_DEAF_INTERVAL.1 + Duration::from_millis(100);
        let hint = f.told_within(often).await.expect("told in time");
        assert_eq!((hint.client_id, hint.changes), (None, 0));
        let mut f = start(ListenState::Hearing);
        f.log.note(user(1));
        f.resync.connected();
        assert!(f.told_within(Duration::from_millis(100)).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_fails_is_asked_again_soon() {
        let f = start(ListenState::Deaf);
        f.store.close().await;
        sleep(RECONCILE_DEAF_INTERVAL.1 + RECONCILE_RETRY_PAUSE * 3).await;
        assert!(f.resyncs("retry") >= 2);
        assert!(f.tasks.stop(Duration::from_secs(1)).await);
    }
}
