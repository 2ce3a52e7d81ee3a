//! Moving whole users between stores.

use super::{Fixture, Quotas, instance, new_write, soon, user};
use crate::store::{
    PageLimit, Quota, RecordWrite, UserId, WriteOutcome,
    transfer::{
        Holdings, Totals, Transfer, TransferLock, TransferRecord, UserCounters, UserSummary,
    },
};

const LONG_MS: u64 = 300_000;

/// Copies everything, page by page, as the command does.
async fn copy(from: &dyn Transfer, to: &dyn Transfer) {
    to.raise_fencing_token(from.fencing_token().await.unwrap()).await.unwrap();
    for summary in all_users(from).await {
        let mut after = 0;
        loop {
            let records = from.records(summary.user, after).await.unwrap();
            let Some(last) = records.last() else { break };
            after = last.revision;
            to.put_records(summary.user, records).await.unwrap();
        }
        to.raise_head(summary.user, summary.head).await.unwrap();
    }
    to.put_locks(all_locks(from).await).await.unwrap();
}

async fn all_users(store: &dyn Transfer) -> Vec<UserSummary> {
    let mut users: Vec<UserSummary> = Vec::new();
    loop {
        let page = store.users(users.last().map(|u| u.user), 2).await.unwrap();
        if page.is_empty() {
            return users;
        }
        assert!(page.len() <= 2);
        users.extend(page);
    }
}

async fn all_locks(store: &dyn Transfer) -> Vec<TransferLock> {
    let mut locks: Vec<TransferLock> = Vec::new();
    loop {
        let after = locks.last().map(|l| (l.user, l.name.clone(), l.instance));
        let page = store.locks(after, 2).await.unwrap();
        if page.is_empty() {
            return locks;
        }
        assert!(page.len() <= 2);
        locks.extend(page);
    }
}

async fn all_records(store: &dyn Transfer, user: UserId) -> Vec<TransferRecord> {
    let mut records: Vec<TransferRecord> = Vec::new();
    loop {
        let after = records.last().map_or(0, |r| r.revision);
        let page = store.records(user, after).await.unwrap();
        if page.is_empty() {
            return records;
        }
        records.extend(page);
    }
}

/// Three users: one with odd records, one with more than a page, one with a lifted head only.
/// Answers a write of user 1 that is still current.
async fn fill(f: &Fixture) -> RecordWrite {
    f.put(user(1), "", 0, b"").await;
    f.put(user(1), "rewritten", 0, b"old").await;
    f.put(user(1), "rewritten", 2, b"new").await;
    let current = new_write(user(1), "current", 4, b"signed");
    assert_eq!(f.set(current.clone()).await, WriteOutcome::Written { revision: 4 });
    let writes = (0..1_100).map(|nth| f.set(new_write(user(2), &format!("{nth}"), 0, b"xy")));
    futures_util::future::join_all(writes).await;
    f.transfer.raise_head(user(3), 77).await.unwrap();
    for (number, name) in [(1, "a"), (2, "a"), (3, "b")] {
        f.take(user(1), name, instance(number), false, LONG_MS).await;
    }
    f.take(user(3), "c", instance(9), true, LONG_MS).await;
    current
}

async fn assert_same(one: &dyn Transfer, other: &dyn Transfer) {
    assert_eq!(one.totals().await.unwrap(), other.totals().await.unwrap());
    let users = all_users(one).await;
    assert_eq!(users, all_users(other).await);
    for summary in users {
        let records = all_records(one, summary.user).await;
        assert_eq!(records, all_records(other, summary.user).await);
    }
    assert_eq!(all_locks(one).await, all_locks(other).await);
}

/// Heads, records, digests, locks and the fencing token arrive as they were.
pub async fn a_move_keeps_everything(start: impl AsyncFn(Quotas) -> Fixture) {
    let source = start(Quotas::default()).await;
    let target = start(Quotas::default()).await;
    let current = fill(&source).await;
    let held = Totals { users: 3, records: 1_103, bytes: 9 + 2_200, locks: 4 };
    assert_eq!(source.transfer.totals().await.unwrap(), held);
    copy(&*source.transfer, &*target.transfer).await;
    assert_same(&*source.transfer, &*target.transfer).await;

    assert_eq!(target.set(current).await, WriteOutcome::Repeated { revision: 4 });
    assert_eq!(target.put(user(1), "next", 0, b"x").await, 5);
    assert_eq!(target.put(user(2), "next", 0, b"x").await, 1_101);
    let newest = source.transfer.fencing_token().await.unwrap();
    assert!(target.take(user(1), "new", instance(1), true, LONG_MS).await.0 > newest);
    assert!(target.is_locked(user(3), "c").await);
}

/// An interrupted move starts over and ends the same.
pub async fn putting_twice_is_as_once(start: impl AsyncFn(Quotas) -> Fixture) {
    let source = start(Quotas::default()).await;
    let target = start(Quotas::default()).await;
    fill(&source).await;
    copy(&*source.transfer, &*target.transfer).await;
    copy(&*source.transfer, &*target.transfer).await;
    assert_same(&*source.transfer, &*target.transfer).await;
}

/// Quotas hold to the byte after records were put, and put over.
pub async fn put_records_keep_the_counters_true(start: impl AsyncFn(Quotas) -> Fixture) {
    let quotas = Quotas { max_records: Some(3), max_bytes: Some(30), max_locks: None };
    let f = start(quotas).await;
    let record = |id: &str, revision, size: usize| TransferRecord {
        id: id.to_owned(),
        revision,
        schema_version: String::new(),
        data: vec![1; size].into(),
        digest: None,
    };
    let first = vec![record("a", 1, 25), record("b", 2, 1)];
    f.transfer.put_records(user(1), first).await.unwrap();
    let over = vec![record("a", 5, 9), record("b", 2, 1)];
    f.transfer.put_records(user(1), over).await.unwrap();
    let held = Totals { users: 1, records: 2, bytes: 10, locks: 0 };
    assert_eq!(f.transfer.totals().await.unwrap(), held);
    assert_eq!(f.head(user(1)).await, 5);

    let too_much = f.set(new_write(user(1), "c", 0, &[1; 21])).await;
    assert_eq!(too_much, WriteOutcome::OverQuota(Quota::Bytes));
    assert_eq!(f.put(user(1), "c", 0, &[1; 20]).await, 6);
    let too_many = f.set(new_write(user(1), "d", 0, b"")).await;
    assert_eq!(too_many, WriteOutcome::OverQuota(Quota::Records));
}

/// Writes, conflicts, repeats and puts leave counters that equal a recount.
pub async fn counters_equal_a_recount(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let current = fill(&f).await;
    assert_eq!(f.set(current).await, WriteOutcome::Repeated { revision: 4 });
    assert_eq!(f.set(new_write(user(1), "current", 1, b"xyz")).await, WriteOutcome::Conflict);
    let mut counters: Vec<UserCounters> = Vec::new();
    loop {
        let page = f.transfer.counters(counters.last().map(|c| c.user), 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 2);
        counters.extend(page);
    }
    let expected = [(1, 3, 9), (2, 1_100, 2_200), (3, 0, 0)].map(|(number, records, bytes)| {
        let held = Holdings { records, bytes };
        UserCounters { user: user(number), kept: held, real: held }
    });
    assert_eq!(counters, expected);
}

/// A head above every record is kept and never lowered.
pub async fn a_raised_head_is_kept_and_counted_on(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    f.put(user(1), "r", 0, b"x").await;
    f.transfer.raise_head(user(1), 40).await.unwrap();
    f.transfer.raise_head(user(1), 30).await.unwrap();
    assert_eq!(f.head(user(1)).await, 40);
    let page = f.store.list_changes(user(1), 0, PageLimit::WIRE, soon()).await.unwrap();
    assert_eq!((page.records.len(), page.head, page.has_more), (1, 40, false));
    assert_eq!(f.put(user(1), "r", 1, b"y").await, 41);
}

/// Tokens drawn later lie above the floor; a lower floor changes nothing.
pub async fn a_raised_fencing_token_is_a_floor(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    assert_eq!(f.transfer.fencing_token().await.unwrap(), 0);
    f.transfer.raise_fencing_token(1_000).await.unwrap();
    f.transfer.raise_fencing_token(500).await.unwrap();
    f.transfer.raise_fencing_token(0).await.unwrap();
    assert_eq!(f.transfer.fencing_token().await.unwrap(), 1_000);
    let (token, _) = f.take(user(1), "l", instance(1), true, LONG_MS).await;
    assert!(token > 1_000);
    assert_eq!(f.transfer.fencing_token().await.unwrap(), token);
}

/// Only live locks are counted and moved.
pub async fn expired_locks_do_not_move(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    f.take(user(1), "gone", instance(1), true, 100).await;
    f.take(user(1), "live", instance(1), true, LONG_MS).await;
    f.wait_ms(120).await;
    assert_eq!(f.transfer.totals().await.unwrap().locks, 1);
    let locks = all_locks(&*f.transfer).await;
    assert_eq!(locks.len(), 1);
    assert_eq!(locks[0].name, "live");
}
