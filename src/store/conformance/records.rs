//! Writing and reading single records.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Fixture, Quotas, assert_closed, new_write, soon, user};
use crate::{
    notify::Change,
    store::{PageLimit, StoreError, StoredRecord, WriteOutcome},
};

/// Bases that no stored record of a case has.
const FAR_BASES: [u64; 4] = [1 << 31, (1 << 63) - 1, 1 << 63, u64::MAX];

/// Semantics 1: a record that the store does not hold is accepted at any base.
pub async fn an_absent_record_is_accepted_at_any_base(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    for (nth, base) in [0, 1, 7].into_iter().chain(FAR_BASES).enumerate() {
        let revision = f.put(user(1), &format!("r{nth}"), base, b"x").await;
        assert_eq!(revision, nth as u64 + 1, "at base {base}");
    }
}

/// Semantics 1: a record that the store holds must carry its current revision.
pub async fn a_held_record_is_replaced_only_at_its_revision(
    start: impl AsyncFn(Quotas) -> Fixture,
) {
    let f = start(Quotas::default()).await;
    f.put(user(1), "other", 0, b"x").await;
    assert_eq!(f.put(user(1), "r", 0, b"one").await, 2);
    for base in [0, 1, 3].into_iter().chain(FAR_BASES) {
        let outcome = f.set(new_write(user(1), "r", base, b"two")).await;
        assert_eq!(outcome, WriteOutcome::Conflict, "at base {base}");
    }
    assert_eq!(f.put(user(1), "r", 2, b"two").await, 3);
    assert_eq!(f.put(user(1), "r", 3, b"three").await, 4);
}

/// Semantics 1: a conflict writes nothing and tells nobody.
pub async fn a_conflict_writes_and_announces_nothing(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    f.put(user(1), "r", 0, b"one").await;
    let mut write = new_write(user(1), "r", 9, b"two");
    write.schema_version = "2".to_owned();
    assert_eq!(f.set(write).await, WriteOutcome::Conflict);

    let kept = f.store.record(user(1), "r", soon()).await.unwrap();
    assert_eq!(kept, Some(stored("r", 1, "1.0.0", b"one")));
    assert_eq!(f.head(user(1)).await, 1);
    assert_eq!(f.feed.changes_of(user(1)).len(), 1);
}

/// Semantics 2: one counter per user, without gaps.
pub async fn revisions_have_no_gaps_across_conflicts(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    assert_eq!(f.put(user(1), "a", 0, b"x").await, 1);
    for _ in 0..5 {
        assert_eq!(f.set(new_write(user(1), "a", 0, b"y")).await, WriteOutcome::Conflict);
    }
    assert_eq!(f.put(user(1), "b", 0, b"x").await, 2);
    assert_eq!(f.put(user(1), "a", 1, b"y").await, 3);
    assert_eq!(f.head(user(1)).await, 3);
    assert_eq!(f.feed.announced_head(user(1)), 3);
}

/// Semantics 8: the same signed request again is answered as before, written and told once.
pub async fn a_repeat_is_answered_with_the_first_revision(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let create = new_write(user(1), "r", 0, b"one");
    assert_eq!(f.set(create.clone()).await, WriteOutcome::Written { revision: 1 });
    for _ in 0..3 {
        assert_eq!(f.set(create.clone()).await, WriteOutcome::Repeated { revision: 1 });
    }
    let replace = new_write(user(1), "r", 1, b"two");
    assert_eq!(f.set(replace.clone()).await, WriteOutcome::Written { revision: 2 });
    assert_eq!(f.set(replace).await, WriteOutcome::Repeated { revision: 2 });
    assert_eq!(f.head(user(1)).await, 2);
    assert_eq!(f.feed.changes_of(user(1)).len(), 2);
}

/// Semantics 8: the digest is compared before the revision.
pub async fn a_repeat_whose_base_became_its_revision_writes_nothing(
    start: impl AsyncFn(Quotas) -> Fixture,
) {
    let f = start(Quotas::default()).await;
    for nth in 0..4 {
        f.put(user(1), &format!("r{nth}"), 0, b"x").await;
    }
    let write = new_write(user(1), "late", 5, b"y");
    assert_eq!(f.set(write.clone()).await, WriteOutcome::Written { revision: 5 });
    assert_eq!(f.set(write).await, WriteOutcome::Repeated { revision: 5 });
    assert_eq!(f.head(user(1)).await, 5);
    assert_eq!(f.feed.announced_head(user(1)), 5);
}

/// Semantics 8: what counts is the record's current version, not the user's head.
pub async fn a_repeat_is_known_after_other_records_were_written(
    start: impl AsyncFn(Quotas) -> Fixture,
) {
    let f = start(Quotas::default()).await;
    let write = new_write(user(1), "r", 0, b"one");
    f.set(write.clone()).await;
    f.put(user(1), "other", 0, b"x").await;
    assert_eq!(f.set(write).await, WriteOutcome::Repeated { revision: 1 });
    assert_eq!(f.head(user(1)).await, 2);
}

/// Semantics 8: once overwritten, the old request is a conflict like any other.
pub async fn a_repeat_after_a_later_write_is_a_conflict(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let write = new_write(user(1), "r", 0, b"one");
    f.set(write.clone()).await;
    f.put(user(1), "r", 1, b"two").await;
    assert_eq!(f.set(write).await, WriteOutcome::Conflict);
    let kept = f.store.record(user(1), "r", soon()).await.unwrap();
    assert_eq!(kept, Some(stored("r", 2, "1.0.0", b"two")));
}

/// A digest is known only with its own user and record.
pub async fn a_digest_of_another_record_is_no_repeat(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let first = new_write(user(1), "a", 0, b"x");
    f.set(first.clone()).await;
    let mut second = new_write(user(1), "b", 0, b"y");
    second.digest = first.digest;
    assert_eq!(f.set(second).await, WriteOutcome::Written { revision: 2 });
    let mut third = first;
    third.user = user(2);
    assert_eq!(f.set(third).await, WriteOutcome::Written { revision: 1 });
}

/// Empty id and empty data are valid.
pub async fn empty_id_and_empty_data_round_trip(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let mut write = new_write(user(1), "", 0, b"");
    write.schema_version = String::new();
    assert_eq!(f.set(write.clone()).await, WriteOutcome::Written { revision: 1 });
    assert_eq!(f.set(write).await, WriteOutcome::Repeated { revision: 1 });

    let expected = stored("", 1, "", b"");
    assert_eq!(f.store.record(user(1), "", soon()).await.unwrap(), Some(expected.clone()));
    let page = f.store.list_changes(user(1), 0, PageLimit::WIRE, soon()).await.unwrap();
    assert_eq!(page.records, [expected]);
    assert_eq!(f.put(user(1), "", 1, b"full").await, 2);
}

/// The largest of everything, with every byte value in the data.
pub async fn the_largest_record_round_trips(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let data: Vec<u8> = (0..=255).cycle().take(crate::limits::MAX_RECORD_DATA_BYTES).collect();
    let ascii_id = "i".repeat(crate::limits::MAX_RECORD_ID_BYTES);
    let wide_id = "🦀".repeat(crate::limits::MAX_RECORD_ID_BYTES / 4);
    for (nth, id) in [ascii_id, wide_id].iter().enumerate() {
        let mut write = new_write(user(1), id, 0, &data);
        write.schema_version = "v".repeat(crate::limits::MAX_SCHEMA_VERSION_BYTES);
        let revision = nth as u64 + 1;
        let expected = stored(id, revision, &write.schema_version, &data);
        assert_eq!(f.set(write).await, WriteOutcome::Written { revision });
        let read = f.store.record(user(1), id, soon()).await.unwrap();
        assert!(read == Some(expected), "record {nth} came back changed");
    }
    let page = f.store.list_changes(user(1), 0, PageLimit::WIRE, soon()).await.unwrap();
    assert_eq!(page.records.len(), 2);
    assert!(page.records.iter().all(|record| record.data == data));
}

/// No collation folds case, forms of one letter, or blanks.
pub async fn ids_are_compared_byte_by_byte(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let ids = ["a", "A", "a ", " a", "\u{e9}", "e\u{301}", "'", "%", "\\", "a\n"];
    for (nth, id) in ids.iter().enumerate() {
        assert_eq!(f.put(user(1), id, 0, id.as_bytes()).await, nth as u64 + 1);
    }
    for id in ids {
        let record = f.store.record(user(1), id, soon()).await.unwrap().unwrap();
        assert_eq!(record.data, id.as_bytes());
    }
}

/// Nothing of a user shows with another.
pub async fn users_do_not_see_each_other(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    f.put(user(1), "r", 0, b"one").await;
    assert_eq!(f.store.record(user(2), "r", soon()).await.unwrap(), None);
    let page = f.store.list_changes(user(2), 0, PageLimit::WIRE, soon()).await.unwrap();
    assert_eq!((page.records.len(), page.head, page.has_more), (0, 0, false));
    assert_eq!(f.put(user(2), "r", 0, b"two").await, 1);
    let first = f.store.record(user(1), "r", soon()).await.unwrap().unwrap();
    assert_eq!(first.data, Bytes::from_static(b"one"));
}

/// Semantics 4: each accepted write is told with its writer's name, before the writer is
/// answered.
pub async fn each_write_is_announced_before_its_answer(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let names = [Some("one"), Some("two"), None, Some("two"), Some("")];
    for (nth, name) in names.into_iter().enumerate() {
        let revision = nth as u64 + 1;
        let mut write = new_write(user(1), "r", revision - 1, b"x");
        write.client_id = name.map(Arc::from);
        let told =
            Change { user: user(1), from: revision, to: revision, client_id: name.map(Arc::from) };
        assert_eq!(f.set(write.clone()).await, WriteOutcome::Written { revision });
        assert_eq!(f.feed.changes_of(user(1)).last(), Some(&told));
        f.set(write).await;
        assert_eq!(f.feed.changes_of(user(1)).len(), nth + 1, "a repeat was announced");
    }
}

/// Heads come in the order asked for.
pub async fn heads_answer_in_order_with_zero_for_unknown(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    f.put(user(3), "a", 0, b"x").await;
    f.put(user(1), "a", 0, b"x").await;
    f.put(user(1), "b", 0, b"x").await;
    let asked = [user(1), user(2), user(3), user(1)];
    assert_eq!(f.store.heads(&asked, soon()).await.unwrap(), [2, 0, 1, 2]);
    assert_eq!(f.store.heads(&[], soon()).await.unwrap(), [0; 0]);
    let many: Vec<_> = (0..2_000).map(user).collect();
    let heads = f.store.heads(&many, soon()).await.unwrap();
    assert_eq!(heads.len(), many.len());
    assert_eq!((heads[1], heads[3], heads.iter().sum::<u64>()), (2, 1, 3));
}

/// Who comes too late is told so, and nothing hangs.
pub async fn a_passed_deadline_is_answered_so(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let past = Instant::now();
    let late = f.store.set_record(new_write(user(1), "r", 0, b"x"), past).await;
    assert_eq!(late, Err(StoreError::DeadlineExceeded));
    let late = f.store.list_changes(user(1), 0, PageLimit::WIRE, past).await;
    assert_eq!(late, Err(StoreError::DeadlineExceeded));
}

/// The status is the database's own word.
pub async fn the_status_tells_schema_and_time(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let before = f.store.status(soon()).await.unwrap();
    assert!(before.schema_version >= 1);
    assert!(before.database_time_ms > 0);
    f.wait_ms(20).await;
    let after = f.store.status(soon()).await.unwrap();
    assert!(after.database_time_ms >= before.database_time_ms + 20);
}

/// A closed store refuses at once; closing twice is harmless.
pub async fn a_closed_store_is_unavailable(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    f.put(user(1), "r", 0, b"x").await;
    f.store.close().await;
    assert_closed(&f.store).await;
    f.store.close().await;
}

fn stored(id: &str, revision: u64, schema_version: &str, data: &[u8]) -> StoredRecord {
    StoredRecord {
        id: id.to_owned(),
        revision,
        schema_version: schema_version.to_owned(),
        data: Bytes::copy_from_slice(data),
    }
}
