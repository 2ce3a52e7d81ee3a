//! How long to wait before trying again.

use std::time::Duration;

/// Pauses that double up to a bound, each drawn at random from the upper half of its span, so
/// that clients cut off together do not come back together.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    pub(super) const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// Starts over after a success that lasted. One that did not is no success: a server that
    /// accepts only to drop is not pressed harder.
    pub(super) fn succeeded_for(&mut self, lasted: Duration, enough: Duration) {
        if lasted >= enough {
            self.failures = 0;
        }
    }

    /// The pause after one more failure.
    pub(super) fn next_pause(&mut self) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        doubled.min(self.longest).mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_stay_below_the_bound() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        for expected in [1, 2, 4, 8, 16, 30, 30] {
            let pause = backoff.next_pause();
            let span = Duration::from_secs(expected);
            assert!(pause <= span && pause >= span / 2, "{pause:?} of {span:?}");
        }
    }

    #[test]
    fn pauses_start_over_after_a_success_that_lasted() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        let enough = Duration::from_secs(5);
        // As while a server is away: pauses grow.
        for _ in 0..6 {
            backoff.next_pause();
        }
        backoff.succeeded_for(Duration::from_secs(4), enough);
        assert!(backoff.next_pause() >= Duration::from_secs(15));
        // Back at last, and stopped soon after: its failure to come back sooner is forgotten.
        backoff.succeeded_for(enough, enough);
        assert!(backoff.next_pause() <= Duration::from_secs(1));
    }
}
