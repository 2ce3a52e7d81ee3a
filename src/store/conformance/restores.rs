//! What a store owes devices that remember more than it does.

use super::{Fixture, PageLimit, Quotas, instance, new_write, soon, user};
use crate::store::{
    WriteOutcome,
    transfer::{Lifted, UserCounters},
};

const BY: u64 = 1_000;
const LONG_MS: u64 = 300_000;

/// Revisions and ids of everything above `since`.
async fn listed(f: &Fixture, number: u32, since: u64) -> Vec<(u64, String)> {
    let page = f.store.list_changes(user(number), since, PageLimit::WIRE, soon()).await.unwrap();
    page.records.into_iter().map(|record| (record.revision, record.id)).collect()
}

/// Two users; one of them has rewritten a record and holds a lock.
async fn fill(f: &Fixture) -> u64 {
    for (id, base) in [("a", 0), ("b", 0), ("a", 1), ("c", 0)] {
        f.put(user(1), id, base, b"x").await;
    }
    f.put(user(2), "z", 0, b"x").await;
    f.take(user(1), "l", instance(1), true, LONG_MS).await.0
}

/// Records keep their order and stand above whatever devices remember; so does what follows.
pub async fn a_lift_renumbers_above_all_that_was_lost(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let token = fill(&f).await;
    let lifted = f.transfer.lift(BY).await.unwrap();
    let fencing_token = token + BY;
    assert_eq!(lifted, Lifted { users: 2, records: 4, head_floor: BY, fencing_token });

    // A device that had seen the last revision that can have been lost sees everything again.
    let names = [(1_005, "b"), (1_006, "a"), (1_007, "c")];
    let all = names.map(|(revision, id)| (revision, id.to_owned()));
    assert_eq!(listed(&f, 1, 4 + BY).await, all);
    assert_eq!(f.head(user(1)).await, 1_007);
    assert_eq!(listed(&f, 2, 1 + BY).await, [(1_002, "z".to_owned())]);
    assert_eq!(f.put(user(1), "next", 0, b"x").await, 1_008);
    assert_eq!(f.put(user(2), "z", 1_002, b"y").await, 1_003);
    assert!(f.take(user(2), "l", instance(2), true, LONG_MS).await.0 > fencing_token);
}

/// Users of whom the backup knows nothing begin above what their devices may remember.
pub async fn users_unknown_to_a_lift_begin_above_it(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas { max_records: None, max_bytes: Some(5), max_locks: None }).await;
    assert_eq!(f.transfer.head_floor().await.unwrap(), 0);
    f.transfer.lift(BY).await.unwrap();
    assert_eq!(f.transfer.head_floor().await.unwrap(), BY);
    assert_eq!(f.put(user(1), "r", 7, b"x").await, BY + 1);
    // A refused first write leaves no hole.
    let refused = f.set(new_write(user(2), "r", 0, b"too large")).await;
    assert!(matches!(refused, WriteOutcome::OverQuota(_)), "{refused:?}");
    assert_eq!(f.put(user(2), "r", 0, b"x").await, BY + 1);
    assert_eq!(f.put(user(2), "s", 0, b"x").await, BY + 2);
    f.transfer.raise_head_floor(BY - 1).await.unwrap();
    assert_eq!(f.put(user(3), "r", 0, b"x").await, BY + 1);
    f.transfer.raise_head_floor(5_000_000_000).await.unwrap();
    assert_eq!(f.transfer.head_floor().await.unwrap(), 5_000_000_000);
    assert_eq!(f.put(user(4), "r", 0, b"x").await, 5_000_000_001);
}

/// A resend of a write that the backup holds is still known, and a lost one conflicts once.
pub async fn a_lift_keeps_what_heals_resends(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let first = new_write(user(1), "r", 0, b"x");
    assert_eq!(f.set(first.clone()).await, WriteOutcome::Written { revision: 1 });
    f.transfer.lift(BY).await.unwrap();
    assert_eq!(f.set(first).await, WriteOutcome::Repeated { revision: BY + 2 });
    // Made on a revision that is lost: the device lists, and finds the record above its cursor.
    let lost = f.set(new_write(user(1), "r", 9, b"y")).await;
    assert_eq!(lost, WriteOutcome::Conflict);
    assert_eq!(listed(&f, 1, 9).await, [(BY + 2, "r".to_owned())]);
    assert_eq!(f.put(user(1), "r", BY + 2, b"y").await, BY + 3);
}

/// Once too often costs a list, and nothing else; quotas stay exact.
pub async fn lifting_again_is_safe(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let token = fill(&f).await;
    f.transfer.lift(BY).await.unwrap();
    let again = f.transfer.lift(BY).await.unwrap();
    let fencing_token = token + 2 * BY;
    assert_eq!(again, Lifted { users: 2, records: 4, head_floor: 2 * BY, fencing_token });
    assert_eq!(f.head(user(1)).await, 2_010);
    let ids: Vec<String> = listed(&f, 1, 0).await.into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids, ["b", "a", "c"]);
    for UserCounters { user, kept, real } in f.transfer.counters(None, 10).await.unwrap() {
        assert_eq!(kept, real, "{user}");
    }
    assert!(f.is_locked(user(1), "l").await);
}
