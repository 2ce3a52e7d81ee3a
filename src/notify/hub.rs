//! Fan-out within one replica: one slot a user, however many streams and changes.
//!
//! A slot holds the newest revision told and the unbroken run of one client's writes that ends
//! there. There is no queue to overflow: a slow stream finds the newest state when it looks, and
//! learns of everything since it last looked in one [`Hint`]. A slot goes with its last stream.
//!
//! Announcements of several replicas arrive out of order. A hole below a run therefore means that
//! somebody else may have written there, and the hint names no client: a device that took
//! another's write for its own echo would never fetch it.

use std::sync::Arc;

use dashmap::{DashMap, mapref::entry::Entry};
use tokio::sync::watch;

use super::Change;
use crate::store::UserId;

/// What a user's streams on this replica have been told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Slot {
    /// Newest revision announced; 0 before the first announcement.
    head: u64,
    /// First revision of the unbroken run of `run_client` that ends at `head`.
    run_start: u64,
    /// The one writer of that run, if it is known and has a name.
    run_client: Option<Arc<str>>,
    /// Rises with each nudge.
    nudges: u64,
}

impl Slot {
    /// Takes in one announcement; false if it was no news.
    fn apply(&mut self, change: &Change) -> bool {
        if change.to <= self.head {
            return false;
        }
        let joins = change.from <= self.head.saturating_add(1);
        let same_writer = self.run_client == change.client_id;
        if !(joins && same_writer) {
            self.run_start = change.from.max(self.head.saturating_add(1));
            self.run_client.clone_from(&change.client_id);
        }
        self.head = change.to;
        true
    }
}

/// Every user with an open stream on this replica.
#[derive(Debug, Default)]
pub struct Hub {
    slots: DashMap<UserId, watch::Sender<Slot>>,
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
        let slot = self.slots.entry(user).or_default();
        let receiver = slot.subscribe();
        let nudges_seen = receiver.borrow().nudges;
        drop(slot);
        Subscription { hub: Arc::clone(self), user, receiver, told: 0, nudges_seen }
    }

    /// Wakes the user's streams for a committed change.
    pub fn announce(&self, change: &Change) {
        if let Some(slot) = self.slots.get(&change.user) {
            slot.send_if_modified(|slot| slot.apply(change));
        }
    }

    /// Wakes the user's streams although nothing changed.
    pub fn nudge(&self, user: UserId) {
        if let Some(slot) = self.slots.get(&user) {
            slot.send_modify(|slot| slot.nudges = slot.nudges.wrapping_add(1));
        }
    }

    /// Tells the streams of `user` that the store's head is `head`, by whomever it was moved.
    /// Returns whether that was news: then an announcement was lost or is late.
    pub fn reconcile(&self, user: UserId, head: u64) -> bool {
        let Some(slot) = self.slots.get(&user) else {
            return false;
        };
        slot.send_if_modified(|slot| {
            let from = slot.head.saturating_add(1);
            if head < from {
                return false;
            }
            *slot =
                Slot { head, run_start: head.saturating_add(1), run_client: None, ..slot.clone() };
            true
        })
    }

    /// The users with an open stream, with the newest revision each was told of.
    #[must_use]
    pub fn told_heads(&self) -> Vec<(UserId, u64)> {
        self.slots.iter().map(|slot| (*slot.key(), slot.value().borrow().head)).collect()
    }

    /// Number of users with an open stream.
    #[must_use]
    pub fn users(&self) -> usize {
        self.slots.len()
    }

    fn unsubscribe(&self, user: UserId) {
        if let Entry::Occupied(slot) = self.slots.entry(user)
            && slot.get().receiver_count() == 0
        {
            slot.remove();
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
}

/// One stream's place in the hub. Dropping it gives the place back.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    user: UserId,
    receiver: watch::Receiver<Slot>,
    /// Newest revision this stream has been told of.
    told: u64,
    nudges_seen: u64,
}

impl Subscription {
    /// Marks everything up to the store's `head` as told. Called once, before the first hint.
    pub fn start_at(&mut self, head: u64) {
        self.told = self.told.max(head);
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
        let moved = slot.head > self.told;
        let nudged = slot.nudges != self.nudges_seen;
        if !moved && !nudged {
            return None;
        }
        let one_writer = !nudged && slot.run_start <= self.told.saturating_add(1);
        let client_id = slot.run_client.clone().filter(|_| one_writer);
        self.nudges_seen = slot.nudges;
        self.told = self.told.max(slot.head);
        Some(Hint { client_id, revision: self.told })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // The receiver must be gone before the hub counts the receivers left.
        let (_, placeholder) = watch::channel(Slot::default());
        drop(std::mem::replace(&mut self.receiver, placeholder));
        self.hub.unsubscribe(self.user);
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

    fn hint(client: Option<&str>, revision: u64) -> Option<Hint> {
        Some(Hint { client_id: client.map(Arc::from), revision })
    }

    #[test]
    fn one_change_is_told_once_with_its_writer() {
        let hub = Arc::new(Hub::new());
        let mut subscription = subscribed_at(&hub, 4);
        hub.announce(&change(5, 5, Some("a")));
        assert_eq!(subscription.take(), hint(Some("a"), 5));
        assert_eq!(subscription.take(), None);
    }

    #[test]
    fn a_change_that_the_head_already_covers_is_not_told() {
        let hub = Arc::new(Hub::new());
        let mut subscription = subscribed_at(&hub, 5);
        hub.announce(&change(5, 5, Some("a")));
        assert_eq!(subscription.take(), None);
    }

    #[test]
    fn merged_changes_keep_the_writer_only_if_all_share_it() {
        let hub = Arc::new(Hub::new());
        let mut early = subscribed_at(&hub, 0);
        hub.announce(&change(1, 1, Some("a")));
        let mut late = subscribed_at(&hub, 1);
        hub.announce(&change(2, 2, Some("b")));
        hub.announce(&change(3, 3, Some("b")));
        assert_eq!(early.take(), hint(None, 3));
        assert_eq!(late.take(), hint(Some("b"), 3));
    }

    #[test]
    fn a_hole_names_no_writer_and_its_late_filling_wakes_nobody() {
        let hub = Arc::new(Hub::new());
        let mut subscription = subscribed_at(&hub, 8);
        hub.announce(&change(10, 10, Some("a")));
        assert_eq!(subscription.take(), hint(None, 10));
        hub.announce(&change(9, 9, Some("b")));
        assert_eq!(subscription.take(), None);
    }

    #[test]
    fn a_run_without_a_name_is_not_joined_to_a_named_one() {
        let hub = Arc::new(Hub::new());
        let mut subscription = subscribed_at(&hub, 0);
        hub.announce(&change(1, 1, None));
        hub.announce(&change(2, 2, Some("a")));
        assert_eq!(subscription.take(), hint(None, 2));
    }

    #[test]
    fn a_nudge_wakes_without_a_writer_even_when_merged_with_a_change() {
        let hub = Arc::new(Hub::new());
        let mut subscription = subscribed_at(&hub, 3);
        hub.nudge(USER);
        assert_eq!(subscription.take(), hint(None, 3));
        hub.announce(&change(4, 4, Some("a")));
        hub.nudge(USER);
        assert_eq!(subscription.take(), hint(None, 4));
    }

    #[test]
    fn reconcile_wakes_only_those_who_were_told_less() {
        let hub = Arc::new(Hub::new());
        let mut behind = subscribed_at(&hub, 3);
        let mut ahead = subscribed_at(&hub, 6);
        assert!(hub.reconcile(USER, 6));
        assert!(!hub.reconcile(USER, 6));
        assert_eq!(behind.take(), hint(None, 6));
        assert_eq!(ahead.take(), None);
        hub.announce(&change(7, 7, Some("a")));
        assert_eq!(behind.take(), hint(Some("a"), 7));
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
        assert_eq!(Some(hint_seen), hint(Some("a"), 2));
    }
}
