//! Writes records: natural batches, one round trip each, on connections that no caller can drop.
//!
//! A writer takes whatever waits, sends it, and looks again: an idle server writes at once, a busy
//! one shares commits. A batch couples strangers, so nothing one of them causes may hurt the
//! others for long: see [`super::lanes`] for contention; any other error of a batch is found by
//! sending its rows one by one.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prometheus::{Histogram, IntCounterVec, IntGauge};
use tokio::{
    sync::{Semaphore, TryAcquireError, mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout, timeout_at},
};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::{
    batch::{self, Call},
    connect::Connector,
    error::Fault,
    lanes::{Batch, Lanes, Place, Queued},
    transaction::Ended,
};
use crate::{
    config::PostgresConfig,
    limits::{MAX_QUEUED_WRITES, RECONNECT_BACKOFF},
    notify::{Change, ChangeFeed},
    store::{Quotas, RecordWrite, StoreError, UserId, WriteOutcome},
    tasks::Tasks,
    telemetry::metrics::Metrics,
};

/// How often a writer without a connection looks for writes that have waited long enough.
const OUTAGE_TICK: Duration = Duration::from_millis(25);
/// Times a write is sent without learning what became of it.
const MAX_UNCERTAIN: u32 = 3;

/// A pause of at least half of `pause`, at most all of it.
pub(crate) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..=1.0))
}

/// The writer tasks of one store, and the way in.
pub(super) struct Writers {
    senders: Vec<mpsc::Sender<Queued>>,
    places: Arc<Semaphore>,
    queue_length: IntGauge,
    finishing: AtomicBool,
}

impl fmt::Debug for Writers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writers").field("count", &self.senders.len()).finish_non_exhaustive()
    }
}

impl Writers {
    /// Starts the tasks; they end with `closed`.
    pub(super) fn start(
        config: &PostgresConfig,
        connector: &Arc<Connector>,
        feed: &Arc<dyn ChangeFeed>,
        quotas: Quotas,
        metrics: &Metrics,
        tasks: &Tasks,
        closed: &CancellationToken,
    ) -> Self {
        let call = Arc::new(Call::new(config.statement_timeout, quotas));
        let start_one = |_| {
            let (sender, receiver) = mpsc::channel(MAX_QUEUED_WRITES);
            let writer = Writer {
                call: Arc::clone(&call),
                connector: Arc::clone(connector),
                feed: Arc::clone(feed),
                patience: config.connect_timeout,
                retries: metrics.store_retries.clone(),
                batch_rows: metrics.store_batch_rows.clone(),
                closed: closed.clone(),
                receiver,
                drained: false,
                lanes: Lanes::new(),
                client: None,
                lost_at: None,
            };
            tasks.spawn("postgres writer", writer.run());
            sender
        };
        Self {
            senders: (0..config.writers.max(1)).map(start_one).collect(),
            places: Arc::new(Semaphore::new(MAX_QUEUED_WRITES)),
            queue_length: metrics.store_queue_length.clone(),
            finishing: AtomicBool::new(false),
        }
    }

    /// Hands a write over and waits for its answer. Dropping this does not take the write back.
    pub(super) async fn write(
        &self,
        write: RecordWrite,
        deadline: Instant,
    ) -> Result<WriteOutcome, StoreError> {
        let now = Instant::now();
        if deadline <= now {
            return Err(StoreError::DeadlineExceeded);
        }
        if self.finishing.load(Ordering::Relaxed) {
            return Err(stopped());
        }
        let permit =
            Arc::clone(&self.places).try_acquire_owned().map_err(|refused| match refused {
                TryAcquireError::NoPermits => StoreError::Overloaded,
                TryAcquireError::Closed => stopped(),
            })?;
        let (answer, answered) = oneshot::channel();
        let sender = self.sender(write.user);
        let queued = Queued {
            write,
            deadline,
            arrived: now,
            uncertain: 0,
            contended: false,
            alone: false,
            answer,
            place: Place::new(permit, self.queue_length.clone()),
        };
        // There is room for every permit: only a writer that has ended refuses.
        sender.try_send(queued).map_err(|_refused| stopped())?;
        match timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_dropped)) => Err(stopped()),
            Err(_elapsed) => Err(StoreError::DeadlineExceeded),
        }
    }

    /// A user's writes all go to one writer, or they would overtake and abort each other.
    fn sender(&self, user: UserId) -> &mpsc::Sender<Queued> {
        let last = user.as_bytes()[UserId::BYTES - 1];
        &self.senders[usize::from(last) % self.senders.len()]
    }

    /// Takes no more writes and waits for those that wait; true if all were answered.
    pub(super) async fn finish(&self, limit: Duration) -> bool {
        self.finishing.store(true, Ordering::Relaxed);
        let all = u32::try_from(MAX_QUEUED_WRITES).unwrap_or(u32::MAX);
        timeout(limit, self.places.acquire_many(all)).await.is_ok()
    }
}

fn stopped() -> StoreError {
    StoreError::Unavailable("the store is closed".to_owned())
}

/// One writer.
struct Writer {
    call: Arc<Call>,
    connector: Arc<Connector>,
    feed: Arc<dyn ChangeFeed>,
    /// Longest time a write waits for a lost database.
    patience: Duration,
    retries: IntCounterVec,
    batch_rows: Histogram,
    closed: CancellationToken,
    receiver: mpsc::Receiver<Queued>,
    /// Nothing will arrive any more.
    drained: bool,
    lanes: Lanes,
    client: Option<Client>,
    /// Since when there is no connection although one was wanted.
    lost_at: Option<Instant>,
}

impl Writer {
    async fn run(mut self) {
        loop {
            while let Ok(row) = self.receiver.try_recv() {
                self.lanes.push(row);
            }
            let mut expired = Vec::new();
            let batch = self.lanes.next(Instant::now(), &mut expired);
            expired.into_iter().for_each(Queued::expire);
            match batch {
                Some(batch) => self.send(batch).await,
                None if self.wait().await => {}
                None => return,
            }
        }
    }

    /// Waits until there may be something to send; false at the end.
    async fn wait(&mut self) -> bool {
        let due = self.lanes.next_due();
        let open = !self.receiver.is_closed();
        tokio::select! {
            row = self.receiver.recv(), if !self.drained => match row {
                Some(row) => self.lanes.push(row),
                None => self.drained = true,
            },
            () = self.closed.cancelled(), if open => self.receiver.close(),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            else => {}
        }
        !(self.drained && self.lanes.is_empty())
    }

    async fn send(&mut self, mut batch: Batch) {
        let Some(client) = self.client.take().filter(|client| !client.is_closed()) else {
            self.lanes.give_back(batch);
            self.reconnect().await;
            return;
        };
        let ended = self.call.send(&client, &batch.rows).await;
        if !matches!(ended, Ended::Unknown(_)) {
            self.client = Some(client);
        }
        match ended {
            Ended::Committed(rows) => match batch::outcomes(&rows, batch.rows.len()) {
                Ok(outcomes) => self.settle(batch, &outcomes),
                Err(error) => self.refuse(batch, &error),
            },
            Ended::RolledBack(Fault::Contended(reason)) => {
                self.count_retry(reason);
                let late = self.lanes.contended(batch, Instant::now());
                late.into_iter().for_each(Queued::expire);
            }
            Ended::RolledBack(Fault::Other(error)) if batch.rows.len() == 1 => {
                self.refuse(batch, &error);
            }
            Ended::RolledBack(Fault::Other(error)) => {
                tracing::warn!(%error, rows = batch.rows.len(), "a batch failed, its rows go alone");
                self.count_retry("split");
                batch.rows.iter_mut().for_each(|row| row.alone = true);
                self.lanes.give_back(batch);
            }
            Ended::Unknown(text) => {
                tracing::warn!(
                    reason = text,
                    "the outcome of a batch is unknown, it is sent again"
                );
                self.count_retry("connection");
                self.lost_at = Some(Instant::now());
                self.give_back_uncertain(batch);
            }
        }
    }

    fn count_retry(&self, reason: &str) {
        self.retries.with_label_values(&["set_record", reason]).inc();
    }

    /// Puts back rows that may have been written. Should one of them be what breaks connections,
    /// it soon goes alone and then not at all.
    fn give_back_uncertain(&mut self, mut batch: Batch) {
        for row in &mut batch.rows {
            row.uncertain += 1;
            row.alone |= row.uncertain > 1;
        }
        let (again, given_up): (Vec<_>, Vec<_>) =
            batch.rows.into_iter().partition(|row| row.uncertain < MAX_UNCERTAIN);
        given_up.into_iter().for_each(Queued::expire);
        self.lanes.give_back(Batch { rows: again, lane: batch.lane });
        self.lanes.settled(batch.lane, Instant::now());
    }

    /// Announces what was written, then answers every row.
    fn settle(&mut self, batch: Batch, outcomes: &[WriteOutcome]) {
        self.batch_rows.observe(f64::from(u32::try_from(batch.rows.len()).unwrap_or(u32::MAX)));
        let changes = changes(&batch.rows, outcomes);
        if !changes.is_empty() {
            self.feed.announce(&changes);
        }
        for (row, outcome) in batch.rows.into_iter().zip(outcomes) {
            let answer = answer(row.uncertain > 0, *outcome);
            row.answer(answer);
        }
        self.lanes.settled(batch.lane, Instant::now());
    }

    fn refuse(&mut self, batch: Batch, error: &StoreError) {
        for row in batch.rows {
            row.answer(Err(error.clone()));
        }
        self.lanes.settled(batch.lane, Instant::now());
    }

    /// Tries to reach the database until it answers or nothing waits any more.
    async fn reconnect(&mut self) {
        let lost_at = *self.lost_at.get_or_insert_with(Instant::now);
        let connector = Arc::clone(&self.connector);
        let mut pause = RECONNECT_BACKOFF.0;
        let mut warned = false;
        loop {
            match self.meanwhile(lost_at, connector.connect()).await {
                Ok(client) => {
                    if warned {
                        tracing::info!("a writer reached postgres again");
                    }
                    self.client = Some(client);
                    self.lost_at = None;
                    return;
                }
                Err(error) if !warned => {
                    tracing::warn!(%error, "a writer cannot reach postgres");
                    warned = true;
                }
                Err(error) => tracing::debug!(%error, "a writer still cannot reach postgres"),
            }
            if self.closed.is_cancelled() {
                self.give_up(|_| true);
            }
            if self.lanes.is_empty() {
                return;
            }
            self.meanwhile(lost_at, sleep(jittered(pause))).await;
            pause = RECONNECT_BACKOFF.1.min(pause * 2);
        }
    }

    /// Waits for `work`; takes in what arrives and lets go what has waited long enough.
    async fn meanwhile<T>(&mut self, lost_at: Instant, work: impl Future<Output = T>) -> T {
        let mut tick = interval(OUTAGE_TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                now = tick.tick() => {
                    let patience = self.patience;
                    self.give_up(|row| row.arrived.max(lost_at) + patience <= now);
                }
                row = self.receiver.recv(), if !self.drained => match row {
                    Some(row) => self.lanes.push(row),
                    None => self.drained = true,
                },
            }
        }
    }

    fn give_up(&mut self, leaves: impl Fn(&Queued) -> bool) {
        for row in self.lanes.take_out(leaves) {
            row.answer(Err(StoreError::Unavailable("no connection to postgres".to_owned())));
        }
    }
}

/// What the caller is told. A write that was sent before and is found in place was written by
/// that sending; one that is not may have been written and replaced since.
fn answer(uncertain: bool, outcome: WriteOutcome) -> Result<WriteOutcome, StoreError> {
    match outcome {
        WriteOutcome::Repeated { revision } if uncertain => Ok(WriteOutcome::Written { revision }),
        WriteOutcome::Conflict | WriteOutcome::OverQuota(_) if uncertain => {
            Err(StoreError::Unavailable("the outcome of the write is unknown".to_owned()))
        }
        outcome => Ok(outcome),
    }
}

/// The runs of revisions to announce: what was written now, and what an earlier sending wrote
/// whose announcement was lost with its answer.
fn changes(rows: &[Queued], outcomes: &[WriteOutcome]) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for (row, outcome) in rows.iter().zip(outcomes) {
        let revision = match outcome {
            WriteOutcome::Written { revision } => *revision,
            WriteOutcome::Repeated { revision } if row.uncertain > 0 => *revision,
            WriteOutcome::Repeated { .. } | WriteOutcome::Conflict | WriteOutcome::OverQuota(_) => {
                continue;
            }
        };
        let RecordWrite { user, client_id, .. } = &row.write;
        match changes.last_mut() {
            Some(run)
                if run.user == *user
                    && run.client_id == *client_id
                    && run.to.checked_add(1) == Some(revision) =>
            {
                run.to = revision;
            }
            _ => changes.push(Change {
                user: *user,
                from: revision,
                to: revision,
                client_id: client_id.clone(),
            }),
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_written_is_never_called_a_conflict() {
        let written = WriteOutcome::Written { revision: 4 };
        let repeated = WriteOutcome::Repeated { revision: 4 };
        assert_eq!(answer(true, repeated), Ok(written));
        assert_eq!(answer(true, written), Ok(written));
        assert!(matches!(answer(true, WriteOutcome::Conflict), Err(StoreError::Unavailable(_))));
        assert_eq!(answer(false, repeated), Ok(repeated));
        assert_eq!(answer(false, WriteOutcome::Conflict), Ok(WriteOutcome::Conflict));
    }

    #[test]
    fn jitter_stays_between_half_and_all() {
        let pause = Duration::from_millis(100);
        for _ in 0..100 {
            let jittered = jittered(pause);
            assert!(jittered >= pause / 2 && jittered <= pause, "{jittered:?}");
        }
    }
}
