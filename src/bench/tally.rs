//! Outcomes and latencies of calls.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use tonic::Status;

use super::{plan::Operation, report::approximate};
use crate::limits::{BENCH_MAX_ERROR_KINDS, BENCH_MAX_ERROR_TEXT_CHARS};

/// Where error kinds go once there are too many.
const OTHER_ERRORS: &str = "others";
/// Significant decimal digits of a recorded latency.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Times, to three significant digits.
#[derive(Debug, Clone)]
pub(super) struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        #[allow(clippy::expect_used, reason = "the library takes 0 to 5 digits")]
        Self(Histogram::new(SIGNIFICANT_DIGITS).expect("valid digits"))
    }
}

impl Times {
    pub(super) fn record(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        // It grows to any value: only a count beyond 64 bits could fail.
        let _ = self.0.record(nanoseconds);
    }

    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    pub(super) fn add(&mut self, other: &Self) {
        // Both grow by themselves: adding cannot run out of range.
        let _ = self.0.add(&other.0);
    }

    /// The time that a share of `quantile` (0 to 1) does not exceed, in milliseconds.
    pub(super) fn quantile_ms(&self, quantile: f64) -> f64 {
        milliseconds(self.0.value_at_quantile(quantile))
    }

    pub(super) fn max_ms(&self) -> f64 {
        milliseconds(self.0.max())
    }

    pub(super) fn mean_ms(&self) -> f64 {
        self.0.mean() / 1e6
    }
}

fn milliseconds(nanoseconds: u64) -> f64 {
    approximate(nanoseconds) / 1e6
}

/// How a call ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// As it should.
    Ok,
    /// The server holds another revision: an answer, no error.
    Conflict,
    /// Anything else, by its kind.
    Error(String),
}

impl Outcome {
    /// A failed call: its code and what the server said.
    pub(super) fn failed(status: &Status) -> Self {
        let mut kind = format!("{:?}: {}", status.code(), status.message());
        if let Some((end, _)) = kind.char_indices().nth(BENCH_MAX_ERROR_TEXT_CHARS) {
            kind.truncate(end);
        }
        Self::Error(kind)
    }
}

/// Outcomes of one operation.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) ok: u64,
    pub(super) conflicts: u64,
    pub(super) errors: u64,
    pub(super) error_kinds: BTreeMap<String, u64>,
    /// Of calls that were answered, with a conflict or without.
    pub(super) latency: Times,
}

impl Tally {
    pub(super) fn record(&mut self, outcome: Outcome, latency: Duration) {
        match outcome {
            Outcome::Ok => {
                self.ok += 1;
                self.latency.record(latency);
            }
            Outcome::Conflict => {
                self.conflicts += 1;
                self.latency.record(latency);
            }
            Outcome::Error(kind) => {
                self.errors += 1;
                *count_of(&mut self.error_kinds, kind) += 1;
            }
        }
    }

    pub(super) const fn calls(&self) -> u64 {
        self.ok + self.conflicts + self.errors
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.ok += other.ok;
        self.conflicts += other.conflicts;
        self.errors += other.errors;
        self.latency.add(&other.latency);
        for (kind, count) in &other.error_kinds {
            *count_of(&mut self.error_kinds, kind.clone()) += count;
        }
    }
}

fn count_of(kinds: &mut BTreeMap<String, u64>, kind: String) -> &mut u64 {
    let known = kinds.contains_key(&kind) || kinds.len() < BENCH_MAX_ERROR_KINDS;
    kinds.entry(if known { kind } else { OTHER_ERRORS.to_owned() }).or_default()
}

/// Outcomes of every operation of a run.
#[derive(Debug, Clone, Default)]
pub(super) struct Tallies(pub(super) BTreeMap<Operation, Tally>);

impl Tallies {
    pub(super) fn record(&mut self, operation: Operation, outcome: Outcome, latency: Duration) {
        self.0.entry(operation).or_default().record(outcome, latency);
    }

    /// All operations together.
    pub(super) fn total(&self) -> Tally {
        let mut total = Tally::default();
        for tally in self.0.values() {
            total.add(tally);
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_is_no_error_and_an_error_has_no_latency() {
        let mut tally = Tally::default();
        tally.record(Outcome::Ok, Duration::from_millis(1));
        tally.record(Outcome::Conflict, Duration::from_millis(3));
        let failure = Status::unavailable("going away");
        tally.record(Outcome::failed(&failure), Duration::from_secs(5));
        assert_eq!((tally.ok, tally.conflicts, tally.errors, tally.calls()), (1, 1, 1, 3));
        assert_eq!(tally.error_kinds, [("Unavailable: going away".to_owned(), 1)].into());
        assert_eq!(tally.latency.count(), 2);
        assert!((tally.latency.max_ms() - 3.0).abs() < 0.01, "{}", tally.latency.max_ms());
    }

    #[test]
    fn error_kinds_stay_few_and_short() {
        let mut tally = Tally::default();
        for index in 0..2 * BENCH_MAX_ERROR_KINDS {
            let status = Status::internal(format!("{index} {}", "é".repeat(1_000)));
            tally.record(Outcome::failed(&status), Duration::ZERO);
        }
        assert_eq!(tally.error_kinds.len(), BENCH_MAX_ERROR_KINDS + 1);
        assert_eq!(tally.error_kinds.values().sum::<u64>(), tally.errors);
        let longest = tally.error_kinds.keys().map(|kind| kind.chars().count()).max();
        assert_eq!(longest, Some(BENCH_MAX_ERROR_TEXT_CHARS));
    }

    #[test]
    fn quantiles_are_near_the_truth() {
        let mut times = Times::default();
        for microseconds in 1..=10_000 {
            times.record(Duration::from_micros(microseconds));
        }
        for (quantile, truth) in [(0.5, 5.0), (0.99, 9.9), (0.999, 9.99)] {
            let measured = times.quantile_ms(quantile);
            assert!((measured / truth - 1.0).abs() < 0.002, "{quantile}: {measured}");
        }
    }
}
