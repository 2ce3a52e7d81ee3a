//! Quotas: exact, in any order and under any race.

use tokio::task::JoinSet;

use super::{Fixture, Quotas, instance, new_write, soon, user};
use crate::store::{
    LockAction, LockOutcome, LockRequest, PageLimit, Quota, WriteOutcome, transfer::TransferRecord,
};

const LONG_MS: u64 = 300_000;
/// A time to live that a case waits for, long enough for a few calls in between.
const SHORT_MS: u64 = 1_500;
const SHARED: LockAction = LockAction::Acquire { exclusive: false, ttl_ms: LONG_MS };

fn at_most_records(max_records: u64) -> Quotas {
    Quotas { max_records: Some(max_records), ..Quotas::default() }
}

fn at_most_bytes(max_bytes: u64) -> Quotas {
    Quotas { max_bytes: Some(max_bytes), ..Quotas::default() }
}

fn at_most_locks(max_locks: u64) -> Quotas {
    Quotas { max_locks: Some(max_locks), ..Quotas::default() }
}

/// New records up to the quota; replacing and repeating need no place.
pub async fn the_record_quota_is_exact(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(at_most_records(3)).await;
    for nth in 0..3 {
        f.put(user(1), &format!("r{nth}"), 0, b"x").await;
    }
    let refused = f.set(new_write(user(1), "r3", 0, b"x")).await;
    assert_eq!(refused, WriteOutcome::OverQuota(Quota::Records));
    assert_eq!(f.head(user(1)).await, 3);
    assert_eq!(f.feed.announced_head(user(1)), 3);
    let replace = new_write(user(1), "r1", 2, b"y");
    assert_eq!(f.set(replace.clone()).await, WriteOutcome::Written { revision: 4 });
    assert_eq!(f.set(replace).await, WriteOutcome::Repeated { revision: 4 });
}

/// Bytes of data, where a replaced record gives its old bytes back.
pub async fn the_byte_quota_counts_what_is_held(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(at_most_bytes(100)).await;
    let over = WriteOutcome::OverQuota(Quota::Bytes);
    f.put(user(1), "a", 0, &[1; 60]).await;
    assert_eq!(f.set(new_write(user(1), "b", 0, &[1; 41])).await, over);
    f.put(user(1), "b", 0, &[1; 40]).await;
    f.put(user(1), "empty", 0, b"").await;
    assert_eq!(f.set(new_write(user(1), "c", 0, &[1; 1])).await, over);
    assert_eq!(f.set(new_write(user(1), "a", 1, &[1; 61])).await, over);
    f.put(user(1), "a", 1, &[1; 50]).await;
    assert_eq!(f.set(new_write(user(1), "c", 0, &[1; 11])).await, over);
    f.put(user(1), "c", 0, &[1; 10]).await;
    f.put(user(1), "a", 4, &[2; 50]).await;
    assert_eq!(f.set(new_write(user(1), "a", 6, &[2; 51])).await, over);
    assert_eq!(f.feed.announced_head(user(1)), 6);
}

/// A lowered quota, or one passed by an import, forbids growth only.
pub async fn a_user_over_quota_may_still_shrink(start: impl AsyncFn(Quotas) -> Fixture) {
    let quotas = Quotas { max_records: Some(1), max_bytes: Some(10), max_locks: None };
    let f = start(quotas).await;
    let records = (1..=2).map(|revision| TransferRecord {
        id: format!("r{revision}"),
        revision,
        schema_version: String::new(),
        data: vec![1; 20].into(),
        digest: None,
    });
    f.transfer.put_records(user(1), records.collect()).await.unwrap();
    f.put(user(1), "r1", 1, &[1; 20]).await;
    f.put(user(1), "r1", 3, &[1; 5]).await;
    let grown = f.set(new_write(user(1), "r1", 4, &[1; 6])).await;
    assert_eq!(grown, WriteOutcome::OverQuota(Quota::Bytes));
    let another = f.set(new_write(user(1), "r3", 0, b"")).await;
    assert_eq!(another, WriteOutcome::OverQuota(Quota::Records));
}

/// A stale writer must merge first, whatever the quota says.
pub async fn a_conflict_is_told_before_a_quota(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(at_most_bytes(10)).await;
    f.put(user(1), "a", 0, &[1; 10]).await;
    assert_eq!(f.set(new_write(user(1), "a", 0, &[1; 20])).await, WriteOutcome::Conflict);
}

/// A lock takes a place per holder; renewal takes none; release and expiry give it back.
pub async fn the_lock_quota_counts_live_locks(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(at_most_locks(2)).await;
    f.take(user(1), "l", instance(1), false, LONG_MS).await;
    f.take(user(1), "l", instance(2), false, SHORT_MS).await;
    assert_eq!(f.lock(user(1), "l", instance(3), SHARED).await, LockOutcome::OverQuota);
    assert_eq!(f.lock(user(1), "m", instance(1), SHARED).await, LockOutcome::OverQuota);
    f.take(user(1), "l", instance(1), false, LONG_MS).await;
    f.wait_ms(SHORT_MS + 10).await;
    f.take(user(1), "m", instance(1), true, LONG_MS).await;
    assert_eq!(f.lock(user(1), "n", instance(1), SHARED).await, LockOutcome::OverQuota);
    f.lock(user(1), "l", instance(1), LockAction::Release).await;
    f.take(user(1), "n", instance(1), false, LONG_MS).await;
}

/// Held comes first: it passes by itself, the quota does not.
pub async fn a_lock_held_by_another_is_told_before_the_quota(
    start: impl AsyncFn(Quotas) -> Fixture,
) {
    let f = start(at_most_locks(1)).await;
    f.take(user(1), "l", instance(1), true, LONG_MS).await;
    assert_eq!(f.lock(user(1), "l", instance(2), SHARED).await, LockOutcome::Held);
}

/// 32 new records at once for ten places.
pub async fn racing_writers_never_pass_the_record_quota(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(at_most_records(10)).await;
    let accepted = race(&f, |nth| new_write(user(1), &format!("r{nth}"), 0, b"x")).await;
    assert_eq!(accepted, 10);
    assert_eq!(f.list_all(user(1), PageLimit::WIRE).await.len(), 10);
    assert_eq!(f.head(user(1)).await, 10);
    assert_eq!(f.feed.announced_head(user(1)), 10);
}

/// 32 records of ten bytes at once for 105 bytes.
pub async fn racing_writers_never_pass_the_byte_quota(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(at_most_bytes(105)).await;
    let accepted = race(&f, |nth| new_write(user(1), &format!("r{nth}"), 0, &[1; 10])).await;
    assert_eq!(accepted, 10);
    f.put(user(1), "rest", 0, &[1; 5]).await;
    let refused = f.set(new_write(user(1), "more", 0, &[1; 1])).await;
    assert_eq!(refused, WriteOutcome::OverQuota(Quota::Bytes));
}

/// 32 instances at once for ten places, over several names.
pub async fn racing_instances_never_pass_the_lock_quota(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(at_most_locks(10)).await;
    let mut racers = JoinSet::new();
    for number in 0_u128..32 {
        let store = f.store.clone();
        let name = format!("l{}", number % 5);
        let request =
            LockRequest { user: user(1), name, instance: instance(number), action: SHARED };
        racers.spawn(async move { store.set_lock(request, soon()).await.unwrap() });
    }
    let outcomes = racers.join_all().await;
    let taken = outcomes.iter().filter(|o| matches!(o, LockOutcome::Acquired { .. })).count();
    let refused = outcomes.iter().filter(|o| matches!(o, LockOutcome::OverQuota)).count();
    assert_eq!((taken, refused), (10, 22));
}

/// One user's full store is nobody else's concern.
pub async fn quotas_are_per_user(start: impl AsyncFn(Quotas) -> Fixture) {
    let quotas = Quotas { max_records: Some(1), max_bytes: Some(1), max_locks: Some(1) };
    let f = start(quotas).await;
    for number in 1..4 {
        f.put(user(number), "r", 0, b"x").await;
        f.take(user(number), "l", instance(1), true, LONG_MS).await;
    }
}

/// Sends 32 writes at once; answers how many were accepted and checks that the rest was refused
/// for the quota.
async fn race(f: &Fixture, write: impl Fn(u32) -> crate::store::RecordWrite) -> usize {
    let mut racers = JoinSet::new();
    for nth in 0..32 {
        let store = f.store.clone();
        let write = write(nth);
        racers.spawn(async move { store.set_record(write, soon()).await.unwrap() });
    }
    let outcomes = racers.join_all().await;
    let accepted = outcomes.iter().filter(|o| matches!(o, WriteOutcome::Written { .. })).count();
    let refused = outcomes.iter().filter(|o| matches!(o, WriteOutcome::OverQuota(_))).count();
    assert_eq!(accepted + refused, 32, "{outcomes:?}");
    accepted
}
