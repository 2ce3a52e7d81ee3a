//! Makes up for nudges that were not heard.
//!
//! A nudge leaves no trace in the heads, so comparing them cannot find a lost one. Each nudge
//! therefore stands in the database for some minutes, written by the transaction that announces
//! it. Whoever may have missed some reads them there: once LISTEN is in force anew, and at every
//! comparison while nothing is heard. A replica that hears reads nothing.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use prometheus::IntCounter;
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, types::Type};

use crate::{
    limits::{
        LISTEN_LOSS_FOUND_WITHIN, MAX_MISSED_NUDGES, NUDGE_LOG_MARGIN, RECONCILE_READ_TIMEOUT,
    },
    notify::{Hub, UserTag},
    store::{
        StoreError,
        postgres::{Connector, transact},
    },
};

/// When somebody was nudged, by the database's clock: equal times of one user are one nudge.
pub(super) type NudgedAt = i64;

/// Where nudges stand written for a while.
#[async_trait]
pub(super) trait NudgeLog: Send + Sync + 'static {
    /// The users that other replicas nudged within the last `time`.
    async fn others_within(
        &mut self,
        time: Duration,
    ) -> Result<Vec<(UserTag, NudgedAt)>, StoreError>;

    /// Nothing is to be read for the time being.
    fn rest(&mut self);
}

/// Reads of the last `$1` milliseconds what replicas other than `$2` noted, the newest first.
const READ: &str = "SELECT user_tag, (extract(epoch FROM nudged_at) * 1000000)::int8 \
                    FROM data_sync.nudges \
                    WHERE nudged_at > clock_timestamp() - $1 * interval '1 millisecond' \
                    AND origin <> $2 ORDER BY nudged_at DESC LIMIT $3";

/// The log in Postgres. It is read over the URL of the writes: LISTEN's may be what failed.
pub(super) struct PostgresNudgeLog {
    connector: Connector,
    origin: i64,
    begin: String,
    client: Option<Client>,
}

impl PostgresNudgeLog {
    pub(super) fn new(connector: Connector, origin: u64) -> Self {
        let begin = format!(
            "BEGIN READ ONLY; SET LOCAL statement_timeout = {}",
            RECONCILE_READ_TIMEOUT.as_millis()
        );
        Self { connector, origin: origin.cast_signed(), begin, client: None }
    }

    async fn read(&mut self, time: Duration) -> Result<Vec<(UserTag, NudgedAt)>, StoreError> {
        // Taken out, so that a reading cut short leaves no half-read connection behind.
        let client = match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.connector.connect().await?,
        };
        let time_ms = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let limit = i64::try_from(MAX_MISSED_NUDGES).unwrap_or(i64::MAX);
        let parameters = [
            (&time_ms as _, Type::INT8),
            (&self.origin as _, Type::INT8),
            (&limit as _, Type::INT8),
        ];
        let rows =
            transact(&client, &self.begin, READ, &parameters, RECONCILE_READ_TIMEOUT).await?;
        let nudges = rows.iter().map(|row| {
            let tag = row.try_get::<_, &[u8]>(0).ok()?.try_into().ok()?;
            Some((UserTag::new(tag), row.try_get(1).ok()?))
        });
        let nudges = nudges.collect::<Option<Vec<_>>>().ok_or_else(|| {
            StoreError::Internal("an answer of postgres about nudges cannot be read".to_owned())
        })?;
        self.client = Some(client);
        Ok(nudges)
    }
}

#[async_trait]
impl NudgeLog for PostgresNudgeLog {
    async fn others_within(
        &mut self,
        time: Duration,
    ) -> Result<Vec<(UserTag, NudgedAt)>, StoreError> {
        let limit = RECONCILE_READ_TIMEOUT * 2;
        timeout(limit, self.read(time)).await.unwrap_or_else(|_elapsed| {
            Err(StoreError::Unavailable("nudges could not be read in time".to_owned()))
        })
    }

    fn rest(&mut self) {
        self.client = None;
    }
}

/// What this replica knows of the nudges of others.
pub(super) struct MissedNudges<L> {
    log: L,
    hub: Arc<Hub>,
    made_up: IntCounter,
    /// Every nudge up to here was heard or read.
    known_until: Instant,
    /// Some may have been missed since.
    is_owed: bool,
    /// What the last reading brought: the next one brings some of it again.
    read: HashMap<UserTag, NudgedAt>,
}

impl<L: NudgeLog> MissedNudges<L> {
    pub(super) fn new(log: L, hub: Arc<Hub>, made_up: IntCounter) -> Self {
        let known_until = Instant::now();
        Self { log, hub, made_up, known_until, is_owed: false, read: HashMap::new() }
    }

    /// Wakes the streams that a nudge did not reach, unless nothing `may_be_missed`.
    pub(super) async fn make_up(&mut self, may_be_missed: bool) -> Result<(), StoreError> {
        self.is_owed |= may_be_missed;
        let now = Instant::now();
        if !self.is_owed {
            // What is heard now was heard all along, but for a loss that was not yet noticed.
            let heard_until = now.checked_sub(LISTEN_LOSS_FOUND_WITHIN).unwrap_or(now);
            self.known_until = self.known_until.max(heard_until);
            self.read.clear();
            self.log.rest();
            return Ok(());
        }
        // A stream that begins later begins with a notification.
        if self.hub.users() > 0 {
            let time = now.duration_since(self.known_until) + NUDGE_LOG_MARGIN;
            let nudges: HashMap<_, _> = self.log.others_within(time).await?.into_iter().collect();
            for (tag, nudged_at) in &nudges {
                if self.read.get(tag) != Some(nudged_at) && self.hub.has_streams(*tag) {
                    self.made_up.inc();
                    self.hub.nudge_tag(*tag);
                }
            }
            self.read = nudges;
        }
        self.known_until = now;
        self.is_owed = false;
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Mutex, MutexGuard};

    use tokio::time::advance;

    use super::*;
    use crate::{
        notify::Subscription,
        store::{UserId, conformance::user},
    };

    const SECOND: Duration = Duration::from_secs(1);

    #[derive(Debug, Default)]
    struct State {
        nudges: Vec<(UserId, Instant)>,
        is_away: bool,
        readings: usize,
    }

    /// A log in memory; numbers serve as its times.
    #[derive(Debug, Clone, Default)]
    pub(in crate::notify::postgres) struct Log(Arc<Mutex<State>>);

    impl Log {
        fn state(&self) -> MutexGuard<'_, State> {
            self.0.lock().expect("not poisoned")
        }

        pub(in crate::notify::postgres) fn note(&self, user: UserId) {
            self.state().nudges.push((user, Instant::now()));
        }
    }

    #[async_trait]
    impl NudgeLog for Log {
        async fn others_within(
            &mut self,
            time: Duration,
        ) -> Result<Vec<(UserTag, NudgedAt)>, StoreError> {
            let mut state = self.state();
            state.readings += 1;
            if state.is_away {
                return Err(StoreError::Unavailable("away".to_owned()));
            }
            let numbered = (0..).zip(&state.nudges);
            let recent = numbered.filter(|(_, (_, at))| at.elapsed() < time);
            Ok(recent.map(|(number, (user, _))| (UserTag::of(*user), number)).collect())
        }

        fn rest(&mut self) {}
    }

    fn start() -> (Log, MissedNudges<Log>, Subscription) {
        let (log, hub) = (Log::default(), Arc::new(Hub::new()));
        let mut stream = hub.subscribe(user(1));
        stream.start_at(0);
        let made_up = IntCounter::new("made_up", "made up for").expect("a metric");
        (log.clone(), MissedNudges::new(log, hub, made_up), stream)
    }

    async fn is_woken(stream: &mut Subscription) -> bool {
        timeout(Duration::from_millis(1), stream.next()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_nudge_from_the_time_of_a_loss_is_made_up_for_once() {
        let (log, mut missed, mut stream) = start();
        advance(SECOND * 60).await;
        missed.make_up(false).await.expect("nothing to do");
        // The loss is noticed only later.
        log.note(user(1));
        log.note(user(2));
        advance(LISTEN_LOSS_FOUND_WITHIN).await;
        missed.make_up(true).await.expect("read");
        assert!(is_woken(&mut stream).await);
        for _ in 0..5 {
            advance(SECOND).await;
            missed.make_up(true).await.expect("read");
            assert!(!is_woken(&mut stream).await, "told twice");
        }
        log.note(user(1));
        missed.make_up(true).await.expect("read");
        assert!(is_woken(&mut stream).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_read_is_read_later_even_if_all_is_heard_by_then() {
        let (log, mut missed, mut stream) = start();
        log.note(user(1));
        log.state().is_away = true;
        assert!(missed.make_up(true).await.is_err());
        advance(SECOND * 60).await;
        assert!(missed.make_up(false).await.is_err());
        log.state().is_away = false;
        missed.make_up(false).await.expect("read");
        assert!(is_woken(&mut stream).await);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_read_while_all_is_heard_or_nobody_waits() {
        let (log, mut missed, stream) = start();
        log.note(user(1));
        for _ in 0..5 {
            advance(SECOND * 4).await;
            missed.make_up(false).await.expect("nothing to do");
        }
        drop(stream);
        missed.make_up(true).await.expect("nothing to do");
        assert_eq!(log.state().readings, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_heard_long_ago_is_not_told_again() {
        let (log, mut missed, mut stream) = start();
        log.note(user(1));
        advance(SECOND * 60).await;
        missed.make_up(false).await.expect("nothing to do");
        missed.make_up(true).await.expect("read");
        assert!(!is_woken(&mut stream).await);
    }
}
