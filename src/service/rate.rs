//! How often a client address and a user may call.
//!
//! Token buckets in a table of fixed size: whatever strangers send, memory stays the same. Where
//! the table is too small for all who call, the buckets that are nearest to full are forgotten,
//! so whoever asks most is remembered longest.

use std::{
    hash::{BuildHasher as _, Hash, RandomState},
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{ServiceError, call::subscriber};
use crate::{
    limits::{RATE_LIMIT_BUCKETS, RATE_LIMIT_BURST},
    store::UserId,
    telemetry::metrics::Metrics,
};

/// Buckets that share a lock and compete for room.
const WAYS: usize = 8;

/// Requests a second that may go on for ever; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rates {
    /// Of one client address (IPv4) or network (IPv6 /64).
    pub per_address: Option<u64>,
    /// Of one user.
    pub per_user: Option<u64>,
}

/// The buckets of all callers.
#[derive(Debug)]
pub struct RateLimits {
    addresses: Option<Buckets>,
    users: Option<Buckets>,
}

impl RateLimits {
    /// Full buckets for everybody.
    #[must_use]
    pub fn new(rates: Rates) -> Self {
        let buckets = |rate: Option<u64>| rate.map(|rate| Buckets::new(rate, RATE_LIMIT_BUCKETS));
        Self { addresses: buckets(rates.per_address), users: buckets(rates.per_user) }
    }

    /// Counts a request of an address. One whose address is unknown passes.
    pub(super) fn admit_address(
        &self,
        address: Option<IpAddr>,
        metrics: &Metrics,
    ) -> Result<(), ServiceError> {
        match (&self.addresses, address) {
            (Some(buckets), Some(address)) => {
                refuse("ip", buckets.take(&subscriber(address)), metrics)
            }
            _ => Ok(()),
        }
    }

    /// Counts a request of a user.
    pub(super) fn admit_user(&self, user: UserId, metrics: &Metrics) -> Result<(), ServiceError> {
        match &self.users {
            Some(buckets) => refuse("user", buckets.take(&user), metrics),
            None => Ok(()),
        }
    }
}

fn refuse(scope: &str, taken: Result<(), Duration>, metrics: &Metrics) -> Result<(), ServiceError> {
    taken.map_err(|retry_after| {
        metrics.rate_limited.with_label_values(&[scope]).inc();
        ServiceError::RateLimited { retry_after }
    })
}

/// One caller's bucket. Times are nanoseconds since the table was made.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    /// A keyed hash of the caller: nobody can choose to collide.
    caller: u64,
    /// When it will be full again; in the past it is full.
    full_at: u64,
}

/// Buckets of one size for any number of callers.
#[derive(Debug)]
struct Buckets {
    hasher: RandomState,
    made: Instant,
    /// Time in which one token flows in.
    interval: u64,
    /// Time in which an empty bucket fills.
    depth: u64,
    sets: Box<[Mutex<[Bucket; WAYS]>]>,
}

impl Buckets {
    /// `rate` tokens a second flow into each of `room` buckets.
    fn new(rate: u64, room: usize) -> Self {
        let interval = (nanoseconds(Duration::from_secs(1)) / rate.max(1)).max(1);
        Self {
            hasher: RandomState::new(),
            made: Instant::now(),
            interval,
            depth: nanoseconds(RATE_LIMIT_BURST).max(interval),
            sets: (0..room.div_ceil(WAYS)).map(|_| Mutex::default()).collect(),
        }
    }

    /// Takes a token, or tells when the next one will be there.
    fn take(&self, caller: &impl Hash) -> Result<(), Duration> {
        let now = nanoseconds(self.made.elapsed());
        let caller = self.hasher.hash_one(caller);
        let sets = u64::try_from(self.sets.len()).unwrap_or(u64::MAX);
        let index = usize::try_from(caller % sets).unwrap_or_default();
        let mut set = self.sets[index].lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = find(&mut set, caller);
        let full_at = bucket.full_at.max(now).saturating_add(self.interval);
        let wait = full_at.saturating_sub(now.saturating_add(self.depth));
        if wait > 0 {
            return Err(Duration::from_nanos(wait));
        }
        bucket.full_at = full_at;
        Ok(())
    }
}

/// The caller's bucket, in place of the fullest one where it has none.
fn find(set: &mut [Bucket; WAYS], caller: u64) -> &mut Bucket {
    let mut fullest = 0;
    for index in 0..WAYS {
        if set[index].caller == caller {
            return &mut set[index];
        }
        if set[index].full_at < set[fullest].full_at {
            fullest = index;
        }
    }
    set[fullest] = Bucket { caller, full_at: 0 };
    &mut set[fullest]
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// Tokens taken until the first refusal, and the wait that was named then.
    fn drain(buckets: &Buckets, caller: &str) -> (u64, Duration) {
        let mut taken = 0;
        loop {
            match buckets.take(&caller) {
                Ok(()) => taken += 1,
                Err(wait) => return (taken, wait),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_empties_names_the_wait_and_fills_again() {
        let buckets = Buckets::new(10, 64);
        let burst = RATE_LIMIT_BURST.as_secs() * 10;
        assert_eq!(drain(&buckets, "a"), (burst, Duration::from_millis(100)));
        assert_eq!(drain(&buckets, "b").0, burst, "others have buckets of their own");
        advance(Duration::from_millis(99)).await;
        assert_eq!(drain(&buckets, "a"), (0, Duration::from_millis(1)));
        advance(Duration::from_millis(1)).await;
        assert_eq!(drain(&buckets, "a").0, 1);
        advance(RATE_LIMIT_BURST * 10).await;
        assert_eq!(drain(&buckets, "a").0, burst, "never more than full");
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_do_not_make_the_greediest_be_forgotten() {
        let buckets = Buckets::new(10, WAYS);
        drain(&buckets, "greedy");
        for stranger in 0..10_000 {
            assert!(buckets.take(&stranger).is_ok());
        }
        assert_eq!(drain(&buckets, "greedy").0, 0);
    }

    #[test]
    fn a_subscriber_of_ipv6_has_one_bucket() {
        let limits = RateLimits::new(Rates { per_address: Some(1), per_user: None });
        let metrics = Metrics::new();
        let mut refused = 0;
        for last in 0..=RATE_LIMIT_BURST.as_secs() * 2 {
            let address = format!("2001:db8::{last:x}").parse().ok();
            refused += u64::from(limits.admit_address(address, &metrics).is_err());
        }
        assert!(refused >= RATE_LIMIT_BURST.as_secs(), "{refused}");
        assert_eq!(metrics.rate_limited.with_label_values(&["ip"]).get(), refused);
        let other = "2001:db8:0:1::1".parse().ok();
        assert!(limits.admit_address(other, &metrics).is_ok());
    }
}
