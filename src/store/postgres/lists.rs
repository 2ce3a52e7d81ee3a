//! Short pages of many users in one round trip: what waits becomes one statement.
//!
//! Most lists find nothing or a few records, and a statement of its own costs more than what it
//! finds. So lists wait for one of a few readers, each of which takes what is there: nothing waits
//! to fill a batch. A page that is longer than a share of a batch is read alone instead.

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
use tokio_postgres::{Row, types::Type};
use tokio_util::sync::CancellationToken;

use super::{
    pool::{Lender, late},
    records::page,
    text_error,
    transaction::Parameter,
};
use crate::{
    limits::{
        BATCHED_PAGE_BYTES, BATCHED_PAGE_RECORDS, LIST_LEND_GRACE, LIST_READERS,
        MAX_POSTGRES_BATCH_LISTS, MAX_QUEUED_LISTS, RECORD_OVERHEAD_BYTES,
    },
    store::{Page, PageLimit, StoreError, UserId},
    tasks::Tasks,
};

/// One snapshot for the whole batch, so also for each page and its head.
const LIST_MANY: &str = "SELECT c.id, c.revision, c.schema_version, c.data, c.head, c.more, asked.place \
     FROM unnest($1, $2, $3, $4) WITH ORDINALITY \
              AS asked (user_id, since, max_records, max_bytes, place) \
     CROSS JOIN LATERAL data_sync.list_changes_v1(asked.user_id, asked.since, asked.max_records, \
                                                  asked.max_bytes, $5) c \
     ORDER BY asked.place, c.revision";

/// A page, or nothing where it has to be read alone.
type Answer = Result<Option<Page>, StoreError>;

/// One list that waits.
#[derive(Debug)]
struct Asked {
    user: UserId,
    since: u64,
    limit: PageLimit,
    arrived: Instant,
    deadline: Instant,
    /// A reader has taken it.
    is_taken: Arc<AtomicBool>,
    answer: oneshot::Sender<Answer>,
}

impl Asked {
    /// What of the caller's limit a batch has room for.
    fn share(&self) -> PageLimit {
        PageLimit {
            max_records: self.limit.max_records.min(BATCHED_PAGE_RECORDS),
            max_bytes: self.limit.max_bytes.min(BATCHED_PAGE_BYTES),
        }
    }

    /// The page is cut where the caller did not ask for a cut.
    fn is_cut_short(&self, page: &Page) -> bool {
        page.has_more && self.share() != self.limit
    }
}

/// The way to the readers.
#[derive(Debug)]
pub(super) struct Lists {
    queue: mpsc::Sender<Asked>,
    /// Longest wait for a reader.
    wait: Duration,
}

impl Lists {
    /// Starts the readers; they end with `closed`.
    pub(super) fn start(lender: &Arc<Lender>, tasks: &Tasks, closed: &CancellationToken) -> Self {
        let (sender, receiver) = mpsc::channel(MAX_QUEUED_LISTS);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..LIST_READERS {
            let (lender, receiver) = (Arc::clone(lender), Arc::clone(&receiver));
            let closed = closed.clone();
            tasks.spawn("postgres list reader", async move {
                closed.run_until_cancelled(read_for_ever(&lender, &receiver)).await;
            });
        }
        Self { queue: sender, wait: lender.wait() }
    }

    /// A short page and the head; nothing where the page is too long to be read with others.
    pub(super) async fn short_page(
        &self,
        user: UserId,
        since: u64,
        limit: PageLimit,
        deadline: Instant,
    ) -> Answer {
        let arrived = Instant::now();
        if deadline <= arrived {
            return Err(StoreError::DeadlineExceeded);
        }
        let (answer, mut answered) = oneshot::channel();
        let is_taken = Arc::<AtomicBool>::default();
        let taken = Arc::clone(&is_taken);
        let asked = Asked { user, since, limit, arrived, deadline, is_taken, answer };
        self.queue.try_send(asked).map_err(|refused| match refused {
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
            Err(_elapsed) => Err(late(deadline, "no reader was free in time")),
        }
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".to_owned())
}

/// One reader: the next one takes what comes while this one's statement runs.
async fn read_for_ever(lender: &Lender, queue: &Mutex<mpsc::Receiver<Asked>>) {
    let mut batch = Vec::with_capacity(MAX_POSTGRES_BATCH_LISTS);
    loop {
        if queue.lock().await.recv_many(&mut batch, MAX_POSTGRES_BATCH_LISTS).await == 0 {
            return;
        }
        let now = Instant::now();
        batch.retain(|asked| asked.deadline > now && !asked.answer.is_closed());
        let Some(oldest) = batch.iter().map(|asked| asked.arrived).min() else { continue };
        batch.iter().for_each(|asked| asked.is_taken.store(true, Ordering::Relaxed));
        // Whoever waits longest shall not wait as long again.
        let lent_by = (oldest + lender.wait()).max(now + LIST_LEND_GRACE);
        let pages = read(lender, lent_by, &batch).await;
        for (place, asked) in batch.drain(..).enumerate() {
            let answer = match &pages {
                Ok(pages) => {
                    let rows = pages.get(place).map(Vec::as_slice).unwrap_or_default();
                    page(rows).map(|page| (!asked.is_cut_short(&page)).then_some(page))
                }
                Err(error) => Err(error.clone()),
            };
            // A caller that went away asks again.
            drop(asked.answer.send(answer));
        }
    }
}

/// The rows of each list, in the order of the batch.
async fn read(
    lender: &Lender,
    lent_by: Instant,
    batch: &[Asked],
) -> Result<Vec<Vec<Row>>, StoreError> {
    let users: Vec<&[u8]> = batch.iter().map(|asked| asked.user.as_bytes().as_slice()).collect();
    let since: Vec<i64> = batch.iter().map(|asked| count(asked.since)).collect();
    let most: Vec<i64> = batch.iter().map(|asked| count(asked.share().max_records)).collect();
    let bytes: Vec<i64> = batch.iter().map(|asked| count(asked.share().max_bytes)).collect();
    let overhead = count(RECORD_OVERHEAD_BYTES);
    let parameters: [Parameter<'_>; 5] = [
        (&users, Type::BYTEA_ARRAY),
        (&since, Type::INT8_ARRAY),
        (&most, Type::INT8_ARRAY),
        (&bytes, Type::INT8_ARRAY),
        (&overhead, Type::INT8),
    ];
    let rows = lender.read_for_many(lent_by, LIST_MANY, &parameters).await?;
    let mut pages: Vec<Vec<Row>> = batch.iter().map(|_| Vec::new()).collect();
    for row in rows {
        let place: i64 = row.try_get(6).map_err(|error| text_error(&error))?;
        let index = usize::try_from(place).ok().and_then(|place| place.checked_sub(1));
        let page = index.and_then(|index| pages.get_mut(index)).ok_or_else(|| {
            StoreError::Internal(format!("a list of {} was answered at {place}", batch.len()))
        })?;
        page.push(row);
    }
    Ok(pages)
}

fn count<N: TryInto<i64>>(number: N) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
