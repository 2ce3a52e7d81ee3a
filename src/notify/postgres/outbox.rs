//! What the other replicas are still to be told: one entry a user, however much it wrote.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use prometheus::IntCounter;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::super::{run::Run, tag::UserTag};

/// News of one user that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    /// The newest revisions this replica wrote.
    pub(super) run: Option<Run>,
    /// When the newest of them was committed.
    pub(super) committed: Instant,
    /// The user's streams are to be woken in any case.
    pub(super) nudge: bool,
}

impl Waiting {
    /// Takes in what came later.
    fn take_in(&mut self, later: Self) {
        self.nudge |= later.nudge;
        let Some(run) = later.run else { return };
        let news = match &mut self.run {
            Some(known) => known.take_in(&run),
            None => {
                self.run = Some(run);
                true
            }
        };
        if news {
            self.committed = later.committed;
        }
    }
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<UserTag, Waiting>,
    /// The users of `waiting`, those that wait longest first.
    order: VecDeque<UserTag>,
    /// A message is to be sent even if nobody waits.
    proof_wanted: bool,
}

/// Filled by whoever commits, emptied by the notifier. Never blocks anybody for long.
pub(super) struct Outbox {
    state: Mutex<State>,
    filled: Notify,
    /// Serial number of the newest message that was committed.
    committed: watch::Sender<u64>,
    max_users: usize,
    dropped: IntCounter,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("users", &self.users()).finish_non_exhaustive()
    }
}

impl Outbox {
    /// An empty outbox for at most `max_users`; news of further ones are counted in `dropped`.
    pub(super) fn new(max_users: usize, dropped: IntCounter) -> Self {
        Self {
            state: Mutex::default(),
            filled: Notify::new(),
            committed: watch::Sender::new(0),
            max_users,
            dropped,
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Users that wait.
    pub(super) fn users(&self) -> usize {
        self.locked().waiting.len()
    }

    /// Adds what just happened.
    pub(super) fn add(&self, news: impl Iterator<Item = (UserTag, Waiting)>) {
        let mut state = self.locked();
        for (tag, news) in news {
            let has_room = state.waiting.len() < self.max_users;
            match state.waiting.entry(tag) {
                Entry::Occupied(mut waiting) => waiting.get_mut().take_in(news),
                Entry::Vacant(place) if has_room => {
                    place.insert(news);
                    state.order.push_back(tag);
                }
                Entry::Vacant(_) => self.dropped.inc(),
            }
        }
        drop(state);
        self.filled.notify_one();
    }

    /// Asks for a message that proves that messages are heard.
    pub(super) fn want_proof(&self) {
        self.locked().proof_wanted = true;
        self.filled.notify_one();
    }

    /// Makes [`Self::filled`] return once more.
    pub(super) fn look_again(&self) {
        self.filled.notify_one();
    }

    /// Waits until there may be something to send.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Takes out at most `limit` users, those that wait longest; `None` if there is nothing to be
    /// sent at all.
    pub(super) fn take(&self, limit: usize) -> Option<Vec<(UserTag, Waiting)>> {
        let mut state = self.locked();
        if state.order.is_empty() && !state.proof_wanted {
            return None;
        }
        state.proof_wanted = false;
        let count = limit.min(state.order.len());
        let State { waiting, order, .. } = &mut *state;
        let taken = order.drain(..count);
        Some(taken.filter_map(|tag| waiting.remove_entry(&tag)).collect())
    }

    /// Puts back what could not be sent, before what came in since.
    pub(super) fn give_back(&self, unsent: Vec<(UserTag, Waiting)>) {
        let mut state = self.locked();
        state.proof_wanted = true;
        for (tag, mut earlier) in unsent.into_iter().rev() {
            let has_room = state.waiting.len() < self.max_users;
            match state.waiting.entry(tag) {
                Entry::Occupied(mut waiting) => {
                    std::mem::swap(waiting.get_mut(), &mut earlier);
                    waiting.get_mut().take_in(earlier);
                }
                Entry::Vacant(place) if has_room => {
                    place.insert(earlier);
                    state.order.push_front(tag);
                }
                Entry::Vacant(_) => self.dropped.inc(),
            }
        }
        drop(state);
        self.filled.notify_one();
    }

    /// Tells that the message with this serial number was committed.
    pub(super) fn message_committed(&self, serial: u64) {
        self.committed.send_replace(serial);
    }

    /// Serial number of the newest message that was committed.
    pub(super) fn watch_committed(&self) -> watch::Receiver<u64> {
        self.committed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(max_users: usize) -> Outbox {
        Outbox::new(max_users, IntCounter::new("dropped", "dropped").expect("a metric"))
    }

    fn tag(number: u8) -> UserTag {
        UserTag::new([number; UserTag::BYTES])
    }

    fn run(from: u64, to: u64, client: &str) -> Waiting {
        let run = Run { from, to, client_id: Some(client.into()) };
        Waiting { run: Some(run), committed: Instant::now(), nudge: false }
    }

    fn nudge() -> Waiting {
        Waiting { run: None, committed: Instant::now(), nudge: true }
    }

    fn add(outbox: &Outbox, number: u8, news: Waiting) {
        outbox.add(std::iter::once((tag(number), news)));
    }

    fn taken(outbox: &Outbox, limit: usize) -> Vec<(UserTag, Option<Run>, bool)> {
        let taken = outbox.take(limit).expect("something");
        taken.into_iter().map(|(tag, news)| (tag, news.run, news.nudge)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn news_of_one_user_become_one_entry() {
        let outbox = outbox(9);
        for news in [run(1, 1, "a"), run(2, 3, "a"), nudge()] {
            add(&outbox, 1, news);
        }
        assert_eq!(taken(&outbox, 9), [(tag(1), run(1, 3, "a").run, true)]);
        assert_eq!(outbox.take(9), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_run_is_told_where_runs_do_not_join() {
        let outbox = outbox(9);
        add(&outbox, 1, run(5, 5, "a"));
        add(&outbox, 1, run(7, 7, "a"));
        assert_eq!(taken(&outbox, 9), [(tag(1), run(7, 7, "a").run, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_age_is_that_of_the_newest_revision() {
        let outbox = outbox(9);
        add(&outbox, 1, run(1, 1, "a"));
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        let newest = Instant::now();
        add(&outbox, 1, run(2, 2, "b"));
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        add(&outbox, 1, nudge());
        assert_eq!(outbox.take(9).expect("something")[0].1.committed, newest);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_longest_goes_first() {
        let outbox = outbox(9);
        for number in 1..=3 {
            add(&outbox, number, run(1, 1, "a"));
        }
        add(&outbox, 1, run(2, 2, "a"));
        let first: Vec<_> = taken(&outbox, 2).into_iter().map(|(tag, ..)| tag).collect();
        assert_eq!(first, [tag(1), tag(2)]);
        assert_eq!(taken(&outbox, 2), [(tag(3), run(1, 1, "a").run, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_users_are_counted_and_left_out() {
        let outbox = outbox(2);
        for number in 1..=3 {
            add(&outbox, number, run(1, 1, "a"));
        }
        add(&outbox, 2, run(2, 2, "a"));
        assert_eq!((outbox.users(), outbox.dropped.get()), (2, 1));
        let taken = outbox.take(2).expect("something");
        add(&outbox, 3, run(2, 2, "a"));
        outbox.give_back(taken);
        assert_eq!((outbox.users(), outbox.dropped.get()), (2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_sent_goes_before_what_came_since() {
        let outbox = outbox(9);
        add(&outbox, 1, run(1, 1, "a"));
        add(&outbox, 2, run(1, 1, "a"));
        let unsent = outbox.take(9).expect("something");
        add(&outbox, 3, run(1, 1, "a"));
        add(&outbox, 2, run(2, 2, "a"));
        outbox.give_back(unsent);
        let again = taken(&outbox, 9);
        assert_eq!(again[0], (tag(1), run(1, 1, "a").run, false));
        assert!(again.contains(&(tag(2), run(1, 2, "a").run, false)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_proof_is_sent_even_if_nobody_waits() {
        let outbox = outbox(9);
        outbox.want_proof();
        outbox.filled().await;
        assert_eq!(outbox.take(9), Some(Vec::new()));
        assert_eq!(outbox.take(9), None);
    }
}
