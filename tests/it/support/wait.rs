//! Waiting for conditions, never longer than a bound.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep, timeout};

/// The longest any single thing may take in a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Awaits `future` and fails the test after [`PATIENCE`].
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
}

/// Looks again and again until `check` holds.
pub(crate) async fn until<F, Fut>(what: &str, mut check: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let end = Instant::now() + PATIENCE;
    while !check().await {
        assert!(Instant::now() < end, "timed out: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
