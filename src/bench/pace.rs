//! Lets calls go at a fixed rate, whatever became of the calls before.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::sync::Semaphore;

/// Longest nap of the pacing thread, after which it looks whether the run has ended.
const MAX_NAP: Duration = Duration::from_millis(20);
/// Shortest nap: at high rates several calls fall due together.
const MIN_NAP: Duration = Duration::from_micros(200);

/// A schedule: call number n is due at the start plus n times the interval.
///
/// A thread of its own keeps it, because a timer of the runtime is only good to a millisecond,
/// which every latency would then contain.
#[derive(Debug)]
pub(super) struct Pace {
    start: Instant,
    per_second: f64,
    due: Arc<Semaphore>,
}

impl Pace {
    /// Starts a schedule of so many calls now.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(super) fn start(per_second: f64, calls: u64) -> anyhow::Result<Self> {
        let pace = Self { start: Instant::now(), per_second, due: Arc::new(Semaphore::new(0)) };
        let (start, due) = (pace.start, Arc::clone(&pace.due));
        thread::Builder::new()
            .name("bench pace".to_owned())
            .spawn(move || release(start, per_second, calls, &due))
            .context("cannot start the pacing thread")?;
        Ok(pace)
    }

    /// Waits until one more call is due; false once the schedule has ended.
    pub(super) async fn wait(&self) -> bool {
        match self.due.acquire().await {
            Ok(permit) => {
                permit.forget();
                true
            }
            Err(_) => false,
        }
    }

    /// When call number `index` is due.
    pub(super) fn due(&self, index: u64) -> Instant {
        self.start + offset(index, self.per_second)
    }

    /// Ends the schedule early: calls that wait are not made.
    pub(super) fn stop(&self) {
        self.due.close();
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.stop();
    }
}

#[allow(clippy::cast_precision_loss, reason = "no run makes 2^52 calls")]
fn offset(index: u64, per_second: f64) -> Duration {
    Duration::from_secs_f64(index as f64 / per_second)
}

fn release(start: Instant, per_second: f64, calls: u64, due: &Semaphore) {
    let mut released = 0;
    while released < calls && !due.is_closed() {
        let next = start + offset(released, per_second);
        let now = Instant::now();
        if next > now {
            thread::sleep((next - now).clamp(MIN_NAP, MAX_NAP));
        } else {
            released += 1;
            due.add_permits(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_go_when_they_are_due_and_not_before() {
        let pace = Pace::start(1_000.0, 100).unwrap();
        for index in 0..100 {
            assert!(pace.wait().await);
            assert!(Instant::now() >= pace.due(index), "call {index} went early");
        }
        assert_eq!(pace.due(100) - pace.due(0), Duration::from_millis(100));
    }

    #[tokio::test]
    async fn a_stopped_schedule_lets_nobody_wait() {
        let pace = Pace::start(0.001, 10).unwrap();
        assert!(pace.wait().await);
        let stop = async { pace.stop() };
        let (waited, ()) = tokio::join!(pace.wait(), stop);
        assert!(!waited);
    }
}
