//! Many callers at once.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::FutureExt as _;
use tokio::task::JoinSet;

use super::{Fixture, Quotas, new_write, soon, user};
use crate::store::{RecordWrite, WriteOutcome};

/// Sends all writes at once; answers the outcomes in their order.
async fn all_at_once(f: &Fixture, writes: Vec<RecordWrite>) -> Vec<WriteOutcome> {
    let mut racers = JoinSet::new();
    for (nth, write) in writes.into_iter().enumerate() {
        let store = f.store.clone();
        racers.spawn(async move { (nth, store.set_record(write, soon()).await.unwrap()) });
    }
    let outcomes: BTreeMap<_, _> = racers.join_all().await.into_iter().collect();
    outcomes.into_values().collect()
}

fn revision(outcome: &WriteOutcome) -> u64 {
    match outcome {
        WriteOutcome::Written { revision } | WriteOutcome::Repeated { revision } => *revision,
        other => panic!("answered {other:?}"),
    }
}

/// Contention is answered with conflicts, never with errors, and always lets one through.
pub async fn one_of_32_writers_to_one_record_wins_each_round(
    start: impl AsyncFn(Quotas) -> Fixture,
) {
    let f = start(Quotas::default()).await;
    for round in 0..10_u64 {
        let writes = (0..32).map(|nth| new_write(user(1), "r", round, &[nth])).collect();
        let outcomes = all_at_once(&f, writes).await;
        let winner = WriteOutcome::Written { revision: round + 1 };
        assert_eq!(outcomes.iter().filter(|o| **o == winner).count(), 1, "{outcomes:?}");
        let lost = outcomes.iter().filter(|o| **o == WriteOutcome::Conflict).count();
        assert_eq!(lost, 31);
    }
    assert_eq!(f.head(user(1)).await, 10);
    assert_eq!(f.feed.announced_head(user(1)), 10);
}

/// Writers of different records of one user never stand in each other's way.
pub async fn writers_of_one_user_get_gapless_revisions(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let writes = (0..256).map(|nth| new_write(user(1), &format!("r{nth}"), 0, b"x")).collect();
    let mut revisions: Vec<_> = all_at_once(&f, writes).await.iter().map(revision).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=256).collect::<Vec<_>>());
    assert_eq!(f.feed.announced_head(user(1)), 256);
}

/// Users who never wrote before all at once.
pub async fn first_writes_of_64_users_all_succeed(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let writes = (0..64).map(|nth| new_write(user(nth), "r", 0, b"x")).collect();
    let outcomes = all_at_once(&f, writes).await;
    assert!(outcomes.iter().all(|o| *o == WriteOutcome::Written { revision: 1 }), "{outcomes:?}");
    for nth in 0..64 {
        assert_eq!(f.feed.announced_head(user(nth)), 1);
    }
}

/// Semantics 8, when the repeats arrive together, perhaps in one batch.
pub async fn racing_repeats_write_and_announce_once(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    for base in [0, 1, 3] {
        let id = format!("r{base}");
        let expected = f.head(user(1)).await + 1;
        let write = new_write(user(1), &id, base, b"x");
        let outcomes = all_at_once(&f, vec![write; 32]).await;
        assert!(outcomes.iter().all(|o| revision(o) == expected), "{outcomes:?}");
        let written = outcomes.iter().filter(|o| matches!(o, WriteOutcome::Written { .. }));
        assert_eq!(written.count(), 1);
    }
    assert_eq!(f.head(user(1)).await, 3);
    assert_eq!(f.feed.announced_head(user(1)), 3);
}

/// Announcements may be merged; a name stays only where it is true of the whole run, and goes
/// only where it is not.
pub async fn announcements_name_only_true_writers(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let names = [Some("one"), Some("two"), None];
    let writes: Vec<_> = (0..96)
        .map(|nth: usize| {
            let mut write = new_write(user(1), &format!("r{nth}"), 0, b"x");
            write.client_id = names[(nth / 8) % 3].map(Arc::from);
            write
        })
        .collect();
    let outcomes = all_at_once(&f, writes.clone()).await;
    let writers: BTreeMap<u64, Option<Arc<str>>> = outcomes
        .iter()
        .zip(&writes)
        .map(|(outcome, write)| (revision(outcome), write.client_id.clone()))
        .collect();
    assert_eq!(f.feed.announced_head(user(1)), 96);
    for change in f.feed.changes_of(user(1)) {
        let run: Vec<_> = writers.range(change.from..=change.to).map(|(_, name)| name).collect();
        let common = run.iter().all(|name| *name == run[0]).then(|| run[0].clone()).flatten();
        assert_eq!(change.client_id, common, "revisions {} to {}", change.from, change.to);
    }
}

/// A caller that hangs up undoes nothing and silences nothing.
pub async fn a_write_survives_its_caller(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    for nth in 0..20 {
        let write = new_write(user(1), &format!("r{nth}"), 0, b"x");
        // Polled once, then dropped.
        let _unanswered = f.store.set_record(write, soon()).now_or_never();
    }
    f.announced(user(1), 20).await;
    assert_eq!(f.head(user(1)).await, 20);
    assert_eq!(f.put(user(1), "last", 0, b"x").await, 21);
    assert_eq!(f.feed.announced_head(user(1)), 21);
}
