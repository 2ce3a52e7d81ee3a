//! Short pages of many users in one statement. A page that is longer than a share of a group is
//! read alone instead.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::{Row, types::Type};

use super::{
    bigint,
    grouped::{Answer, Kind},
    pool::Lender,
    records::page,
    text_error,
    transaction::Parameter,
};
use crate::{
    limits::{BATCHED_PAGE_BYTES, BATCHED_PAGE_RECORDS, RECORD_OVERHEAD_BYTES},
    store::{Page, PageLimit, StoreError, UserId},
};

/// One snapshot for the whole group, so also for each page and its head.
const LIST_MANY: &str = "SELECT c.id, c.revision, c.schema_version, c.data, c.head, c.more, asked.place \
     FROM unnest($1, $2, $3, $4) WITH ORDINALITY \
              AS asked (user_id, since, max_records, max_bytes, place) \
     CROSS JOIN LATERAL data_sync.list_changes_v1(asked.user_id, asked.since, asked.max_records, \
                                                  asked.max_bytes, $5) c \
     ORDER BY asked.place, c.revision";

/// A page and the head.
#[derive(Debug)]
pub(super) struct List {
    pub(super) user: UserId,
    pub(super) since: u64,
    pub(super) limit: PageLimit,
}

impl List {
    /// What of the caller's limit a group has room for.
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

/// Reads short pages.
#[derive(Debug)]
pub(super) struct Lists;

impl Kind for Lists {
    type Call = List;
    type Answer = Page;

    const TASK: &'static str = "postgres lists";
    const PATIENCE: Option<Duration> = None;

    async fn make(
        &self,
        lender: &Lender,
        lent_by: Instant,
        lists: &[List],
    ) -> Result<Vec<Answer<Page>>, StoreError> {
        let pages = read(lender, lent_by, lists).await?;
        let answer = |(list, rows): (&List, &Vec<Row>)| {
            page(rows).map(|page| (!list.is_cut_short(&page)).then_some(page))
        };
        Ok(lists.iter().zip(&pages).map(answer).collect())
    }
}

/// The rows of each list, in their order.
async fn read(
    lender: &Lender,
    lent_by: Instant,
    lists: &[List],
) -> Result<Vec<Vec<Row>>, StoreError> {
    let users: Vec<&[u8]> = lists.iter().map(|list| list.user.as_bytes().as_slice()).collect();
    let since: Vec<i64> = lists.iter().map(|list| bigint(list.since)).collect();
    let most: Vec<i64> = lists.iter().map(|list| bigint(list.share().max_records)).collect();
    let bytes: Vec<i64> = lists.iter().map(|list| bigint(list.share().max_bytes)).collect();
    let overhead = bigint(RECORD_OVERHEAD_BYTES);
    let parameters: [Parameter<'_>; 5] = [
        (&users, Type::BYTEA_ARRAY),
        (&since, Type::INT8_ARRAY),
        (&most, Type::INT8_ARRAY),
        (&bytes, Type::INT8_ARRAY),
        (&overhead, Type::INT8),
    ];
    let rows = lender.read_for_many(lent_by, LIST_MANY, &parameters).await?;
    let mut pages: Vec<Vec<Row>> = lists.iter().map(|_| Vec::new()).collect();
    for row in rows {
        let place: i64 = row.try_get(6).map_err(|error| text_error(&error))?;
        let index = usize::try_from(place).ok().and_then(|place| place.checked_sub(1));
        let page = index.and_then(|index| pages.get_mut(index)).ok_or_else(|| {
            StoreError::Internal(format!("a list of {} was answered at {place}", lists.len()))
        })?;
        page.push(row);
    }
    Ok(pages)
}
