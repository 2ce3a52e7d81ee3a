//! Locks are taken together, and nobody waits for strangers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use data_sync::{
    limits::MAX_GROUPED_CALLS,
    store::{
        LockAction, LockOutcome, LockRequest, Quotas, Store as _, UserId,
        conformance::{instance, soon, user},
    },
};
use futures_util::future::join_all;

use super::open;
use crate::support::postgres::migrated_database;

const USERS: u32 = 20;
const TAKE: LockAction = LockAction::Acquire { exclusive: true, ttl_ms: 60_000 };

fn lock(user: UserId, holder: u128, action: LockAction) -> LockRequest {
    LockRequest { user, name: "l".to_owned(), instance: instance(holder), action }
}

#[tokio::test]
async fn locks_of_many_users_share_round_trips_and_each_gets_its_own_answer() {
    let database = migrated_database().await;
    let opened = open(&database.config(), Quotas::default());
    let store = &opened.store;
    let round_trips = || opened.metrics.pool_wait_seconds.get_sample_count();
    let before = round_trips();

    // Two ask for each user's lock. Of every third user, whoever holds it lets go again.
    let asked = (0..2 * USERS).map(|nth| async move {
        let (asking, holder) = (nth % USERS, u128::from(nth / USERS));
        (asking, holder, store.set_lock(lock(user(asking), holder, TAKE), soon()).await)
    });
    let (mut holders, mut tokens) = (BTreeMap::new(), BTreeSet::new());
    for (asking, holder, outcome) in join_all(asked).await {
        match outcome.expect("an outcome") {
            LockOutcome::Acquired { fencing_token, .. } => {
                assert_eq!(holders.insert(asking, holder), None, "two hold it");
                assert!(tokens.insert(fencing_token), "a token was given twice");
            }
            outcome => assert_eq!(outcome, LockOutcome::Held),
        }
    }
    assert_eq!(holders.len(), USERS as usize);
    let released = holders
        .into_iter()
        .filter(|(nth, _)| nth % 3 == 0)
        .map(|(nth, holder)| store.set_lock(lock(user(nth), holder, LockAction::Release), soon()));
    for outcome in join_all(released).await {
        assert_eq!(outcome, Ok(LockOutcome::Released));
    }
    let looked_up = (0..USERS).map(|nth| async move {
        (nth, store.is_locked(user(nth), "l", soon()).await.expect("an answer"))
    });
    for (nth, is_locked) in join_all(looked_up).await {
        assert_eq!(is_locked, nth % 3 != 0, "user {nth}");
    }

    let calls = u64::from(2 * USERS + USERS.div_ceil(3) + USERS);
    let used = round_trips() - before;
    let fewest = calls.div_ceil(MAX_GROUPED_CALLS as u64);
    assert!((fewest..calls / 4).contains(&used), "{used} round trips for {calls} calls");
}

#[tokio::test]
async fn a_user_whose_locks_are_held_up_keeps_no_stranger_waiting() {
    let database = migrated_database().await;
    let opened = open(&database.config(), Quotas::default());
    let store = &opened.store;
    let mut elsewhere = database.connect().await;
    let hold = elsewhere.transaction().await.expect("a transaction");
    let key = user(7);
    hold.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended(encode($1, 'hex'), 7305))",
        &[&key.as_bytes().as_slice()],
    )
    .await
    .expect("held");

    let held_up = store.set_lock(lock(user(7), 0, TAKE), soon());
    let strangers = async {
        let began = Instant::now();
        let asked = (0..USERS).filter(|nth| *nth != 7);
        let taken = asked.map(|nth| store.set_lock(lock(user(nth), 0, TAKE), soon()));
        for outcome in join_all(taken).await {
            assert!(matches!(outcome, Ok(LockOutcome::Acquired { .. })), "{outcome:?}");
        }
        let waited = began.elapsed();
        hold.rollback().await.expect("let go");
        waited
    };
    let (outcome, waited) = tokio::join!(held_up, strangers);
    assert!(matches!(outcome, Ok(LockOutcome::Acquired { .. })), "{outcome:?}");
    assert!(waited < Duration::from_millis(800), "{waited:?}");
}
