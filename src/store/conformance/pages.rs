//! Listing changes.

use std::collections::BTreeSet;

use super::{Fixture, Quotas, new_write, soon, user};
use crate::{
    limits::{MAX_RECORD_DATA_BYTES, RECORD_OVERHEAD_BYTES},
    store::{PageLimit, StoredRecord, WriteOutcome},
};

/// Bytes that one record of these cases counts: a two-byte id, "1.0.0", ten bytes of data.
const RECORD_COST: usize = 2 + 5 + 10 + RECORD_OVERHEAD_BYTES;

async fn with_ten_records(start: impl AsyncFn(Quotas) -> Fixture) -> Fixture {
    let f = start(Quotas::default()).await;
    for nth in 0..10 {
        f.put(user(1), &format!("r{nth}"), 0, &[nth; 10]).await;
    }
    f
}

fn revisions(records: &[StoredRecord]) -> Vec<u64> {
    records.iter().map(|record| record.revision).collect()
}

/// A record is listed once, with its latest version, at its latest revision.
pub async fn changes_are_listed_ascending_and_once_per_record(
    start: impl AsyncFn(Quotas) -> Fixture,
) {
    let f = start(Quotas::default()).await;
    f.put(user(1), "z", 0, b"z1").await;
    f.put(user(1), "a", 0, b"a1").await;
    f.put(user(1), "m", 0, b"m1").await;
    f.put(user(1), "z", 1, b"z2").await;
    let page = f.store.list_changes(user(1), 0, PageLimit::WIRE, soon()).await.unwrap();
    let listed: Vec<_> =
        page.records.iter().map(|r| (r.revision, r.id.as_str(), r.data.as_ref())).collect();
    assert_eq!(listed, [(2, "a", &b"a1"[..]), (3, "m", b"m1"), (4, "z", b"z2")]);
    assert_eq!((page.head, page.has_more), (4, false));

    let page = f.store.list_changes(user(1), 2, PageLimit::WIRE, soon()).await.unwrap();
    assert_eq!(revisions(&page.records), [3, 4]);
}

/// Semantics 2: a `since` ahead of the head lists nothing and is no error.
pub async fn a_since_at_or_above_the_head_lists_nothing(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = with_ten_records(start).await;
    for since in [10, 11, 1 << 31, (1 << 63) - 1, 1 << 63, u64::MAX] {
        let page = f.store.list_changes(user(1), since, PageLimit::WIRE, soon()).await.unwrap();
        assert_eq!((page.records.len(), page.head, page.has_more), (0, 10, false), "{since}");
    }
}

/// The cut at a number of records.
pub async fn a_page_is_cut_at_the_number_of_records(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = with_ten_records(start).await;
    for (max_records, expected, has_more) in
        [(1, 1, true), (9, 9, true), (10, 10, false), (11, 10, false)]
    {
        let limit = PageLimit { max_records, max_bytes: usize::MAX };
        let page = f.store.list_changes(user(1), 0, limit, soon()).await.unwrap();
        assert_eq!((page.records.len(), page.has_more), (expected, has_more), "{max_records}");
        assert_eq!(page.head, 10);
    }
}

/// The cut at encoded bytes, to the byte.
pub async fn a_page_is_cut_at_its_bytes(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = with_ten_records(start).await;
    for (max_bytes, expected, has_more) in [
        (2 * RECORD_COST, 2, true),
        (3 * RECORD_COST - 1, 2, true),
        (3 * RECORD_COST, 3, true),
        (10 * RECORD_COST - 1, 9, true),
        (10 * RECORD_COST, 10, false),
    ] {
        let limit = PageLimit { max_records: 1_000, max_bytes };
        let page = f.store.list_changes(user(1), 0, limit, soon()).await.unwrap();
        assert_eq!((page.records.len(), page.has_more), (expected, has_more), "{max_bytes}");
        assert_eq!(page.head, 10);
    }
}

/// A limit smaller than a record still lets the reader advance.
pub async fn a_page_holds_at_least_one_record(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = with_ten_records(start).await;
    let limit = PageLimit { max_records: 1_000, max_bytes: 1 };
    let page = f.store.list_changes(user(1), 0, limit, soon()).await.unwrap();
    assert_eq!((revisions(&page.records), page.has_more), (vec![1], true));
    let page = f.store.list_changes(user(1), 9, limit, soon()).await.unwrap();
    assert_eq!((revisions(&page.records), page.has_more), (vec![10], false));
}

/// Semantics 6: 1,000 records, and 3.5 MiB.
pub async fn the_wire_limit_cuts_large_backlogs(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let writes = (0..1_003).map(|nth| f.set(new_write(user(1), &format!("{nth}"), 0, b"x")));
    futures_util::future::join_all(writes).await;
    let page = f.store.list_changes(user(1), 0, PageLimit::WIRE, soon()).await.unwrap();
    assert_eq!((page.records.len(), page.head, page.has_more), (1_000, 1_003, true));
    let page = f.store.list_changes(user(1), 1_000, PageLimit::WIRE, soon()).await.unwrap();
    assert_eq!((page.records.len(), page.head, page.has_more), (3, 1_003, false));

    let large = vec![7; MAX_RECORD_DATA_BYTES];
    for nth in 0..60 {
        f.put(user(2), &format!("{nth:02}"), 0, &large).await;
    }
    let cost = 2 + 5 + MAX_RECORD_DATA_BYTES + RECORD_OVERHEAD_BYTES;
    let page = f.store.list_changes(user(2), 0, PageLimit::WIRE, soon()).await.unwrap();
    assert_eq!(page.records.len(), PageLimit::WIRE.max_bytes / cost);
    assert!(page.has_more);
}

/// Paging by the last revision seen finds every record once.
pub async fn paging_neither_skips_nor_repeats(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    for nth in 0_u64..40 {
        let size = usize::try_from(nth * 37 % 101).unwrap();
        f.put(user(1), &format!("{nth}"), 0, &vec![1; size]).await;
    }
    for nth in [3_u64, 17, 30] {
        f.put(user(1), &format!("{nth}"), nth + 1, b"again").await;
    }
    let expected: Vec<u64> = (1..=43).filter(|r| ![4, 18, 31].contains(r)).collect();
    for limit in [
        PageLimit { max_records: 1, max_bytes: usize::MAX },
        PageLimit { max_records: 7, max_bytes: usize::MAX },
        PageLimit { max_records: 1_000, max_bytes: 150 },
        PageLimit { max_records: 3, max_bytes: 333 },
        PageLimit::WIRE,
    ] {
        let records = f.list_all(user(1), limit).await;
        assert_eq!(revisions(&records), expected, "{limit:?}");
        let ids: BTreeSet<_> = records.iter().map(|r| &r.id).collect();
        assert_eq!(ids.len(), records.len());
    }
}

/// Page and head agree while others write: nothing at or below the head is missing.
pub async fn pages_beside_writes_are_snapshots(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let writer = async {
        for nth in 0..150 {
            f.put(user(1), &format!("{nth}"), 0, b"x").await;
        }
    };
    let reader = async {
        loop {
            let page = f.store.list_changes(user(1), 0, PageLimit::WIRE, soon()).await.unwrap();
            let whole: Vec<u64> = (1..=page.head).collect();
            assert_eq!(revisions(&page.records), whole);
            assert!(!page.has_more);
            if page.head == 150 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(writer, reader);
    let again = f.set(new_write(user(1), "0", 0, b"y")).await;
    assert_eq!(again, WriteOutcome::Conflict);
}
