//! Named locks: who may hold them, for how long, under which fencing token.

use tokio::task::JoinSet;

use super::{Fixture, Quotas, instance, soon, user};
use crate::store::{LockAction, LockOutcome, LockRequest};

/// A time to live that outlasts any case.
const LONG_MS: u64 = 300_000;
/// A time to live that a case waits for.
const SHORT_MS: u64 = 250;
const EXCLUSIVE: LockAction = LockAction::Acquire { exclusive: true, ttl_ms: LONG_MS };
const SHARED: LockAction = LockAction::Acquire { exclusive: false, ttl_ms: LONG_MS };

/// Semantics 9: a live exclusive lock refuses everyone else, shared or exclusive.
pub async fn exclusive_lock_refuses_other_instances(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    assert!(!f.is_locked(user(1), "l").await);
    f.take(user(1), "l", instance(1), true, LONG_MS).await;
    assert!(f.is_locked(user(1), "l").await);
    assert_eq!(f.lock(user(1), "l", instance(2), EXCLUSIVE).await, LockOutcome::Held);
    assert_eq!(f.lock(user(1), "l", instance(2), SHARED).await, LockOutcome::Held);
    f.lock(user(1), "l", instance(1), LockAction::Release).await;
    f.take(user(1), "l", instance(2), true, LONG_MS).await;
}

/// Semantics 9: shared locks live together and refuse an exclusive one; they count as locked.
pub async fn shared_locks_tolerate_each_other_and_refuse_exclusive(
    start: impl AsyncFn(Quotas) -> Fixture,
) {
    let f = start(Quotas::default()).await;
    f.take(user(1), "l", instance(1), false, LONG_MS).await;
    assert!(f.is_locked(user(1), "l").await);
    f.take(user(1), "l", instance(2), false, LONG_MS).await;
    assert_eq!(f.lock(user(1), "l", instance(3), EXCLUSIVE).await, LockOutcome::Held);
    f.lock(user(1), "l", instance(1), LockAction::Release).await;
    assert_eq!(f.lock(user(1), "l", instance(3), EXCLUSIVE).await, LockOutcome::Held);
    f.lock(user(1), "l", instance(2), LockAction::Release).await;
    assert!(!f.is_locked(user(1), "l").await);
    f.take(user(1), "l", instance(3), true, LONG_MS).await;
}

/// Semantics 9: the holder may take again and gets a new time to live, also a shorter one.
pub async fn a_holder_takes_again_with_a_new_expiry(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    for exclusive in [true, false] {
        let name = if exclusive { "e" } else { "s" };
        let (_, first) = f.take(user(1), name, instance(1), exclusive, LONG_MS).await;
        let (_, longer) = f.take(user(1), name, instance(1), exclusive, 2 * LONG_MS).await;
        assert!(longer >= first + LONG_MS);
        let (_, shorter) = f.take(user(1), name, instance(1), exclusive, SHORT_MS).await;
        assert!(shorter < first);
        f.wait_ms(SHORT_MS + 10).await;
        assert!(!f.is_locked(user(1), name).await);
    }
}

/// Semantics 9: shared to exclusive only without other holders; refused, the shared lock stays.
pub async fn an_upgrade_needs_to_be_alone(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    f.take(user(1), "l", instance(1), false, LONG_MS).await;
    f.take(user(1), "l", instance(2), false, LONG_MS).await;
    assert_eq!(f.lock(user(1), "l", instance(1), EXCLUSIVE).await, LockOutcome::Held);
    f.take(user(1), "l", instance(3), false, LONG_MS).await;
    f.lock(user(1), "l", instance(2), LockAction::Release).await;
    f.lock(user(1), "l", instance(3), LockAction::Release).await;
    assert!(f.is_locked(user(1), "l").await);
    f.take(user(1), "l", instance(1), true, LONG_MS).await;
    assert_eq!(f.lock(user(1), "l", instance(2), SHARED).await, LockOutcome::Held);
}

/// Semantics 9: exclusive to shared lets others in.
pub async fn a_downgrade_lets_others_share(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    f.take(user(1), "l", instance(1), true, LONG_MS).await;
    f.take(user(1), "l", instance(1), false, LONG_MS).await;
    f.take(user(1), "l", instance(2), false, LONG_MS).await;
    assert_eq!(f.lock(user(1), "l", instance(1), EXCLUSIVE).await, LockOutcome::Held);
}

/// Semantics 9: release is a no-op for anybody but the holder, and for the holder twice.
pub async fn release_is_idempotent_and_only_by_its_holder(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let release = LockAction::Release;
    assert_eq!(f.lock(user(1), "l", instance(1), release).await, LockOutcome::Released);
    f.take(user(1), "l", instance(1), true, LONG_MS).await;
    assert_eq!(f.lock(user(1), "l", instance(2), release).await, LockOutcome::Released);
    assert_eq!(f.lock(user(2), "l", instance(1), release).await, LockOutcome::Released);
    assert_eq!(f.lock(user(1), "m", instance(1), release).await, LockOutcome::Released);
    assert!(f.is_locked(user(1), "l").await);
    assert_eq!(f.lock(user(1), "l", instance(1), release).await, LockOutcome::Released);
    assert!(!f.is_locked(user(1), "l").await);
    assert_eq!(f.lock(user(1), "l", instance(1), release).await, LockOutcome::Released);
}

/// Locks of other names and other users have nothing to do with each other.
pub async fn locks_differ_by_name_and_user(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let longest = "n".repeat(crate::limits::MAX_LOCK_NAME_BYTES);
    for name in ["l", "L", "l ", "ł", &longest] {
        f.take(user(1), name, instance(1), true, LONG_MS).await;
        assert!(!f.is_locked(user(2), name).await);
        f.take(user(2), name, instance(2), true, LONG_MS).await;
    }
    f.lock(user(1), "l", instance(1), LockAction::Release).await;
    assert!(f.is_locked(user(1), "L").await);
    assert!(f.is_locked(user(2), "l").await);
}

/// Semantics 9: never early, and afterwards free for anybody.
pub async fn expiry_is_never_early_and_frees_the_lock(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    for exclusive in [true, false] {
        let name = if exclusive { "e" } else { "s" };
        let (_, first_ends) = f.take(user(1), name, instance(1), exclusive, SHORT_MS).await;
        let mut tries = 0;
        let second_ends = loop {
            match f.lock(user(1), name, instance(2), EXCLUSIVE).await {
                LockOutcome::Acquired { expires_at_ms, .. } => break expires_at_ms,
                LockOutcome::Held => tries += 1,
                other => panic!("answered {other:?}"),
            }
            assert!(tries < 1_000, "an expired lock is never given away");
            f.wait_ms(5).await;
        };
        let taken_at = second_ends - LONG_MS;
        assert!(taken_at >= first_ends, "taken {} ms early", first_ends - taken_at);
        assert!(tries > 0, "a live lock was given away");
        assert_eq!(f.lock(user(1), name, instance(1), SHARED).await, LockOutcome::Held);
    }
}

/// Semantics 9: the expiry is the database's time plus the time to live, in milliseconds.
pub async fn the_expiry_counts_milliseconds(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    for ttl_ms in [1, 999, 1_001, 30_000, LONG_MS] {
        let before = f.store.status(soon()).await.unwrap().database_time_ms;
        let (_, expires) = f.take(user(1), "l", instance(1), true, ttl_ms).await;
        let after = f.store.status(soon()).await.unwrap().database_time_ms;
        // The database may count finer than the milliseconds it tells.
        assert!(expires >= before + ttl_ms && expires <= after + ttl_ms + 1, "ttl {ttl_ms}");
    }
}

/// A holder who comes too late competes like anybody else.
pub async fn an_expired_lock_is_not_renewed_but_taken_anew(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let (first, _) = f.take(user(1), "l", instance(1), true, SHORT_MS).await;
    f.wait_ms(SHORT_MS + 10).await;
    assert!(!f.is_locked(user(1), "l").await);
    let (second, _) = f.take(user(1), "l", instance(1), true, SHORT_MS).await;
    assert!(second > first, "an expired lock kept its fencing token");
    f.wait_ms(SHORT_MS + 10).await;
    f.take(user(1), "l", instance(2), false, LONG_MS).await;
    assert_eq!(f.lock(user(1), "l", instance(1), EXCLUSIVE).await, LockOutcome::Held);
    assert_eq!(f.lock(user(1), "l", instance(1), LockAction::Release).await, LockOutcome::Released);
    assert!(f.is_locked(user(1), "l").await);
}

/// Tokens rise across release and expiry, over all locks of the store.
pub async fn fencing_tokens_rise_with_each_change_of_holder(
    start: impl AsyncFn(Quotas) -> Fixture,
) {
    let f = start(Quotas::default()).await;
    let mut tokens = Vec::new();
    tokens.push(f.take(user(1), "l", instance(1), true, LONG_MS).await.0);
    f.lock(user(1), "l", instance(1), LockAction::Release).await;
    tokens.push(f.take(user(1), "l", instance(1), true, LONG_MS).await.0);
    f.lock(user(1), "l", instance(1), LockAction::Release).await;
    tokens.push(f.take(user(1), "l", instance(2), true, SHORT_MS).await.0);
    f.wait_ms(SHORT_MS + 10).await;
    tokens.push(f.take(user(1), "l", instance(3), false, LONG_MS).await.0);
    tokens.push(f.take(user(1), "l", instance(4), false, LONG_MS).await.0);
    tokens.push(f.take(user(2), "other", instance(1), true, LONG_MS).await.0);
    assert!(tokens[0] > 0);
    assert!(tokens.is_sorted_by(|earlier, later| earlier < later), "{tokens:?}");
}

/// A live holder who renews, or steps down, keeps the token.
pub async fn a_renewal_keeps_its_fencing_token(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let (taken, _) = f.take(user(1), "l", instance(1), true, LONG_MS).await;
    f.take(user(1), "between", instance(2), true, LONG_MS).await;
    let (renewed, _) = f.take(user(1), "l", instance(1), true, LONG_MS).await;
    let (stepped_down, _) = f.take(user(1), "l", instance(1), false, LONG_MS).await;
    let (shared_renewed, _) = f.take(user(1), "l", instance(1), false, LONG_MS).await;
    assert_eq!([renewed, stepped_down, shared_renewed], [taken; 3]);
}

/// Shared to exclusive is a new hold.
pub async fn an_upgrade_draws_a_new_fencing_token(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let (shared, _) = f.take(user(1), "l", instance(1), false, LONG_MS).await;
    let (exclusive, _) = f.take(user(1), "l", instance(1), true, LONG_MS).await;
    assert!(exclusive > shared);
}

/// 64 instances at once: exactly one gets it, the others are told.
pub async fn one_racer_of_64_wins_an_exclusive_lock(start: impl AsyncFn(Quotas) -> Fixture) {
    let f = start(Quotas::default()).await;
    let mut racers = JoinSet::new();
    for number in 0..64 {
        let store = f.store.clone();
        let request = LockRequest {
            user: user(1),
            name: "l".to_owned(),
            instance: instance(number),
            action: EXCLUSIVE,
        };
        racers.spawn(async move { store.set_lock(request, soon()).await.unwrap() });
    }
    let outcomes = racers.join_all().await;
    let winners = outcomes.iter().filter(|o| matches!(o, LockOutcome::Acquired { .. })).count();
    let refused = outcomes.iter().filter(|o| matches!(o, LockOutcome::Held)).count();
    assert_eq!((winners, refused), (1, 63));
}
