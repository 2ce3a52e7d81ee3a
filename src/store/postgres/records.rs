//! Reads records, pages of changes and heads: single statements outside SERIALIZABLE, whose read
//! locks would abort writers.

use std::collections::HashMap;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_postgres::{Row, types::Type};

use super::{bigint, number, pool::Lender, text_error};
use crate::{
    limits::RECORD_OVERHEAD_BYTES,
    store::{Page, PageLimit, StoreError, StoredRecord, UserId},
};

const RECORD: &str = "SELECT id, revision, schema_version, data FROM data_sync.records \
                      WHERE user_id = $1 AND id = $2";

const LIST_CHANGES: &str = "SELECT id, revision, schema_version, data, head, more \
                            FROM data_sync.list_changes_v1($1, $2, $3, $4, $5)";

const HEADS: &str = "SELECT user_id, revision FROM data_sync.users WHERE user_id = ANY($1)";

/// One record, if the user holds it.
pub(super) async fn record(
    lender: &Lender,
    user: UserId,
    id: &str,
    deadline: Instant,
) -> Result<Option<StoredRecord>, StoreError> {
    let key = user.as_bytes().as_slice();
    let rows = lender.read(RECORD, &[(&key, Type::BYTEA), (&id, Type::TEXT)], deadline).await?;
    rows.first().map(stored).transpose()
}

/// One page and the head, from one snapshot; the cut is made by the database.
pub(super) async fn list_changes(
    lender: &Lender,
    user: UserId,
    since: u64,
    limit: PageLimit,
    deadline: Instant,
) -> Result<Page, StoreError> {
    let key = user.as_bytes().as_slice();
    let since = bigint(since);
    // One more than a page is read, to know of more: the sum must stay a number.
    let most = bigint(limit.max_records).min(i64::MAX - 1);
    let bytes = bigint(limit.max_bytes);
    let overhead = bigint(RECORD_OVERHEAD_BYTES);
    let rows = lender
        .read(
            LIST_CHANGES,
            &[
                (&key, Type::BYTEA),
                (&since, Type::INT8),
                (&most, Type::INT8),
                (&bytes, Type::INT8),
                (&overhead, Type::INT8),
            ],
            deadline,
        )
        .await?;
    page(&rows)
}

/// The page that the rows of one list make.
pub(super) fn page(rows: &[Row]) -> Result<Page, StoreError> {
    let Some(last) = rows.last() else {
        return Err(StoreError::Internal("a page came without its head".to_owned()));
    };
    let head = number(last, 4)?;
    if last.try_get::<_, Option<&str>>(0).map_err(|error| text_error(&error))?.is_none() {
        return Ok(Page { records: Vec::new(), head, has_more: false });
    }
    let has_more = last.try_get(5).map_err(|error| text_error(&error))?;
    let records = rows.iter().map(stored).collect::<Result<_, _>>()?;
    Ok(Page { records, head, has_more })
}

/// The heads of `users`, in their order.
pub(super) async fn heads(
    lender: &Lender,
    users: &[UserId],
    deadline: Instant,
) -> Result<Vec<u64>, StoreError> {
    let keys: Vec<&[u8]> = users.iter().map(|user| user.as_bytes().as_slice()).collect();
    let rows = lender.read(HEADS, &[(&keys, Type::BYTEA_ARRAY)], deadline).await?;
    let mut heads = HashMap::with_capacity(rows.len());
    for row in &rows {
        let key: &[u8] = row.try_get(0).map_err(|error| text_error(&error))?;
        heads.insert(key, number(row, 1)?);
    }
    Ok(keys.iter().map(|key| heads.get(key).copied().unwrap_or_default()).collect())
}

fn stored(row: &Row) -> Result<StoredRecord, StoreError> {
    let data: &[u8] = row.try_get(3).map_err(|error| text_error(&error))?;
    Ok(StoredRecord {
        id: row.try_get(0).map_err(|error| text_error(&error))?,
        revision: number(row, 1)?,
        schema_version: row.try_get(2).map_err(|error| text_error(&error))?,
        data: Bytes::copy_from_slice(data),
    })
}
