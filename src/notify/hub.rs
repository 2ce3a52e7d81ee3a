//! Fan-out within one replica: one slot a user, however many streams and changes.
//!
//! A slot holds the newest revision told and the unbroken run of one client's writes that ends
//! there. There is no queue to overflow: a slow stream finds the newest state when it looks, and
//! learns of everything since it last looked in one [`Hint`]. A slot goes with its last stream.
//!
//! A hint names a client only if everything since the last one is known to be that client's (see
//! [`super::run`]): a device that took another's write for its own echo would never fetch it.

use std::sync::Arc;

use dashmap::{DashMap, mapref::entry::Entry};
use tokio::{sync::watch, time::Instant};

use super::{Change, UserTag, run::Run};
use crate::store::UserId;

/// What a user's streams on this replica have been told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Slot {
    /// The newest revision told and who wrote up to it.
    run: Run,
    /// When the newest revision was committed, where that is known.
    committed: Option<Instant>,
    /// A stream was told where it starts.
    started: bool,
    /// Rises with each nudge.
    nudges: u64,
}

/// A user with at least one stream.
#[derive(Debug)]
struct Place {
    user: UserId,
    slot: watch::Sender<Slot>,
}

/// Every user with an open stream on this replica.
#[derive(Debug, Default)]
pub struct Hub {
    /// By tag, as other replicas name users: one index serves announcements from everywhere.
    places: DashMap<UserTag, Place>,
}

impl Hub {
    /// A hub without subscriptions.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers one stream. From here on no announcement passes it by.
    ///
    /// The caller then reads the user's head from the store and hands it to
    /// [`Subscription::start_at`]; in that order nothing falls between.
    #[must_use]
    pub fn subscribe(self: &Arc<Self>, user: UserId) -> Subscription {
        let tag = UserTag::of(user);
        let place = self
            .places
            .entry(tag)
            .or_insert_with(|| Place { user, slot: watch::Sender::new(Slot::default()) });
        let receiver = place.slot.subscribe();
        let nudges_seen = receiver.borrow().nudges;
        drop(place);
        Subscription { hub: Arc::clone(self), tag, receiver, told: 0, nudges_seen }
    }

    /// Wakes the user's streams for a change that was committed just now.
    pub fn announce(&self, change: &Change) {
        self.announce_run(UserTag::of(change.user), &Run::from(change), Instant::now());
    }

    /// Wakes the streams of the user with this tag for a run committed then.
    pub(super) fn announce_run(&self, tag: UserTag, run: &Run, committed: Instant) {
        if let Some(place) = self.places.get(&tag) {
            place.slot.send_if_modified(|slot| {
                let news = slot.run.take_in(run);
                if news {
                    slot.committed = Some(committed);
                }
                news
            });
        }
    }

    /// Wakes the user's streams although nothing changed.
    pub fn nudge(&self, user: UserId) {
        self.nudge_tag(UserTag::of(user));
    }

    /// Wakes the streams of the user with this tag although nothing changed.
    pub(super) fn nudge_tag(&self, tag: UserTag) {
        if let Some(place) = self.places.get(&tag) {
            place.slot.send_modify(|slot| slot.nudges = slot.nudges.wrapping_add(1));
        }
    }

    /// Whether the user with this tag has an open stream here.
    #[cfg(feature = "postgres")]
    pub(super) fn has_streams(&self, tag: UserTag) -> bool {
        self.places.contains_key(&tag)
    }

    /// Tells the streams of `user` that the store's head is `head`, by whomever it was moved.
    /// Returns whether that was news: then an announcement was lost or is late.
    pub fn reconcile(&self, user: UserId, head: u64) -> bool {
        let Some(place) = self.places.get(&UserTag::of(user)) else {
            return false;
        };
        place.slot.send_if_modified(|slot| {
            let news = head > slot.run.to;
            if news {
                slot.run = Run::unknown(head);
                slot.committed = None;
            }
            news
        })
    }

    /// The users with an open stream, with the newest revision each was told of.
    #[must_use]
    pub fn told_heads(&self) -> Vec<(UserId, u64)> {
        let told = self.places.iter().filter_map(|place| {
            let slot = place.slot.borrow();
            slot.started.then_some((place.user, slot.run.to))
        });
        told.collect()
    }

    /// Number of users with an open stream.
    #[must_use]
    pub fn users(&self) -> usize {
        self.places.len()
    }

    /// Takes the first stream's start for what was told. A later stream's start must not: the
    /// streams before it were not told that much.
    fn start(&self, tag: UserTag, head: u64) {
        if let Some(place) = self.places.get(&tag) {
            place.slot.send_if_modified(|slot| {
                if !slot.started && head > slot.run.to {
                    slot.run = Run::unknown(head);
                    slot.committed = None;
                }
                slot.started = true;
                false
            });
        }
    }

    fn unsubscribe(&self, tag: UserTag) {
        if let Entry::Occupied(place) = self.places.entry(tag)
            && place.get().slot.receiver_count() == 0
        {
            place.remove();
        }
    }
}

/// What a stream is told: something changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// The writer, if everything since the last hint is known to be that client's.
    pub client_id: Option<Arc<str>>,
    /// The newest revision this hint covers.
    pub revision: u64,
    /// Number of revisions it covers that no earlier hint did; 0 for a mere nudge.
    pub changes: u64,
    /// When the newest of them was committed; unknown where a comparison of heads found it.
    pub committed: Option<Instant>,
}

/// One stream's place in the hub. Dropping it gives the place back.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    tag: UserTag,
    receiver: watch::Receiver<Slot>,
    /// Newest revision this stream has been told of.
    told: u64,
    nudges_seen: u64,
}

impl Subscription {
    /// Marks everything up to the store's `head` as told. Called once, before the first hint.
    pub fn start_at(&mut self, head: u64) {
        self.told = self.told.max(head);
        self.hub.start(self.tag, head);
    }

    /// Newest revision this stream has been told of.
    #[must_use]
    pub const fn told(&self) -> u64 {
        self.told
    }

    /// Waits for news. Cancelling loses nothing.
    pub async fn next(&mut self) -> Hint {
        loop {
            if let Some(hint) = self.take() {
                return hint;
            }
            if self.receiver.changed().await.is_err() {
                // The sender lives in the hub, which `self` keeps alive, and leaves it only when
                // no receiver is left: this cannot happen while `self` exists.
                std::future::pending::<()>().await;
            }
        }
    }

    fn take(&mut self) -> Option<Hint> {
        let slot = self.receiver.borrow_and_update();
        let changes = slot.run.to.saturating_sub(self.told);
        let nudged = slot.nudges != self.nudges_seen;
        if changes == 0 && !nudged {
            return None;
        }
        let writer = slot.run.writer_since(self.told).filter(|_| !nudged);
        let hint = Hint {
            client_id: writer.cloned(),
            revision: self.told.max(slot.run.to),
            changes,
            committed: slot.committed.filter(|_| changes > 0),
        };
        self.nudges_seen = slot.nudges;
        self.told = hint.revision;
        Some(hint)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // The receiver must be gone before the hub counts the receivers left.
        let (_, placeholder) = watch::channel(Slot::default());
        drop(std::mem::replace(&mut self.receiver, placeholder));
        self.hub.unsubscribe(self.tag);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const USER: UserId = UserId::new([2; 33]);

    fn change(from: u64, to: u64, client: Option<&str>) -> Change {
        Change { user: USER, from, to, client_id: client.map(Arc::from) }
    }

    fn subscribed_at(hub: &Arc<Hub>, head: u64) -> Subscription {
        let mut subscription = hub.subscribe(USER);
        subscription.start_at(head);
        subscription
    }

    /// Who is named for how much.
    type Told = Option<(Option<String>, u64)>;

    fn hint(client: Option<&str>, revision: u64) -> Told {
        Some((client.map(str::to_owned), revision))
    }

    fn taken(subscription: &mut Subscription) -> Told {
        let hint = subscription.take()?;
        Some((hint.client_id.map(|client| client.as_ref().to_owned()), hint.revision))
    }

    #[test]
    fn one_change_is_told_once_with_its_writer() {
        let hub = Arc::new(Hub::new());
        let mut subscription = subscribed_at(&hub, 4);
        hub.announce(&change(5, 5, Some("a")));
        assert_eq!(taken(&mut subscription), hint(Some("a"), 5));
        assert_eq!(taken(&mut subscription), None);
    }

    #[test]
    fn a_change_that_the_head_already_covers_is_not_told() {
        let hub = Arc::new(Hub::new());
        let mut subscription = subscribed_at(&hub, 5);
        hub.announce(&change(5, 5, Some("a")));
        assert_eq!(taken(&mut subscription), None);
    }

    #[test]
    fn merged_changes_keep_the_writer_only_if_all_share_it() {
        let hub = Arc::new(Hub::new());
        let mut early = subscribed_at(&hub, 0);
        hub.announce(&change(1, 1, Some("a")));
        let mut late = subscribed_at(&hub, 1);
        hub.announce(&change(2, 2, Some("b")));
        hub.announce(&change(3, 3, Some("b")));
        assert_eq!(taken(&mut early), hint(None, 3));
        assert_eq!(taken(&mut late), hint(Some("b"), 3));
    }

    #[test]
    fn a_hole_names_no_writer_and_its_late_filling_wakes_nobody() {
        let hub = Arc::new(Hub::new());
        let mut subscription = subscribed_at(&hub, 8);
        hub.announce(&change(10, 10, Some("a")));
        assert_eq!(taken(&mut subscription), hint(None, 10));
        hub.announce(&change(9, 9, Some("b")));
        assert_eq!(taken(&mut subscription), None);
    }

    #[test]
    fn a_run_without_a_name_is_not_joined_to_a_named_one() {
        let hub = Arc::new(Hub::new());
        let mut subscription = subscribed_at(&hub, 0);
        hub.announce(&change(1, 1, None));
        hub.announce(&change(2, 2, Some("a")));
        assert_eq!(taken(&mut subscription), hint(None, 2));
    }

    #[test]
    fn a_nudge_wakes_without_a_writer_even_when_merged_with_a_change() {
        let hub = Arc::new(Hub::new());
        let mut subscription = subscribed_at(&hub, 3);
        hub.nudge(USER);
        assert_eq!(taken(&mut subscription), hint(None, 3));
        hub.announce(&change(4, 4, Some("a")));
        hub.nudge(USER);
        assert_eq!(taken(&mut subscription), hint(None, 4));
    }

    #[test]
    fn reconcile_wakes_only_those_who_were_told_less() {
        let hub = Arc::new(Hub::new());
        let mut behind = subscribed_at(&hub, 3);
        let mut ahead = subscribed_at(&hub, 6);
        assert!(hub.reconcile(USER, 6));
        assert!(!hub.reconcile(USER, 6));
        assert_eq!(taken(&mut behind), hint(None, 6));
        assert_eq!(taken(&mut ahead), None);
        hub.announce(&change(7, 7, Some("a")));
        assert_eq!(taken(&mut behind), hint(Some("a"), 7));
    }

    #[test]
    fn a_hint_tells_how_much_it_covers() {
        let hub = Arc::new(Hub::new());
        let mut subscription = subscribed_at(&hub, 3);
        hub.announce(&change(4, 5, Some("a")));
        hub.announce(&change(6, 6, Some("a")));
        assert_eq!(subscription.take().map(|hint| hint.changes), Some(3));
        hub.nudge(USER);
        let nudge = subscription.take().expect("a nudge");
        assert_eq!((nudge.changes, nudge.committed), (0, None));
    }

    #[test]
    fn what_the_first_stream_starts_at_needs_no_reconcile() {
        let hub = Arc::new(Hub::new());
        let starting = hub.subscribe(USER);
        assert_eq!(hub.told_heads(), []);
        drop(starting);
        let mut subscription = subscribed_at(&hub, 7);
        assert_eq!(hub.told_heads(), [(USER, 7)]);
        assert!(!hub.reconcile(USER, 7));
        assert_eq!(taken(&mut subscription), None);
    }

    #[test]
    fn a_later_stream_does_not_hide_what_an_earlier_one_missed() {
        for start in [0, 3] {
            let hub = Arc::new(Hub::new());
            let mut early = subscribed_at(&hub, start);
            let mut late = subscribed_at(&hub, 6);
            assert_eq!(hub.told_heads(), [(USER, start)]);
            assert!(hub.reconcile(USER, 6));
            assert_eq!(taken(&mut early), hint(None, 6));
            assert_eq!(taken(&mut late), None);
        }
    }

    #[test]
    fn what_was_announced_before_a_start_is_told_to_whoever_read_less() {
        let hub = Arc::new(Hub::new());
        let mut slow = hub.subscribe(USER);
        let mut quick = hub.subscribe(USER);
        hub.announce(&change(5, 5, Some("a")));
        quick.start_at(6);
        slow.start_at(4);
        assert_eq!(taken(&mut slow), hint(None, 6));
        assert_eq!(taken(&mut quick), None);
    }

    #[test]
    fn the_slot_goes_with_its_last_stream() {
        let hub = Arc::new(Hub::new());
        let first = hub.subscribe(USER);
        let second = hub.subscribe(USER);
        drop(first);
        assert_eq!(hub.users(), 1);
        drop(second);
        assert_eq!(hub.users(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_stream_is_woken() {
        let hub = Arc::new(Hub::new());
        let mut subscription = subscribed_at(&hub, 0);
        let announce = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            hub.announce(&change(1, 2, Some("a")));
        };
        let (hint_seen, ()) = tokio::join!(subscription.next(), announce);
        assert_eq!(hint_seen.revision, 2);
        assert_eq!(hint_seen.committed.map(|at| at.elapsed()), Some(Duration::ZERO));
    }
}
