//! The one thread that writes. What waits when it looks becomes one commit.
//!
//! A commit costs one flush of the disk however many operations share it, so the busier the
//! store, the cheaper the write; an idle one writes at once. An operation that fails takes
//! nothing with it: its batch is rolled back and tried again one by one.

use std::thread;

use rusqlite::{Connection, TransactionBehavior};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};

use super::{connection::store_error, locks, records};
use crate::{
    limits::{MAX_QUEUED_WRITES, MAX_SQLITE_BATCH_ROWS, SQLITE_CLOSE_TIMEOUT},
    notify::Change,
    store::{
        LockOutcome, LockRequest, RecordWrite, StoreContext, StoreError, UserId, WriteOutcome,
    },
};

/// Hands operations to the writer's thread.
#[derive(Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<Work>,
}

/// What the thread does next.
enum Work {
    /// Shares a commit with others.
    Write(Pending),
    /// Has the connection to itself.
    Task(Task),
    /// Ends the thread once the queue is empty.
    Close(oneshot::Sender<()>),
}

type Task = Box<dyn FnOnce(&mut Connection) + Send>;
type Answer<T> = Result<T, StoreError>;

/// One operation that waits.
struct Pending {
    operation: Operation,
    deadline: Instant,
    answer: oneshot::Sender<Answer<Outcome>>,
}

pub(super) enum Operation {
    Record(RecordWrite),
    Lock(LockRequest),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Outcome {
    Record(WriteOutcome),
    Lock(LockOutcome),
}

fn gone() -> StoreError {
    StoreError::Unavailable("the store is closed".to_owned())
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(connection: Connection, context: StoreContext) -> std::io::Result<Self> {
        let (queue, work) = mpsc::channel(MAX_QUEUED_WRITES);
        let thread = WriterThread { connection, context };
        let run = move || thread.run(work);
        thread::Builder::new().name("sqlite-writer".to_owned()).spawn(run)?;
        Ok(Self { queue })
    }

    /// The thread takes no more work: it was closed or it panicked.
    pub(super) fn is_gone(&self) -> bool {
        self.queue.is_closed()
    }

    /// Hands over one operation and waits for its outcome. Handed over, it happens whether or
    /// not anybody waits, unless its deadline passes before its turn.
    pub(super) async fn write(&self, operation: Operation, deadline: Instant) -> Answer<Outcome> {
        if self.is_gone() {
            return Err(gone());
        }
        if deadline <= Instant::now() {
            return Err(StoreError::DeadlineExceeded);
        }
        let (answer, outcome) = oneshot::channel();
        self.enqueue(Work::Write(Pending { operation, deadline, answer }))?;
        match timeout_at(deadline, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(StoreError::DeadlineExceeded),
        }
    }

    /// Runs `task` in a transaction of its own; an error undoes it.
    pub(super) async fn run<T, F>(&self, task: F) -> Answer<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (answer, outcome) = oneshot::channel();
        let task = move |connection: &mut Connection| {
            let result = (|| {
                let transaction =
                    connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let value = task(&transaction)?;
                transaction.commit()?;
                Ok(value)
            })();
            // Nobody waits any more: the task is done all the same.
            let _ = answer.send(result.map_err(store_error));
        };
        self.enqueue(Work::Task(Box::new(task)))?;
        outcome.await.unwrap_or_else(|_| Err(gone()))
    }

    fn enqueue(&self, work: Work) -> Answer<()> {
        self.queue.try_send(work).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => StoreError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => gone(),
        })
    }

    /// Ends the thread after what was queued, within a bound; true if it has ended.
    pub(super) async fn close(&self) -> bool {
        let (ended, end) = oneshot::channel();
        let close = async {
            if self.queue.send(Work::Close(ended)).await.is_ok() {
                // An error means that the thread ended without a word, which is an end too.
                let _ = end.await;
            }
            self.queue.closed().await;
        };
        timeout(SQLITE_CLOSE_TIMEOUT, close).await.is_ok()
    }
}

struct WriterThread {
    connection: Connection,
    context: StoreContext,
}

impl WriterThread {
    fn run(mut self, work: mpsc::Receiver<Work>) {
        let mut batch = Vec::with_capacity(MAX_SQLITE_BATCH_ROWS);
        // Declared after the batch, so that a panic closes the queue before it answers anybody:
        // who hears of it finds the store closed.
        let mut work = work;
        let mut closing = Vec::new();
        while let Some(first) = work.blocking_recv() {
            let mut next = Some(first);
            while let Some(item) = next {
                match item {
                    Work::Write(pending) => batch.push(pending),
                    Work::Task(task) => {
                        self.write_batch(&mut batch);
                        task(&mut self.connection);
                    }
                    Work::Close(ended) => {
                        work.close();
                        closing.push(ended);
                    }
                }
                next = match batch.len() {
                    MAX_SQLITE_BATCH_ROWS.. => None,
                    _ => work.try_recv().ok(),
                };
            }
            let waiting = i64::try_from(work.len()).unwrap_or(i64::MAX);
            self.context.metrics.store_queue_length.set(waiting);
            self.write_batch(&mut batch);
        }
        self.finish();
        for ended in closing {
            // Who gave up waiting needs no word.
            let _ = ended.send(());
        }
    }

    /// Moves the log into the file and lets the file go.
    fn finish(self) {
        let connection = self.connection;
        let checkpoint = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if let Err(error) = checkpoint.and_then(|()| connection.close().map_err(|(_, e)| e)) {
            tracing::warn!(error = %store_error(error), "sqlite file was not closed cleanly");
        }
    }

    /// Commits and answers everything in `batch`, and leaves it empty.
    fn write_batch(&mut self, batch: &mut Vec<Pending>) {
        let now = Instant::now();
        for late in batch.extract_if(.., |pending| pending.deadline <= now) {
            reply(late.answer, Err(StoreError::DeadlineExceeded));
        }
        if batch.is_empty() {
            return;
        }
        let rows = f64::from(u32::try_from(batch.len()).unwrap_or(u32::MAX));
        self.context.metrics.store_batch_rows.observe(rows);
        let answers = match self.commit(batch) {
            Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
            Err(Failure::Batch(error)) if batch.len() > 1 => self.write_singly(batch, &error),
            Err(Failure::Begin(error) | Failure::Batch(error)) => vec![Err(error); batch.len()],
        };
        for (pending, answer) in batch.drain(..).zip(answers) {
            reply(pending.answer, answer);
        }
    }

    /// Tries the operations of a failed batch one by one, so that only the guilty fail.
    fn write_singly(&mut self, batch: &[Pending], error: &StoreError) -> Vec<Answer<Outcome>> {
        tracing::warn!(%error, rows = batch.len(), "batch failed, writing one by one");
        self.context.metrics.store_retries.with_label_values(&["batch", "split"]).inc();
        let mut answers = Vec::with_capacity(batch.len());
        for single in batch.chunks(1) {
            match self.commit(single) {
                Ok(outcomes) => answers.extend(outcomes.into_iter().map(Ok)),
                Err(Failure::Begin(error) | Failure::Batch(error)) => answers.push(Err(error)),
            }
        }
        answers
    }

    /// Runs `batch` in one transaction and announces what it changed.
    fn commit(&mut self, batch: &[Pending]) -> Result<Vec<Outcome>, Failure> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| Failure::Begin(store_error(error)))?;
        let outcomes = batch
            .iter()
            .map(|pending| apply(&transaction, &pending.operation, &self.context))
            .collect::<rusqlite::Result<Vec<_>>>();
        let outcomes = outcomes
            .and_then(|outcomes| transaction.commit().map(|()| outcomes))
            .map_err(|error| Failure::Batch(store_error(error)))?;
        let changes = changes(batch, &outcomes);
        if !changes.is_empty() {
            self.context.feed.announce(&changes);
        }
        Ok(outcomes)
    }
}

/// Why a commit failed.
enum Failure {
    /// Before any operation was tried.
    Begin(StoreError),
    /// In one of the operations or at the commit; all are undone.
    Batch(StoreError),
}

fn apply(
    connection: &Connection,
    operation: &Operation,
    context: &StoreContext,
) -> rusqlite::Result<Outcome> {
    match operation {
        Operation::Record(write) => {
            records::set_record(connection, write, &context.quotas).map(Outcome::Record)
        }
        Operation::Lock(request) => {
            let now_ms = context.clock.now_ms();
            locks::set_lock(connection, request, &context.quotas, now_ms).map(Outcome::Lock)
        }
    }
}

/// The runs of accepted writes, each user's in order; neighbours of one client are merged.
fn changes(batch: &[Pending], outcomes: &[Outcome]) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for (pending, outcome) in batch.iter().zip(outcomes) {
        let (Operation::Record(write), Outcome::Record(WriteOutcome::Written { revision })) =
            (&pending.operation, outcome)
        else {
            continue;
        };
        match newest_of(&mut changes, write.user) {
            Some(change) if change.client_id == write.client_id => change.to = *revision,
            _ => changes.push(Change {
                user: write.user,
                from: *revision,
                to: *revision,
                client_id: write.client_id.clone(),
            }),
        }
    }
    changes
}

fn newest_of(changes: &mut [Change], user: UserId) -> Option<&mut Change> {
    changes.iter_mut().rev().find(|change| change.user == user)
}

fn reply<T>(answer: oneshot::Sender<Answer<T>>, result: Answer<T>) {
    // A caller that hung up undoes nothing; there is nobody to tell.
    let _ = answer.send(result);
}
