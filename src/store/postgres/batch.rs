//! One batch of writes as one call, and what its answer says row by row.

use std::time::Duration;

use tokio_postgres::{Client, Row, types::Type};

use super::{
    lanes::Queued,
    number, text_error,
    transaction::{self, Ended, Parameter},
};
use crate::{
    limits::{POSTGRES_ANSWER_GRACE, POSTGRES_LOCK_TIMEOUT},
    store::{Quota, Quotas, StoreError, WriteOutcome},
};

const SET_RECORDS: &str = "SELECT result, result_revision \
                           FROM data_sync.set_records_v2($1, $2, $3, $4, $5, $6, $7, $8)";

/// How batches are sent: the same for each of a store's.
#[derive(Debug)]
pub(super) struct Call {
    begin: String,
    limit: Duration,
    max_records: i64,
    max_bytes: i64,
}

impl Call {
    pub(super) fn new(statement_timeout: Duration, quotas: Quotas) -> Self {
        Self {
            begin: transaction::begin("SERIALIZABLE", statement_timeout, POSTGRES_LOCK_TIMEOUT),
            limit: statement_timeout + POSTGRES_ANSWER_GRACE,
            max_records: super::bound(quotas.max_records),
            max_bytes: super::bound(quotas.max_bytes),
        }
    }

    /// Sends one batch; `rows` are sorted by user.
    pub(super) async fn send(&self, client: &Client, rows: &[Queued]) -> Ended {
        let user_ids: Vec<&[u8]> =
            rows.iter().map(|r| r.write.user.as_bytes().as_slice()).collect();
        let ids: Vec<&str> = rows.iter().map(|r| r.write.id.as_str()).collect();
        let bases: Vec<i64> = rows.iter().map(|r| base(r.write.base_revision)).collect();
        let versions: Vec<&str> = rows.iter().map(|r| r.write.schema_version.as_str()).collect();
        let data: Vec<&[u8]> = rows.iter().map(|r| &*r.write.data).collect();
        let digests: Vec<&[u8]> = rows.iter().map(|r| r.write.digest.0.as_slice()).collect();
        let parameters: [Parameter<'_>; 8] = [
            (&user_ids, Type::BYTEA_ARRAY),
            (&ids, Type::TEXT_ARRAY),
            (&bases, Type::INT8_ARRAY),
            (&versions, Type::TEXT_ARRAY),
            (&data, Type::BYTEA_ARRAY),
            (&digests, Type::BYTEA_ARRAY),
            (&self.max_records, Type::INT8),
            (&self.max_bytes, Type::INT8),
        ];
        transaction::run(client, &self.begin, SET_RECORDS, &parameters, self.limit).await
    }
}

/// A base as the column holds revisions. What no record can have matches none.
fn base(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(-1)
}

/// Reads what became of `expected` rows, in the order they were sent.
pub(super) fn outcomes(rows: &[Row], expected: usize) -> Result<Vec<WriteOutcome>, StoreError> {
    if rows.len() != expected {
        return Err(StoreError::Internal(format!(
            "{expected} writes were answered by {} rows",
            rows.len()
        )));
    }
    rows.iter().map(outcome).collect()
}

fn outcome(row: &Row) -> Result<WriteOutcome, StoreError> {
    let result: i16 = row.try_get(0).map_err(|error| text_error(&error))?;
    let revision = number(row, 1)?;
    Ok(match result {
        0 => WriteOutcome::Written { revision },
        1 => WriteOutcome::Repeated { revision },
        2 => WriteOutcome::Conflict,
        3 => WriteOutcome::OverQuota(Quota::Records),
        4 => WriteOutcome::OverQuota(Quota::Bytes),
        other => return Err(StoreError::Internal(format!("set_records answered {other}"))),
    })
}
