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
    /// A task has taken the call.
    is_taken: Arc<AtomicBool>,
    answer: oneshot::Sender<Answer<K::Answer>>,
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
        let is_taken = Arc::<AtomicBool>::default();
        let taken = Arc::clone(&is_taken);
        let queued = Queued { call, caller: Caller { arrived, deadline, is_taken, answer } };
        self.queue.try_send(queued).map_err(|refused| match refused {
            TrySendError::Full(_) => StoreError::Overloaded,
            TrySendError::Closed(_) => closed(),
        })?;
        let mut waited = timeout_at(deadline.min(arrived + self.wait), &mut answered).await;
        if waited.is_err() && taken.load(Ordering::Relaxed) {
            waited = timeout_at(deadline, answered).await;
        }
        match waited {
            Ok(Ok(answer)) => answer,
            Ok(Err(_dropped)) => Err(closed()),
            Err(_elapsed) if K::PATIENCE.is_some() && Instant::now() < deadline => Ok(None),
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
        queued.retain(|Queued { caller, .. }| caller.deadline > now && !caller.answer.is_closed());
        let Some(oldest) = queued.iter().map(|queued| queued.caller.arrived).min() else {
            continue;
        };
        let (calls, callers): (Vec<K::Call>, Vec<Caller<K>>) =
            queued.drain(..).map(|queued| (queued.call, queued.caller)).unzip();
        callers.iter().for_each(|caller| caller.is_taken.store(true, Ordering::Relaxed));
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

/// A number as SQL has it.
pub(super) fn count<N: TryInto<i64>>(number: N) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
