//! Lets calls go at a fixed rate, whatever became of the calls before.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
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
    calls: u64,
    /// The number of the next call.
    next: AtomicU64,
    /// One permit a call that is due and not yet made.
    due: Arc<Semaphore>,
}

impl Pace {
    /// Starts a schedule of so many calls now.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(super) fn start(per_second: f64, calls: u64) -> anyhow::Result<Self> {
        let (start, due) = (Instant::now(), Arc::new(Semaphore::new(0)));
        let pace =
            Self { start, per_second, calls, next: AtomicU64::new(0), due: Arc::clone(&due) };
        thread::Builder::new()
            .name("bench pace".to_owned())
            .spawn(move || release(start, per_second, calls, &due))
            .context("cannot start the pacing thread")?;
        Ok(pace)
    }

    /// Waits until one more call is due and returns its number; `None` once all are made.
    pub(super) async fn next(&self) -> Option<u64> {
        self.due.acquire().await.ok()?.forget();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number + 1 == self.calls {
            // Whoever still waits waits for nothing.
            self.due.close();
        }
        Some(number)
    }

    /// When call number `index` is due.
    pub(super) fn due(&self, index: u64) -> Instant {
        self.start + offset(index, self.per_second)
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.due.close();
    }
}

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
        for number in 0..100 {
            assert_eq!(pace.next().await, Some(number));
            assert!(Instant::now() >= pace.due(number), "call {number} went early");
        }
        assert_eq!(pace.due(100) - pace.due(0), Duration::from_millis(100));
    }

    #[tokio::test]
    async fn nobody_waits_once_all_calls_are_made() {
        let pace = Pace::start(1_000.0, 1).unwrap();
        let (first, second) = tokio::join!(pace.next(), pace.next());
        assert_eq!((first, second), (Some(0), None));
    }
}
