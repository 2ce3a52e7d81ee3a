//! Takes, releases and looks up locks.
//!
//! READ COMMITTED, and an advisory lock per user inside the call: at SERIALIZABLE the snapshot
//! would be older than the wait and the call would fail whenever it had waited.

use std::{sync::Arc, time::Duration};

use prometheus::{IntCounter, IntCounterVec};
use tokio::time::{Instant, sleep};
use tokio_postgres::{Row, types::Type};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    bigint,
    error::Fault,
    grouped::{Answer, Grouped, Kind},
    number,
    pool::Lender,
    text_error,
    transaction::{self, Ended, Parameter},
    writer::jittered,
};
use crate::{
    limits::{
        CONTENTION_BACKOFF, GROUPED_LOCK_PATIENCE, GROUPED_LOCK_TIMEOUT, MAX_CONNECTIONS_TRIED,
        POSTGRES_LOCK_TIMEOUT,
    },
    store::{LockAction, LockOutcome, LockRequest, StoreError, UserId},
    tasks::Tasks,
};

const SET_LOCK: &str =
    "SELECT result, token, expires_ms FROM data_sync.set_lock_v1($1, $2, $3, $4, $5, $6)";

/// One after the other, in their order: each is called for a row of the left side.
const SET_LOCKS: &str = "SELECT s.result, s.token, s.expires_ms \
     FROM unnest($1, $2, $3, $4, $5) WITH ORDINALITY \
              AS asked (user_id, name, instance, exclusive, ttl_ms, place) \
     CROSS JOIN LATERAL data_sync.set_lock_v1(asked.user_id, asked.name, asked.instance, \
                                              asked.exclusive, asked.ttl_ms, $6) s \
     ORDER BY asked.place";

const ARE_LOCKED: &str = "SELECT data_sync.is_locked_v1(asked.user_id, asked.name) \
     FROM unnest($1, $2) WITH ORDINALITY AS asked (user_id, name, place) \
     ORDER BY asked.place";

/// Takes, releases and looks up locks.
#[derive(Debug)]
pub(super) struct Locks {
    together: Grouped<SetLocks>,
    alone: SetLock,
    lookups: Grouped<LookUps>,
}

impl Locks {
    /// Starts what makes calls together; it ends with `closed`.
    pub(super) fn start(
        statement_timeout: Duration,
        max_locks: Option<u64>,
        retries: IntCounterVec,
        lender: &Arc<Lender>,
        tasks: &Tasks,
        closed: &CancellationToken,
    ) -> Self {
        let max_locks = super::bound(max_locks);
        let begin = |lock| transaction::begin("READ COMMITTED", statement_timeout, lock);
        let together = SetLocks {
            begin: begin(GROUPED_LOCK_TIMEOUT),
            max_locks,
            splits: retries.with_label_values(&["set_lock", "split"]),
        };
        let alone = SetLock {
            begin: begin(POSTGRES_LOCK_TIMEOUT),
            limit: statement_timeout,
            max_locks,
            retries,
        };
        Self {
            together: Grouped::start(together, lender, tasks, closed),
            alone,
            lookups: Grouped::start(LookUps, lender, tasks, closed),
        }
    }

    /// Takes or releases one lock. Sent again where the outcome is unknown: taking anew as the
    /// holder and releasing twice change nothing.
    pub(super) async fn set(
        &self,
        lender: &Lender,
        request: &LockRequest,
        deadline: Instant,
    ) -> Result<LockOutcome, StoreError> {
        match self.together.make(request.clone(), deadline).await? {
            Some(outcome) => Ok(outcome),
            None => self.alone.set(lender, request, deadline).await,
        }
    }

    /// Whether anybody holds the lock.
    pub(super) async fn is_locked(
        &self,
        user: UserId,
        name: &str,
        deadline: Instant,
    ) -> Result<bool, StoreError> {
        let is_locked = self.lookups.make((user, name.to_owned()), deadline).await?;
        is_locked.ok_or_else(unanswered)
    }
}

/// Takes and releases locks of many users in one transaction. Whatever goes wrong, each is done
/// alone then.
#[derive(Debug)]
struct SetLocks {
    begin: String,
    max_locks: i64,
    splits: IntCounter,
}

impl Kind for SetLocks {
    type Call = LockRequest;
    type Answer = LockOutcome;

    const TASK: &'static str = "postgres locks";
    const PATIENCE: Option<Duration> = Some(GROUPED_LOCK_PATIENCE);

    async fn make(
        &self,
        lender: &Lender,
        lent_by: Instant,
        requests: &[LockRequest],
    ) -> Result<Vec<Answer<LockOutcome>>, StoreError> {
        // Ascending: no two groups wait for each other.
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by_key(|&place| requests[place].user);
        let sorted = || order.iter().map(|&place| &requests[place]);
        let users: Vec<&[u8]> = sorted().map(|lock| lock.user.as_bytes().as_slice()).collect();
        let names: Vec<&str> = sorted().map(|lock| lock.name.as_str()).collect();
        let instances: Vec<Uuid> = sorted().map(|lock| lock.instance).collect();
        let (exclusive, ttl_ms): (Vec<bool>, Vec<Option<i64>>) =
            sorted().map(|lock| columns(lock.action)).unzip();
        let parameters: [Parameter<'_>; 6] = [
            (&users, Type::BYTEA_ARRAY),
            (&names, Type::TEXT_ARRAY),
            (&instances, Type::UUID_ARRAY),
            (&exclusive, Type::BOOL_ARRAY),
            (&ttl_ms, Type::INT8_ARRAY),
            (&self.max_locks, Type::INT8),
        ];
        let mut answers: Vec<Answer<LockOutcome>> = vec![Ok(None); requests.len()];
        match lender.transact_for_many(lent_by, &self.begin, SET_LOCKS, &parameters).await? {
            Ended::Committed(rows) if rows.len() == requests.len() => {
                for (row, place) in rows.iter().zip(order) {
                    answers[place] = outcome(row).map(Some);
                }
            }
            Ended::Committed(_) => return Err(unanswered()),
            Ended::RolledBack(_) | Ended::Unknown(_) => self.splits.inc(),
        }
        Ok(answers)
    }
}

/// Looks up locks of many users in one statement.
#[derive(Debug)]
struct LookUps;

impl Kind for LookUps {
    type Call = (UserId, String);
    type Answer = bool;

    const TASK: &'static str = "postgres lock look-ups";
    const PATIENCE: Option<Duration> = None;

    async fn make(
        &self,
        lender: &Lender,
        lent_by: Instant,
        asked: &[(UserId, String)],
    ) -> Result<Vec<Answer<bool>>, StoreError> {
        let users: Vec<&[u8]> = asked.iter().map(|(user, _)| user.as_bytes().as_slice()).collect();
        let names: Vec<&str> = asked.iter().map(|(_, name)| name.as_str()).collect();
        let parameters: [Parameter<'_>; 2] =
            [(&users, Type::BYTEA_ARRAY), (&names, Type::TEXT_ARRAY)];
        let rows = lender.read_for_many(lent_by, ARE_LOCKED, &parameters).await?;
        if rows.len() != asked.len() {
            return Err(unanswered());
        }
        let is_locked = |row: &Row| row.try_get(0).map(Some).map_err(|error| text_error(&error));
        Ok(rows.iter().map(is_locked).collect())
    }
}

/// Takes and releases locks one by one.
#[derive(Debug)]
struct SetLock {
    begin: String,
    limit: Duration,
    max_locks: i64,
    retries: IntCounterVec,
}

impl SetLock {
    async fn set(
        &self,
        lender: &Lender,
        request: &LockRequest,
        deadline: Instant,
    ) -> Result<LockOutcome, StoreError> {
        let (exclusive, ttl_ms) = columns(request.action);
        let key = request.user.as_bytes().as_slice();
        let parameters: [Parameter<'_>; 6] = [
            (&key, Type::BYTEA),
            (&request.name, Type::TEXT),
            (&request.instance, Type::UUID),
            (&exclusive, Type::BOOL),
            (&ttl_ms, Type::INT8),
            (&self.max_locks, Type::INT8),
        ];
        let mut broken = 0;
        let mut pause = CONTENTION_BACKOFF.0;
        loop {
            let reason = match lender
                .transact(&self.begin, SET_LOCK, &parameters, deadline, self.limit)
                .await?
            {
                Ended::Committed(rows) => {
                    return rows.first().ok_or_else(unanswered).and_then(outcome);
                }
                Ended::RolledBack(Fault::Contended(reason)) => {
                    if Instant::now() + pause >= deadline {
                        return Err(StoreError::Contended);
                    }
                    sleep(jittered(pause)).await;
                    pause = CONTENTION_BACKOFF.1.min(pause * 2);
                    reason
                }
                Ended::RolledBack(Fault::Other(error)) => return Err(error),
                Ended::Unknown(text) => {
                    broken += 1;
                    if deadline <= Instant::now() {
                        return Err(StoreError::DeadlineExceeded);
                    }
                    if broken == MAX_CONNECTIONS_TRIED {
                        return Err(StoreError::Unavailable(text));
                    }
                    "connection"
                }
            };
            self.retries.with_label_values(&["set_lock", reason]).inc();
        }
    }
}

/// Whether a lock is taken as exclusive, and for how long; without an end it is released.
fn columns(action: LockAction) -> (bool, Option<i64>) {
    match action {
        LockAction::Acquire { exclusive, ttl_ms } => (exclusive, Some(bigint(ttl_ms))),
        LockAction::Release => (false, None),
    }
}

fn outcome(row: &Row) -> Result<LockOutcome, StoreError> {
    let result: i16 = row.try_get(0).map_err(|error| text_error(&error))?;
    Ok(match result {
        0 => {
            LockOutcome::Acquired { fencing_token: number(row, 1)?, expires_at_ms: number(row, 2)? }
        }
        1 => LockOutcome::Released,
        2 => LockOutcome::Held,
        3 => LockOutcome::OverQuota,
        other => return Err(StoreError::Internal(format!("set_lock answered {other}"))),
    })
}

fn unanswered() -> StoreError {
    StoreError::Internal("a call came without an answer".to_owned())
}
