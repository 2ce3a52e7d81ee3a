//! What was seen, phase by phase.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

/// Counts of one phase.
#[derive(Debug, Default)]
struct Phase {
    name: String,
    acknowledged: u64,
    errors: BTreeMap<String, u64>,
    longest_gap: Duration,
    streams_lost: BTreeMap<String, u64>,
    streams_back: u64,
    longest_deaf: Duration,
    delays_ms: Vec<u64>,
}

/// Shared by all users.
#[derive(Debug)]
pub(crate) struct Board {
    phases: Mutex<Vec<Phase>>,
    stop: CancellationToken,
}

impl Default for Board {
    fn default() -> Self {
        let first = Phase { name: "start".to_owned(), ..Phase::default() };
        Self { phases: Mutex::new(vec![first]), stop: CancellationToken::new() }
    }
}

impl Board {
    fn phases(&self) -> MutexGuard<'_, Vec<Phase>> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self, change: impl FnOnce(&mut Phase)) {
        if let Some(phase) = self.phases().last_mut() {
            change(phase);
        }
    }

    /// Counts in phase `name` from now on.
    pub(crate) fn enter(&self, name: &str) {
        let mut phases = self.phases();
        if phases.last().is_none_or(|last| last.name != name) {
            phases.push(Phase { name: name.to_owned(), ..Phase::default() });
        }
    }

    /// Tells everybody to end.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Whether to end.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits for the end.
    pub(crate) async fn until_stopped(&self) {
        self.stop.cancelled().await;
    }

    /// A write was acknowledged, `gap` after the user's last one.
    pub(crate) fn acknowledged(&self, gap: Duration) {
        self.now(|phase| {
            phase.acknowledged += 1;
            phase.longest_gap = phase.longest_gap.max(gap);
        });
    }

    /// A call failed for good, all attempts of the client library included.
    pub(crate) fn failed(&self, error: &str) {
        self.now(|phase| *phase.errors.entry(error.to_owned()).or_default() += 1);
    }

    /// A stream ended.
    pub(crate) fn stream_lost(&self, error: &str) {
        self.now(|phase| *phase.streams_lost.entry(error.to_owned()).or_default() += 1);
    }

    /// A stream came back after `deaf`.
    pub(crate) fn stream_back(&self, deaf: Duration) {
        self.now(|phase| {
            phase.streams_back += 1;
            phase.longest_deaf = phase.longest_deaf.max(deaf);
        });
    }

    /// The other device had a change `delay` after its acknowledgement.
    pub(crate) fn told(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.now(|phase| phase.delays_ms.push(delay));
    }

    /// A line for each phase.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.phases().iter_mut().map(Phase::line).collect()
    }
}

impl Phase {
    fn line(&mut self) -> String {
        self.delays_ms.sort_unstable();
        let at = |share: f64| {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "an index into a list far below 2^52"
            )]
            let index = (self.delays_ms.len() as f64 * share) as usize;
            self.delays_ms.get(index.min(self.delays_ms.len().saturating_sub(1))).copied()
        };
        let (half, most, all) = (at(0.5).unwrap_or(0), at(0.99).unwrap_or(0), at(1.0).unwrap_or(0));
        format!(
            "phase {}: {} acknowledged, longest pause {} ms, errors {:?}; streams lost {:?}, back {} \
             after at most {} ms; changes seen after ms: half {half}, 99 % {most}, all {all}",
            self.name,
            self.acknowledged,
            self.longest_gap.as_millis(),
            self.errors,
            self.streams_lost,
            self.streams_back,
            self.longest_deaf.as_millis(),
        )
    }
}
