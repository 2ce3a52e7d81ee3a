//! Wakes clients that got a cut page: no shipped client asks for the next page by itself.
//!
//! Listing further on wakes the user's streams at once, so that a backlog drains as fast as the
//! client lists. Listing from the same revision again means that the client is stuck on that page
//! (it cannot read a record, say): it is woken after a pause that doubles, from
//! [`limits::NUDGE_FIRST_DELAY`] to [`limits::NUDGE_MAX_DELAY`]. Source: design §2, semantics 6.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, time::DelayQueue};

use crate::{limits, notify::ChangeFeed, store::UserId, telemetry::metrics::Metrics};

/// Reports cut pages. Cloning it is cheap; reporting never waits.
#[derive(Debug, Clone)]
pub struct Nudger {
    reports: mpsc::Sender<CutPage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct CutPage {
    user: UserId,
    since: u64,
}

impl Nudger {
    /// A nudger and the task that does its work.
    #[must_use]
    pub fn new(feed: Arc<dyn ChangeFeed>, metrics: Arc<Metrics>) -> (Self, NudgeTask) {
        let (reports, inbox) = mpsc::channel(limits::MAX_QUEUED_NUDGES);
        let task =
            NudgeTask { feed, metrics, inbox, backoff: Backoff::default(), due: DelayQueue::new() };
        (Self { reports }, task)
    }

    /// Tells that a page of `user`, listed from `since`, was cut.
    ///
    /// When reports come faster than they are handled, further ones are left out: the client's
    /// next list reports again, and every new stream begins with a notification anyway.
    pub fn page_was_cut(&self, user: UserId, since: u64) {
        if self.reports.try_send(CutPage { user, since }).is_err() {
            tracing::debug!("nudge queue is full");
        }
    }
}

/// How often each page was listed of late, and when.
#[derive(Debug, Default)]
struct Backoff {
    listed: HashMap<CutPage, Listed>,
}

#[derive(Debug, Clone, Copy)]
struct Listed {
    delay: Duration,
    at: Instant,
}

impl Backoff {
    /// The pause before the client that listed `page` is woken; none the first time.
    fn delay(&mut self, page: CutPage, now: Instant) -> Duration {
        if self.listed.len() >= limits::MAX_TRACKED_CUT_PAGES {
            self.forget_old(now);
        }
        let last = self.listed.get(&page).filter(|listed| now < listed.at + limits::NUDGE_MEMORY);
        let delay = last.map_or(Duration::ZERO, |listed| {
            (listed.delay * 2).clamp(limits::NUDGE_FIRST_DELAY, limits::NUDGE_MAX_DELAY)
        });
        if self.listed.len() < limits::MAX_TRACKED_CUT_PAGES || last.is_some() {
            self.listed.insert(page, Listed { delay, at: now });
            delay
        } else {
            // Too many pages to remember: rather late than for ever at once.
            limits::NUDGE_MAX_DELAY
        }
    }

    fn forget_old(&mut self, now: Instant) {
        self.listed.retain(|_, listed| now < listed.at + limits::NUDGE_MEMORY);
    }
}

/// The task behind a [`Nudger`].
#[derive(Debug)]
pub struct NudgeTask {
    feed: Arc<dyn ChangeFeed>,
    metrics: Arc<Metrics>,
    inbox: mpsc::Receiver<CutPage>,
    backoff: Backoff,
    due: DelayQueue<UserId>,
}

impl NudgeTask {
    /// Works until `stop` or until the last [`Nudger`] is gone. What is planned by then is done
    /// at once: better early than never.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return self.finish(),
                page = self.inbox.recv() => match page {
                    Some(page) => self.plan(page),
                    None => return,
                },
                Some(user) = std::future::poll_fn(|cx| self.due.poll_expired(cx)), if !self.due.is_empty() => {
                    self.nudge(user.into_inner());
                }
            }
        }
    }

    fn plan(&mut self, page: CutPage) {
        let delay = self.backoff.delay(page, Instant::now());
        if delay.is_zero() {
            self.nudge(page.user);
        } else if self.due.len() < limits::MAX_QUEUED_NUDGES {
            self.due.insert(page.user, delay);
        }
    }

    fn finish(mut self) {
        while let Ok(page) = self.inbox.try_recv() {
            self.plan(page);
        }
        while let Some(next) = self.due.peek() {
            let user = self.due.remove(&next).into_inner();
            self.nudge(user);
        }
    }

    fn nudge(&self, user: UserId) {
        self.metrics.nudges.inc();
        self.feed.nudge(user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::{Hub, LocalFeed};

    fn page(since: u64) -> CutPage {
        CutPage { user: UserId::new([2; 33]), since }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_moves_on_is_woken_at_once() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        for since in [0, 1_000, 2_000] {
            assert_eq!(backoff.delay(page(since), now), Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_stuck_on_a_page_is_woken_ever_more_rarely() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        let delays: Vec<Duration> = (0..12).map(|_| backoff.delay(page(0), now)).collect();
        assert_eq!(delays[0], Duration::ZERO);
        assert_eq!(delays[1], limits::NUDGE_FIRST_DELAY);
        assert!(delays.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(delays[11], limits::NUDGE_MAX_DELAY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_listed_again_much_later_counts_as_new() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        backoff.delay(page(0), now);
        assert_eq!(backoff.delay(page(0), now + limits::NUDGE_MEMORY), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_has_a_bound() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        for since in 0..limits::MAX_TRACKED_CUT_PAGES as u64 {
            backoff.delay(page(since), now);
        }
        assert_eq!(backoff.delay(page(u64::MAX), now), limits::NUDGE_MAX_DELAY);
        assert_eq!(backoff.listed.len(), limits::MAX_TRACKED_CUT_PAGES);
        let later = now + limits::NUDGE_MEMORY;
        assert_eq!(backoff.delay(page(u64::MAX), later), Duration::ZERO);
        assert_eq!(backoff.listed.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_stops_leaves_no_planned_nudge_behind() {
        let (hub, metrics) = (Arc::new(Hub::new()), Arc::new(Metrics::new()));
        let feed = Arc::new(LocalFeed::new(Arc::clone(&hub), &metrics));
        let (nudger, task) = Nudger::new(feed, Arc::clone(&metrics));
        let (stop, user) = (CancellationToken::new(), page(0).user);
        let mut stream = hub.subscribe(user);
        stream.start_at(0);
        for _ in 0..3 {
            nudger.page_was_cut(user, 0);
        }
        let client = async {
            stream.next().await;
            assert_eq!(metrics.nudges.get(), 1);
            nudger.page_was_cut(user, 0);
            stop.cancel();
        };
        tokio::join!(task.run(stop.clone()), client);
        assert_eq!(metrics.nudges.get(), 4);
        stream.next().await;
    }
}
