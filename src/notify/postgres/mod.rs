//! The feed between replicas that share one Postgres.
//!
//! ```text
//! commit → hub (own streams) → outbox → notifier → NOTIFY ⇢ LISTEN → listener → hub → streams
//!                                               heads, noted nudges → reconcile ↗
//! ```
//!
//! The upper way is quick and may lose; the lower one finds within seconds what was lost.

use std::{fmt, sync::Arc};

use prometheus::IntCounter;
use tokio::{sync::watch, time::Instant};

use super::{Change, ChangeFeed, Hub, ListenState, UserTag, run::Run};
use crate::{
    config::PostgresConfig,
    limits::MAX_QUEUED_ANNOUNCEMENTS,
    store::{Store, StoreError, UserId, postgres::Connector},
    tasks::Tasks,
    telemetry::metrics::Metrics,
};

mod listener;
mod missed;
mod notifier;
mod outbox;
mod payload;
mod reconcile;

use listener::{Ears, Listener};
use missed::{MissedNudges, PostgresNudgeLog};
use notifier::Notifier;
use outbox::{Outbox, Waiting};
use reconcile::{Reconciler, Resync};

/// The channel all replicas over one database share; bears the name of the schema.
const CHANNEL: &str = "data_sync";

/// Wakes the streams of this replica, and has the other replicas told.
pub struct PostgresFeed {
    hub: Arc<Hub>,
    outbox: Arc<Outbox>,
    published: IntCounter,
    state: watch::Receiver<ListenState>,
}

impl fmt::Debug for PostgresFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresFeed").field("outbox", &self.outbox).finish_non_exhaustive()
    }
}

impl PostgresFeed {
    /// Starts a feed whose tasks run until `tasks` are asked to stop; then what was announced is
    /// still sent. Heads are read from `store`, which may open later: nobody has streams before.
    ///
    /// # Errors
    /// `Internal` for a URL or an authority file that cannot be used.
    pub fn start(
        config: &PostgresConfig,
        hub: &Arc<Hub>,
        store: Arc<dyn Store>,
        metrics: &Arc<Metrics>,
        tasks: &Tasks,
    ) -> Result<Self, StoreError> {
        let dropped = metrics.notifications_dropped.clone();
        let outbox = Arc::new(Outbox::new(MAX_QUEUED_ANNOUNCEMENTS, dropped));
        let origin = rand::random();
        let notifying = Connector::new(&config.url, config, tasks)?;
        let listening = Connector::new(&config.direct_url, config, tasks)?;
        let (state, watched) = watch::channel(ListenState::Starting);
        let resync = Resync::default();
        let notifier = Notifier::new(notifying.clone(), Arc::clone(&outbox), origin);
        let listener = Listener {
            connector: listening,
            outbox: Arc::clone(&outbox),
            ears: Ears::new(Arc::clone(hub), origin),
            resync: resync.clone(),
            state,
            metrics: Arc::clone(metrics),
        };
        let nudge_log = PostgresNudgeLog::new(notifying, origin);
        let reconciler = Reconciler {
            hub: Arc::clone(hub),
            missed: MissedNudges::new(nudge_log, Arc::clone(hub), metrics.missed_nudges.clone()),
            store,
            resync,
            listening: watched.clone(),
            metrics: Arc::clone(metrics),
        };
        tasks.spawn("notifier", notifier.run(tasks.stop_signal()));
        tasks.spawn("listener", listener.run(tasks.stop_signal()));
        tasks.spawn("reconciler", reconciler.run(tasks.stop_signal()));
        let published = metrics.notifications_published.clone();
        Ok(Self { hub: Arc::clone(hub), outbox, published, state: watched })
    }

    /// Whether changes of other replicas are heard at once, now and whenever that changes.
    #[must_use]
    pub fn listening(&self) -> watch::Receiver<ListenState> {
        self.state.clone()
    }
}

impl ChangeFeed for PostgresFeed {
    fn announce(&self, changes: &[Change]) {
        let now = Instant::now();
        let woken = changes.iter().map(|change| {
            let (tag, run) = (UserTag::of(change.user), Run::from(change));
            self.hub.announce_run(tag, &run, now);
            (tag, Waiting { run: Some(run), committed: now, nudge: false })
        });
        // Collected first: every stream here is woken before anything waits for the outbox.
        let news: Vec<_> = woken.collect();
        self.outbox.add(news.into_iter());
        self.published.inc_by(changes.iter().map(Change::revisions).sum());
    }

    fn nudge(&self, user: UserId) {
        let tag = UserTag::of(user);
        self.hub.nudge_tag(tag);
        let news = Waiting { run: None, committed: Instant::now(), nudge: true };
        self.outbox.add(std::iter::once((tag, news)));
    }
}
