//! Calls of one kind in one round trip: what waits goes together.
//!
//! Most lists find little, and most locks are free: a round trip of its own costs more than what
//! a call does there. So calls wait for one of a few tasks, each of which takes what is there:
//! nothing waits to fill a group. A call that cannot be answered with others is made alone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{
        Mutex,
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::pool::{Lender, late};
use crate::{
    limits::{GROUP_LEND_GRACE, GROUP_TASKS, MAX_GROUPED_CALLS, MAX_QUEUED_GROUPED_CALLS},
    store::StoreError,
    tasks::Tasks,
};

/// What a call is answered with, or nothing where it has to be made alone.
pub(super) type Answer<T> = Result<Option<T>, StoreError>;

/// A kind of call that may share a round trip.
pub(super) trait Kind: Send + Sync + 'static {
    type Call: Send + Sync + 'static;
    type Answer: Send + 'static;

    /// The name of the tasks.
    const TASK: &'static str;
    /// Longest wait for a task, after which the call is made alone; without, it is refused when a
    /// connection would be too.
    const PATIENCE: Option<Duration>;

    /// Answers `calls` in their order. An error answers all of them. A connection must be lent by
    /// `lent_by`.
    fn make(
        &self,
        lender: &Lender,
        lent_by: Instant,
        calls: &[Self::Call],
    ) -> impl Future<Output = Result<Vec<Answer<Self::Answer>>, StoreError>> + Send;
}

/// One call that waits.
struct Queued<K: Kind> {
    call: K::Call,
    caller: Caller<K>,
}

struct Caller<K: Kind> {
    arrived: Instant,
    deadline: Instant,
    claim: Claim,
    answer: oneshot::Sender<Answer<K::Answer>>,
}

/// Who makes the call: a task or its caller, whoever claims it first. Made by both, a lock could
/// be taken again after its holder has released it.
#[derive(Clone, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    fn is_first(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }
}

/// The way to the tasks.
pub(super) struct Grouped<K: Kind> {
    queue: mpsc::Sender<Queued<K>>,
    /// Longest wait for a task.
    wait: Duration,
}

impl<K: Kind> std::fmt::Debug for Grouped<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grouped").field("task", &K::TASK).finish_non_exhaustive()
    }
}

impl<K: Kind> Grouped<K> {
    /// Starts the tasks; they end with `closed`.
    pub(super) fn start(
        kind: K,
        lender: &Arc<Lender>,
        tasks: &Tasks,
        closed: &CancellationToken,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(MAX_QUEUED_GROUPED_CALLS);
        let (kind, receiver) = (Arc::new(kind), Arc::new(Mutex::new(receiver)));
        for _ in 0..GROUP_TASKS {
            let (kind, lender) = (Arc::clone(&kind), Arc::clone(lender));
            let (receiver, closed) = (Arc::clone(&receiver), closed.clone());
            tasks.spawn(K::TASK, async move {
                closed.run_until_cancelled(make_for_ever(&*kind, &lender, &receiver)).await;
            });
        }
        Self { queue: sender, wait: K::PATIENCE.unwrap_or_else(|| lender.wait()) }
    }

    /// Makes `call` with others; nothing where it has to be made alone. It may be made though
    /// nobody waits any more.
    pub(super) async fn make(&self, call: K::Call, deadline: Instant) -> Answer<K::Answer> {
        let arrived = Instant::now();
        if deadline <= arrived {
            return Err(StoreError::DeadlineExceeded);
        }
        let (answer, mut answered) = oneshot::channel();
        let claim = Claim::default();
        let caller = Caller { arrived, deadline, claim: claim.clone(), answer };
        let queued = Queued { call, caller };
        self.queue.try_send(queued).map_err(|refused| match refused {
            TrySendError::Full(_) => StoreError::Overloaded,
            TrySendError::Closed(_) => closed(),
        })?;
        let mut waited = timeout_at(deadline.min(arrived + self.wait), &mut answered).await;
        if waited.is_err() && !claim.is_first() {
            waited = timeout_at(deadline, answered).await;
        } else if waited.is_err() && K::PATIENCE.is_some() && Instant::now() < deadline {
            return Ok(None);
        }
        match waited {
            Ok(Ok(answer)) => answer,
            Ok(Err(_dropped)) => Err(closed()),
            Err(_elapsed) => Err(late(deadline, "no connection was free in time")),
        }
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".to_owned())
}

/// One task: the next one takes what comes while this one's round trip runs.
async fn make_for_ever<K: Kind>(
    kind: &K,
    lender: &Lender,
    queue: &Mutex<mpsc::Receiver<Queued<K>>>,
) {
    let mut queued = Vec::with_capacity(MAX_GROUPED_CALLS);
    loop {
        if queue.lock().await.recv_many(&mut queued, MAX_GROUPED_CALLS).await == 0 {
            return;
        }
        let now = Instant::now();
        queued.retain(|Queued { caller, .. }| {
            caller.deadline > now && !caller.answer.is_closed() && caller.claim.is_first()
        });
        let Some(oldest) = queued.iter().map(|queued| queued.caller.arrived).min() else {
            continue;
        };
        let (calls, callers): (Vec<K::Call>, Vec<Caller<K>>) =
            queued.drain(..).map(|queued| (queued.call, queued.caller)).unzip();
        // Whoever waits longest shall not wait as long again.
        let lent_by = (oldest + lender.wait()).max(now + GROUP_LEND_GRACE);
        let answers = match kind.make(lender, lent_by, &calls).await {
            Ok(answers) => answers,
            Err(error) => callers.iter().map(|_| Err(error.clone())).collect(),
        };
        for (caller, answer) in callers.into_iter().zip(answers) {
            // A caller that went away asks again.
            drop(caller.answer.send(answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as Cell;

    use tokio::{sync::Semaphore, task::yield_now, time::sleep};

    use super::*;
    use crate::{
        config::{PostgresConfig, Secret},
        store::postgres::Connector,
        telemetry::metrics::Metrics,
    };

    const PATIENCE: Duration = Duration::from_millis(100);
    const NOBODY: &str = "postgres://nobody@127.0.0.1:9/none";

    /// A kind whose round trips last until the gate opens.
    #[derive(Clone)]
    struct Gated {
        gate: Arc<Semaphore>,
        made: Arc<Cell<Vec<u32>>>,
    }

    impl Kind for Gated {
        type Call = u32;
        type Answer = u32;

        const TASK: &'static str = "gated";
        const PATIENCE: Option<Duration> = Some(PATIENCE);

        async fn make(
            &self,
            _lender: &Lender,
            _lent_by: Instant,
            calls: &[u32],
        ) -> Result<Vec<Answer<u32>>, StoreError> {
            self.made.lock().expect("no panic").extend(calls);
            let _open = self.gate.acquire().await.expect("never closed");
            Ok(calls.iter().map(|call| Ok(Some(*call))).collect())
        }
    }

    fn lender(tasks: &Tasks) -> Arc<Lender> {
        let config = PostgresConfig {
            url: Secret::new(NOBODY.to_owned()),
            direct_url: Secret::new(NOBODY.to_owned()),
            ca_file: None,
            pool_size: 1,
            writers: 1,
            statement_timeout: PATIENCE,
            connect_timeout: PATIENCE,
        };
        let connector = Connector::new(&config.url, &config, tasks).expect("a usable URL");
        let lender = Lender::new(Arc::new(connector), &config, tasks, &Metrics::new());
        Arc::new(lender.expect("a usable configuration"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_made_by_a_task_or_left_to_its_caller_and_never_both() {
        let tasks = Tasks::new();
        let gated = Gated { gate: Arc::new(Semaphore::new(0)), made: Arc::default() };
        let grouped =
            Grouped::start(gated.clone(), &lender(&tasks), &tasks, &CancellationToken::new());
        let deadline = Instant::now() + Duration::from_secs(10);
        let busy = async {
            // Each alone in a task, so that none is left.
            let first = grouped.make(1, deadline);
            let second = async {
                while gated.made.lock().expect("no panic").is_empty() {
                    yield_now().await;
                }
                grouped.make(2, deadline).await
            };
            tokio::join!(first, second)
        };
        let left = async {
            while gated.made.lock().expect("no panic").len() < GROUP_TASKS {
                yield_now().await;
            }
            let began = Instant::now();
            let left = grouped.make(3, deadline).await;
            let waited = began.elapsed();
            gated.gate.add_permits(1);
            (left, waited)
        };
        let ((first, second), (left, waited)) = tokio::join!(busy, left);
        assert_eq!((first, second), (Ok(Some(1)), Ok(Some(2))), "what a task has is waited for");
        assert_eq!(left, Ok(None));
        assert!(waited < 2 * PATIENCE, "{waited:?}");
        sleep(PATIENCE).await;
        assert_eq!(*gated.made.lock().expect("no panic"), [1, 2]);
    }
}
