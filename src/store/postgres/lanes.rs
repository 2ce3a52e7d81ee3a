//! What waits for one writer, and which of it goes next.
//!
//! A user's writes stay in order of arrival. Most wait in one common lane. A user whose head
//! other replicas keep moving waits apart, with a pause of its own, so that one contended user
//! does not undo the batches of everybody else.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
};

use prometheus::IntGauge;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use super::writer::jittered;
use crate::{
    limits::{CONTENTION_BACKOFF, MAX_POSTGRES_BATCH_BYTES, MAX_POSTGRES_BATCH_ROWS},
    store::{RecordWrite, StoreError, UserId, WriteOutcome},
};

/// A place in the queue; counted, and given back when dropped.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    length: IntGauge,
}

impl Place {
    pub(super) fn new(permit: OwnedSemaphorePermit, length: IntGauge) -> Self {
        length.inc();
        Self { _permit: permit, length }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.length.dec();
    }
}

/// One write that waits.
pub(super) struct Queued {
    pub(super) write: RecordWrite,
    pub(super) deadline: Instant,
    pub(super) arrived: Instant,
    /// Times it was sent without learning what became of it.
    pub(super) uncertain: u32,
    /// It was rolled back because others changed the same rows.
    pub(super) contended: bool,
    /// It must not share a batch.
    pub(super) alone: bool,
    pub(super) answer: oneshot::Sender<Result<WriteOutcome, StoreError>>,
    pub(super) place: Place,
}

impl fmt::Debug for Queued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queued").field("write", &self.write).finish_non_exhaustive()
    }
}

impl Queued {
    /// Answers the caller, if there still is one.
    pub(super) fn answer(self, answer: Result<WriteOutcome, StoreError>) {
        let Self { answer: caller, place, .. } = self;
        drop(place);
        // A caller that went away has its answer in the database.
        drop(caller.send(answer));
    }

    /// Answers a write whose deadline has passed.
    pub(super) fn expire(self) {
        let error = if self.uncertain > 0 {
            StoreError::Unavailable("the outcome of the write is unknown".to_owned())
        } else if self.contended {
            StoreError::Contended
        } else {
            StoreError::DeadlineExceeded
        };
        self.answer(Err(error));
    }
}

/// Where a batch was taken from, and goes back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Common,
    Apart(UserId),
}

/// Rows that go together, sorted by user; at least one.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) rows: Vec<Queued>,
    pub(super) lane: Lane,
}

/// One contended user.
struct Apart {
    rows: VecDeque<Queued>,
    due: Instant,
    failures: u32,
}

/// Everything that waits for one writer.
pub(super) struct Lanes {
    common: VecDeque<Queued>,
    apart: HashMap<UserId, Apart>,
    /// Most rows of the next batch of the common lane: halved by contention, doubled by success.
    rows: usize,
    /// The last batch was of a user apart: the common lane is next.
    common_next: bool,
}

impl Lanes {
    pub(super) fn new() -> Self {
        Self {
            common: VecDeque::new(),
            apart: HashMap::new(),
            rows: MAX_POSTGRES_BATCH_ROWS,
            common_next: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.common.is_empty() && self.apart.values().all(|apart| apart.rows.is_empty())
    }

    pub(super) fn push(&mut self, row: Queued) {
        self.common.push_back(row);
    }

    /// When the next user apart may go.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.apart.values().filter(|apart| !apart.rows.is_empty()).map(|apart| apart.due).min()
    }

    /// What goes next, if anything may. Rows whose deadline has passed end up in `expired`.
    pub(super) fn next(&mut self, now: Instant, expired: &mut Vec<Queued>) -> Option<Batch> {
        let batch = if self.common_next {
            self.next_common(now, expired).or_else(|| self.next_apart(now, expired))
        } else {
            self.next_apart(now, expired).or_else(|| self.next_common(now, expired))
        };
        self.common_next = matches!(batch, Some(Batch { lane: Lane::Apart(_), .. }));
        batch
    }

    fn next_common(&mut self, now: Instant, expired: &mut Vec<Queued>) -> Option<Batch> {
        let (rows, apart) = (&mut self.common, &mut self.apart);
        let mut taken =
            take(rows, self.rows, now, expired, |row| match apart.get_mut(&row.write.user) {
                Some(apart) => {
                    apart.rows.push_back(row);
                    None
                }
                None => Some(row),
            });
        // Stable: a user's writes stay in order. Ascending: no two writers wait for each other.
        taken.sort_by_key(|row| row.write.user);
        (!taken.is_empty()).then_some(Batch { rows: taken, lane: Lane::Common })
    }

    fn next_apart(&mut self, now: Instant, expired: &mut Vec<Queued>) -> Option<Batch> {
        loop {
            let waiting = self.apart.iter().filter(|(_, apart)| !apart.rows.is_empty());
            let (user, due) =
                waiting.map(|(user, a)| (*user, a.due)).min_by_key(|(_, due)| *due)?;
            if due > now {
                return None;
            }
            let rows = &mut self.apart.get_mut(&user)?.rows;
            let taken = take(rows, MAX_POSTGRES_BATCH_ROWS, now, expired, Some);
            if !taken.is_empty() {
                return Some(Batch { rows: taken, lane: Lane::Apart(user) });
            }
            // All had expired.
            self.apart.remove(&user);
        }
    }

    /// A batch was answered: its lane goes on.
    pub(super) fn settled(&mut self, lane: Lane, now: Instant) {
        match lane {
            Lane::Common => self.rows = MAX_POSTGRES_BATCH_ROWS.min(self.rows * 2),
            Lane::Apart(user) => {
                if let Some(apart) = self.apart.get_mut(&user) {
                    apart.failures = 0;
                    apart.due = now;
                    if apart.rows.is_empty() {
                        self.apart.remove(&user);
                    }
                }
            }
        }
    }

    /// Puts a batch back where it came from; it is next in its lane.
    pub(super) fn give_back(&mut self, batch: Batch) {
        let lane = match batch.lane {
            Lane::Common => &mut self.common,
            Lane::Apart(user) => &mut self.apart.entry(user).or_insert_with(Apart::new).rows,
        };
        for row in batch.rows.into_iter().rev() {
            lane.push_front(row);
        }
    }

    /// Puts back a batch that others' writes undid. The common lane goes on with half of it; what
    /// is down to one user waits apart, where splitting would not help: the head is contended, and
    /// all of the user's rows share it. Answers the rows that cannot wait for another try.
    pub(super) fn contended(&mut self, mut batch: Batch, now: Instant) -> Vec<Queued> {
        for row in &mut batch.rows {
            row.contended = true;
        }
        let one_user = batch.rows.windows(2).all(|two| two[0].write.user == two[1].write.user);
        if batch.lane == Lane::Common && !one_user {
            self.rows = (batch.rows.len() / 2).max(1);
            self.give_back(batch);
            return Vec::new();
        }
        let Some(user) = batch.rows.first().map(|row| row.write.user) else {
            return Vec::new();
        };
        let apart = self.apart.entry(user).or_insert_with(Apart::new);
        let pause = CONTENTION_BACKOFF.0 * 2_u32.saturating_pow(apart.failures.min(16));
        apart.due = now + jittered(pause.min(CONTENTION_BACKOFF.1));
        apart.failures = apart.failures.saturating_add(1);
        let due = apart.due;
        let (waiting, late) = batch.rows.into_iter().partition(|row| row.deadline > due);
        self.give_back(Batch { rows: waiting, lane: Lane::Apart(user) });
        self.tidy(user);
        late
    }

    fn tidy(&mut self, user: UserId) {
        if self.apart.get(&user).is_some_and(|apart| apart.rows.is_empty()) {
            self.apart.remove(&user);
        }
    }

    /// Takes out every row for which `leaves` holds.
    pub(super) fn take_out(&mut self, leaves: impl Fn(&Queued) -> bool) -> Vec<Queued> {
        let mut out = Vec::new();
        let mut sift = |rows: &mut VecDeque<Queued>| {
            let (gone, kept): (Vec<_>, VecDeque<_>) = rows.drain(..).partition_map(&leaves);
            out.extend(gone);
            *rows = kept;
        };
        sift(&mut self.common);
        self.apart.values_mut().for_each(|apart| sift(&mut apart.rows));
        self.apart.retain(|_, apart| !apart.rows.is_empty());
        out
    }
}

impl Apart {
    fn new() -> Self {
        Self { rows: VecDeque::new(), due: Instant::now(), failures: 0 }
    }
}

/// `partition` into two different collections.
trait PartitionMap: Iterator<Item = Queued> + Sized {
    fn partition_map(self, leaves: impl Fn(&Queued) -> bool) -> (Vec<Queued>, VecDeque<Queued>) {
        let mut parts = (Vec::new(), VecDeque::new());
        for row in self {
            if leaves(&row) {
                parts.0.push(row);
            } else {
                parts.1.push_back(row);
            }
        }
        parts
    }
}

impl<I: Iterator<Item = Queued>> PartitionMap for I {}

/// Takes the rows of one batch from the front: at most `most`, at most
/// [`MAX_POSTGRES_BATCH_BYTES`], at least one. `keep` may lead a row elsewhere.
fn take(
    rows: &mut VecDeque<Queued>,
    most: usize,
    now: Instant,
    expired: &mut Vec<Queued>,
    mut keep: impl FnMut(Queued) -> Option<Queued>,
) -> Vec<Queued> {
    let mut taken: Vec<Queued> = Vec::new();
    let mut bytes = 0;
    while taken.len() < most
        && let Some(row) = rows.pop_front()
    {
        if row.deadline <= now {
            expired.push(row);
            continue;
        }
        let Some(row) = keep(row) else { continue };
        bytes += row.write.data.len();
        let full = bytes > MAX_POSTGRES_BATCH_BYTES || row.alone;
        if full && !taken.is_empty() {
            rows.push_front(row);
            break;
        }
        taken.push(row);
        if full {
            break;
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use bytes::Bytes;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::store::RequestDigest;

    const SECOND: Duration = Duration::from_secs(1);

    fn row(user: u8, name: &str, data: usize, deadline: Instant) -> Queued {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("a free place");
        let length = IntGauge::new("length", "length").expect("a valid name");
        Queued {
            write: RecordWrite {
                user: UserId::new([user; 33]),
                id: name.to_owned(),
                base_revision: 0,
                schema_version: String::new(),
                data: Bytes::from(vec![0; data]),
                digest: RequestDigest([0; 32]),
                client_id: None,
            },
            deadline,
            arrived: Instant::now(),
            uncertain: 0,
            contended: false,
            alone: false,
            answer: oneshot::channel().0,
            place: Place::new(permit, length),
        }
    }

    /// Lanes with rows such as `1a`: user 1, record `a`.
    fn lanes(rows: &[&str]) -> Lanes {
        let mut lanes = Lanes::new();
        push(&mut lanes, rows);
        lanes
    }

    fn push(lanes: &mut Lanes, rows: &[&str]) {
        for name in rows {
            let user = name.as_bytes()[0] - b'0';
            lanes.push(row(user, &name[1..], 1, Instant::now() + SECOND));
        }
    }

    fn names(batch: &Batch) -> Vec<String> {
        let name = |row: &Queued| format!("{}{}", row.write.user.as_bytes()[0], row.write.id);
        batch.rows.iter().map(name).collect()
    }

    fn next(lanes: &mut Lanes) -> Batch {
        lanes.next(Instant::now(), &mut Vec::new()).expect("something to send")
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_goes_together_sorted_by_user_and_in_order_within() {
        let mut lanes = lanes(&["2a", "1b", "2c", "1a"]);
        assert_eq!(names(&next(&mut lanes)), ["1b", "1a", "2a", "2c"]);
        assert!(lanes.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_cut_at_rows_and_bytes() {
        let deadline = Instant::now() + SECOND;
        let mut lanes = Lanes::new();
        for nth in 0..MAX_POSTGRES_BATCH_ROWS + 1 {
            lanes.push(row(1, &nth.to_string(), 1, deadline));
        }
        assert_eq!(next(&mut lanes).rows.len(), MAX_POSTGRES_BATCH_ROWS);
        lanes.push(row(1, "b", MAX_POSTGRES_BATCH_BYTES - 1, deadline));
        lanes.push(row(1, "c", MAX_POSTGRES_BATCH_BYTES + 1, deadline));
        lanes.push(row(1, "d", 1, deadline));
        let sizes: Vec<usize> = (0..3).map(|_| next(&mut lanes).rows.len()).collect();
        assert_eq!(sizes, [2, 1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn expired_rows_leave_before_they_are_sent() {
        let now = Instant::now();
        let mut lanes = Lanes::new();
        lanes.push(row(1, "late", 1, now));
        lanes.push(row(1, "early", 1, now + SECOND));
        let mut expired = Vec::new();
        let batch = lanes.next(now, &mut expired).expect("something to send");
        assert_eq!((names(&batch), expired.len()), (vec!["1early".to_owned()], 1));
    }

    #[tokio::test(start_paused = true)]
    async fn contention_halves_and_success_doubles() {
        let mut lanes = lanes(&["1a", "2a", "3a", "4a"]);
        let batch = next(&mut lanes);
        assert!(lanes.contended(batch, Instant::now()).is_empty());
        let half = next(&mut lanes);
        assert_eq!(names(&half), ["1a", "2a"]);
        lanes.settled(half.lane, Instant::now());
        push(&mut lanes, &["5a", "6a", "7a"]);
        assert_eq!(names(&next(&mut lanes)), ["3a", "4a", "5a", "6a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_contended_user_waits_apart_and_keeps_its_order() {
        let mut lanes = lanes(&["1a", "1b"]);
        let batch = next(&mut lanes);
        assert!(lanes.contended(batch, Instant::now()).is_empty());
        push(&mut lanes, &["1c", "2a"]);
        assert_eq!(names(&next(&mut lanes)), ["2a"], "strangers do not wait for it");
        tokio::time::sleep_until(lanes.next_due().expect("a user apart")).await;
        let batch = next(&mut lanes);
        assert_eq!(names(&batch), ["1a", "1b", "1c"]);
        lanes.settled(batch.lane, Instant::now());
        push(&mut lanes, &["1d", "2b"]);
        assert_eq!(names(&next(&mut lanes)), ["1d", "2b"], "the user is back");
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_until_the_deadline_ends_them() {
        let mut lanes = lanes(&["1a"]);
        let mut tries = 0;
        let late = loop {
            let batch = next(&mut lanes);
            tries += 1;
            let late = lanes.contended(batch, Instant::now());
            let Some(due) = lanes.next_due() else { break late };
            tokio::time::sleep_until(due).await;
            // Timers tick in milliseconds: a pause that ends just short of the deadline may be
            // over just past it, and then the row leaves as the writer lets expired rows leave.
            let expired = lanes.take_out(|row| row.deadline <= Instant::now());
            if !expired.is_empty() {
                break expired;
            }
        };
        assert_eq!(late.len(), 1);
        assert!((20..80).contains(&tries), "{tries} tries in a second");
        assert!(lanes.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn rows_marked_alone_share_with_nobody() {
        let mut lanes = lanes(&["1a", "1b", "2a"]);
        let mut batch = next(&mut lanes);
        batch.rows[1].alone = true;
        lanes.give_back(batch);
        let sent: Vec<_> = (0..3).map(|_| names(&next(&mut lanes))).collect();
        assert_eq!(sent, [["1a"], ["1b"], ["2a"]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_apart_and_the_common_lane_take_turns() {
        let mut lanes = lanes(&["1a"]);
        for nth in 0..MAX_POSTGRES_BATCH_ROWS {
            lanes.push(row(1, &nth.to_string(), 1, Instant::now() + SECOND));
        }
        let batch = next(&mut lanes);
        lanes.contended(batch, Instant::now());
        tokio::time::sleep(SECOND / 2).await;
        push(&mut lanes, &["2a"]);
        let first = next(&mut lanes);
        lanes.settled(first.lane, Instant::now());
        let second = next(&mut lanes);
        assert_eq!((first.lane, second.lane), (Lane::Apart(UserId::new([1; 33])), Lane::Common));
    }
}
