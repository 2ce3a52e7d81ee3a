//! Takes, releases and looks up locks.
//!
//! READ COMMITTED, and an advisory lock per user inside the call: at SERIALIZABLE the snapshot
//! would be older than the wait and the call would fail whenever it had waited.

use std::time::Duration;

use prometheus::IntCounterVec;
use tokio::time::{Instant, sleep};
use tokio_postgres::{Row, types::Type};

use super::{
    error::Fault,
    number,
    pool::Lender,
    text_error,
    transaction::{self, Ended, Parameter},
    writer::jittered,
};
use crate::{
    limits::{CONTENTION_BACKOFF, MAX_CONNECTIONS_TRIED, POSTGRES_LOCK_TIMEOUT},
    store::{LockAction, LockOutcome, LockRequest, StoreError, UserId},
};

const SET_LOCK: &str =
    "SELECT result, token, expires_ms FROM data_sync.set_lock_v1($1, $2, $3, $4, $5, $6)";

const IS_LOCKED: &str = "SELECT data_sync.is_locked_v1($1, $2)";

/// Takes and releases locks.
#[derive(Debug)]
pub(super) struct Locks {
    begin: String,
    limit: Duration,
    max_locks: i64,
    retries: IntCounterVec,
}

impl Locks {
    pub(super) fn new(
        statement_timeout: Duration,
        max_locks: Option<u64>,
        retries: IntCounterVec,
    ) -> Self {
        Self {
            begin: transaction::begin("READ COMMITTED", statement_timeout, POSTGRES_LOCK_TIMEOUT),
            limit: statement_timeout,
            max_locks: super::bound(max_locks),
            retries,
        }
    }

    /// Takes or releases one lock. Sent again where the connection broke: taking anew as the
    /// holder and releasing twice change nothing.
    pub(super) async fn set(
        &self,
        lender: &Lender,
        request: &LockRequest,
        deadline: Instant,
    ) -> Result<LockOutcome, StoreError> {
        let (exclusive, ttl_ms) = match request.action {
            LockAction::Acquire { exclusive, ttl_ms } => {
                (exclusive, Some(i64::try_from(ttl_ms).unwrap_or(i64::MAX)))
            }
            LockAction::Release => (false, None),
        };
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
                Ended::Committed(rows) => return outcome(&rows),
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

/// Whether anybody holds the lock.
pub(super) async fn is_locked(
    lender: &Lender,
    user: UserId,
    name: &str,
    deadline: Instant,
) -> Result<bool, StoreError> {
    let key = user.as_bytes().as_slice();
    let rows =
        lender.read(IS_LOCKED, &[(&key, Type::BYTEA), (&name, Type::TEXT)], deadline).await?;
    first(&rows)?.try_get(0).map_err(|error| text_error(&error))
}

fn outcome(rows: &[Row]) -> Result<LockOutcome, StoreError> {
    let row = first(rows)?;
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

fn first(rows: &[Row]) -> Result<&Row, StoreError> {
    rows.first().ok_or_else(|| StoreError::Internal("a call came without an answer".to_owned()))
}
