//! How many streams a user and a replica may hold open.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use dashmap::{DashMap, mapref::entry::Entry};
use tokio::sync::oneshot;

use crate::store::UserId;

/// Open streams, as a whole and of each user.
#[derive(Debug)]
pub struct StreamPlaces {
    max_total: usize,
    max_per_user: usize,
    total: AtomicUsize,
    next: AtomicU64,
    /// Oldest first.
    by_user: DashMap<UserId, VecDeque<Seat>>,
}

#[derive(Debug)]
struct Seat {
    number: u64,
    displace: oneshot::Sender<()>,
}

impl StreamPlaces {
    /// At most `max_total` streams, and `max_per_user` of one user.
    #[must_use]
    pub fn new(max_total: usize, max_per_user: usize) -> Self {
        Self {
            max_total,
            max_per_user: max_per_user.max(1),
            total: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            by_user: DashMap::new(),
        }
    }

    /// Takes a place; `None` if the replica has no more. Where the user has no more, the oldest
    /// stream gives way: most often its client is gone and nobody has noticed yet.
    pub(super) fn take(self: &Arc<Self>, user: UserId) -> Option<Place> {
        if self.total.fetch_add(1, Ordering::Relaxed) >= self.max_total {
            self.total.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (displace, displaced) = oneshot::channel();
        let mut seats = self.by_user.entry(user).or_default();
        if seats.len() >= self.max_per_user
            && let Some(oldest) = seats.pop_front()
        {
            // An error means that it ends already.
            let _ = oldest.displace.send(());
        }
        seats.push_back(Seat { number, displace });
        drop(seats);
        Some(Place { places: Arc::clone(self), user, number, displaced })
    }
}

/// One stream's place; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<StreamPlaces>,
    user: UserId,
    number: u64,
    displaced: oneshot::Receiver<()>,
}

impl Place {
    /// Resolves when a newer stream of the user needs the place; not to be asked again then.
    pub(super) async fn displaced(&mut self) {
        // Until it sends, the other end stays as long as this place.
        let _ = (&mut self.displaced).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.total.fetch_sub(1, Ordering::Relaxed);
        if let Entry::Occupied(mut seats) = self.places.by_user.entry(self.user) {
            seats.get_mut().retain(|seat| seat.number != self.number);
            if seats.get().is_empty() {
                seats.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const fn user(number: u8) -> UserId {
        UserId::new([number; 33])
    }

    fn is_displaced(place: &mut Place) -> bool {
        place.displaced().now_or_never().is_some()
    }

    #[test]
    fn the_oldest_stream_of_the_same_user_gives_way() {
        let places = Arc::new(StreamPlaces::new(100, 2));
        let mut first = places.take(user(1)).expect("room");
        let mut second = places.take(user(1)).expect("room");
        let mut stranger = places.take(user(2)).expect("room");
        let mut third = places.take(user(1)).expect("room");
        let displaced = [&mut first, &mut second, &mut stranger, &mut third].map(is_displaced);
        assert_eq!(displaced, [true, false, false, false]);
        drop((second, third));
        let _fourth = places.take(user(1)).expect("room");
        let mut fifth = places.take(user(1)).expect("room");
        assert!(!is_displaced(&mut fifth));
    }

    #[test]
    fn a_full_replica_refuses_and_a_place_comes_back() {
        let places = Arc::new(StreamPlaces::new(1, 10));
        let first = places.take(user(1));
        assert!(first.is_some());
        assert!(places.take(user(2)).is_none());
        drop(first);
        assert!(places.by_user.is_empty());
        assert!(places.take(user(2)).is_some());
    }
}
