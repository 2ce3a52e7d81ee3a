//! What one seed decides before anything runs: size, limits, faults, and who the clients are.

use std::time::Duration;

use data_sync::store::{PageLimit, Quotas};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::mutant::Mutant;
use crate::support::history::Limits;

/// A random number generator of its own for each part, so that a change in one part leaves the
/// draws of the others as they are.
pub(super) fn rng(seed: u64, part: u64) -> StdRng {
    StdRng::seed_from_u64(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ part)
}

/// How a simulated client behaves; see the notes on the clients in the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Pages, retries, resends, locks, and tries odd revisions.
    Free,
    /// Lists once a wake-up; its cursor moves with its own writes; comes back after a second.
    Spark,
    /// Lists once a wake-up and nothing else; comes back at once; deaf after an end with OK.
    Liquid,
}

/// How likely things go wrong while faults are on; probabilities of one event.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Odds {
    /// An operation of the store fails before it does anything.
    pub(super) store_error: f64,
    /// The connection to the store is lost around a commit.
    pub(super) commit_lost: f64,
    /// A request or a reply is lost between client and replica.
    pub(super) call_lost: f64,
    /// An announcement does not reach another replica.
    pub(super) announcement_lost: f64,
    /// Longest time of an operation of the store, in milliseconds.
    pub(super) store_ms: u64,
    /// Longest time of an announcement between replicas, in milliseconds.
    pub(super) feed_ms: u64,
}

/// What one seed decides.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) mutant: Option<Mutant>,
    pub(super) replicas: usize,
    /// The clients of each user.
    pub(super) users: Vec<Vec<Kind>>,
    pub(super) odds: Odds,
    pub(super) page: PageLimit,
    pub(super) quotas: Quotas,
    /// How far each replica's own clock is off, in milliseconds.
    pub(super) skews_ms: Vec<i64>,
    /// Replicas are killed, paused and drained, and the store goes away.
    pub(super) outages: bool,
    /// How long faults are on, and how long writes go on after them.
    pub(super) faulty: Duration,
    pub(super) calm: Duration,
    /// Most time between two actions of a client, in milliseconds.
    pub(super) pause_ms: u64,
}

impl Plan {
    /// The plan of `seed`; every fourth is without faults and on one replica, every third is slow.
    pub(super) fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut rng = rng(seed, 1);
        let exact = seed.is_multiple_of(4);
        // Seldom writes leave a lost notification unrepaired by the next one.
        let pace = if seed % 3 == 1 { 5 } else { 1 };
        let replicas = if exact { 1 } else { rng.random_range(2..=3) };
        let users = (0..rng.random_range(1..=2)).map(|_| {
            let kinds = [Kind::Free, Kind::Free, Kind::Spark, Kind::Liquid];
            (0..rng.random_range(2..=3)).map(|_| kinds[rng.random_range(0..4)]).collect()
        });
        let users = users.collect();
        let odds = Odds {
            store_error: if exact { 0.0 } else { rng.random_range(0.0..0.06) },
            commit_lost: if exact { 0.0 } else { rng.random_range(0.0..0.10) },
            call_lost: if exact { 0.0 } else { rng.random_range(0.0..0.08) },
            announcement_lost: if exact { 0.0 } else { rng.random_range(0.0..0.4) },
            store_ms: rng.random_range(1..=40),
            feed_ms: rng.random_range(1..=120),
        };
        let some = |rng: &mut StdRng, range: std::ops::Range<u64>| {
            rng.random_bool(0.4).then(|| rng.random_range(range))
        };
        let quotas = Quotas {
            max_records: some(&mut rng, 4..10),
            max_bytes: some(&mut rng, 150..900),
            max_locks: some(&mut rng, 2..4),
        };
        Self {
            seed,
            mutant,
            replicas,
            users,
            odds,
            page: PageLimit {
                max_records: rng.random_range(2..8),
                max_bytes: rng.random_range(150..900),
            },
            quotas,
            skews_ms: (0..replicas).map(|_| rng.random_range(-4_000..4_000)).collect(),
            outages: !exact,
            faulty: Duration::from_millis(pace * rng.random_range(2_500..5_000)),
            calm: Duration::from_millis(pace * rng.random_range(1_000..2_500)),
            pause_ms: pace * rng.random_range(300..900),
        }
    }

    /// No announcement is lost, late or out of order: all writers and listeners share a replica.
    pub(super) const fn is_exact(&self) -> bool {
        self.replicas == 1
    }

    /// What the checker must know of the limits.
    pub(super) const fn limits(&self) -> Limits {
        Limits {
            page_records: self.page.max_records as u64,
            page_bytes: self.page.max_bytes as u64,
            max_records: self.quotas.max_records,
            max_bytes: self.quotas.max_bytes,
            max_locks: self.quotas.max_locks,
        }
    }
}
