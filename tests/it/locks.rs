//! SetLock and GetLock as wallets rely on them (design §2, semantics 9).

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tonic::Code;

use crate::support::{
    client::{Wallet, channel, fresh_key},
    engine::{Engine, Fixture, on_both_engines},
    wait::until,
};

on_both_engines!(
    an_exclusive_lock_refuses_every_other_instance,
    shared_locks_tolerate_each_other_and_refuse_an_exclusive_one,
    a_holder_may_take_its_lock_again_and_change_its_kind,
    release_is_idempotent_and_only_by_the_holder,
    a_lock_expires_by_itself_and_not_early,
    fencing_tokens_rise_with_each_holder,
    locks_of_different_users_are_different_locks,
    sixty_four_callers_racing_for_a_lock_have_one_winner,
);

async fn wallets(engine: Engine) -> (Fixture, crate::support::server::Server, Wallet, Wallet) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let one = Wallet::connect(server.grpc, fresh_key()).await;
    let other = one.sibling();
    (fixture, server, one, other)
}

async fn an_exclusive_lock_refuses_every_other_instance(engine: Engine) {
    let (_fixture, _server, one, other) = wallets(engine).await;
    assert!(!one.locked("lock").await.expect("answers"));
    one.lock("lock", true, None).await.expect("free");
    assert!(other.locked("lock").await.expect("answers"));
    for exclusive in [true, false] {
        let refused = other.lock("lock", exclusive, None).await.expect_err("held");
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(refused.message(), "lock held by another instance");
    }
    other.lock("another lock", true, None).await.expect("free");
}

async fn shared_locks_tolerate_each_other_and_refuse_an_exclusive_one(engine: Engine) {
    let (_fixture, _server, one, other) = wallets(engine).await;
    one.lock("lock", false, None).await.expect("free");
    other.lock("lock", false, None).await.expect("shared");
    assert!(one.locked("lock").await.expect("answers"));
    let third = one.sibling();
    assert_eq!(
        third.lock("lock", true, None).await.expect_err("held").code(),
        Code::FailedPrecondition
    );
    one.unlock("lock").await.expect("releases");
    assert!(one.locked("lock").await.expect("answers"), "the other still holds it");
    other.unlock("lock").await.expect("releases");
    third.lock("lock", true, None).await.expect("free");
}

async fn a_holder_may_take_its_lock_again_and_change_its_kind(engine: Engine) {
    let (_fixture, _server, one, other) = wallets(engine).await;
    let first = one.lock("lock", true, Some(10)).await.expect("free");
    let again = one.lock("lock", true, Some(300)).await.expect("renewed");
    assert_eq!(again.fencing_token, first.fencing_token);
    assert!(again.expires_at_ms > first.expires_at_ms);
    one.lock("lock", false, None).await.expect("downgraded");
    other.lock("lock", false, None).await.expect("shared");
    assert_eq!(
        one.lock("lock", true, None).await.expect_err("held").code(),
        Code::FailedPrecondition
    );
    other.unlock("lock").await.expect("releases");
    let upgraded = one.lock("lock", true, None).await.expect("upgraded");
    assert!(upgraded.fencing_token > first.fencing_token);
}

async fn release_is_idempotent_and_only_by_the_holder(engine: Engine) {
    let (_fixture, _server, one, other) = wallets(engine).await;
    one.unlock("lock").await.expect("nothing to release");
    one.lock("lock", true, None).await.expect("free");
    other.unlock("lock").await.expect("not its own, so nothing happens");
    assert!(one.locked("lock").await.expect("answers"));
    let released = one.unlock("lock").await.expect("releases");
    assert_eq!((released.fencing_token, released.expires_at_ms), (0, 0));
    one.unlock("lock").await.expect("again");
    assert!(!one.locked("lock").await.expect("answers"));
}

async fn a_lock_expires_by_itself_and_not_early(engine: Engine) {
    let (_fixture, _server, one, other) = wallets(engine).await;
    let asked = Instant::now();
    one.lock("lock", true, Some(1)).await.expect("free");
    until("the lock expires", || async { other.lock("lock", true, None).await.is_ok() }).await;
    assert!(asked.elapsed() >= Duration::from_secs(1), "expired after {:?}", asked.elapsed());
}

async fn fencing_tokens_rise_with_each_holder(engine: Engine) {
    let (_fixture, _server, one, other) = wallets(engine).await;
    let mut last = 0;
    for holder in [&one, &other, &one, &other] {
        let token = holder.lock("lock", true, None).await.expect("free").fencing_token;
        assert!(token > last, "{token} after {last}");
        last = token;
        holder.unlock("lock").await.expect("releases");
    }
}

async fn locks_of_different_users_are_different_locks(engine: Engine) {
    let (_fixture, server, one, _other) = wallets(engine).await;
    let stranger = Wallet::connect(server.grpc, fresh_key()).await;
    one.lock("lock", true, None).await.expect("free");
    assert!(!stranger.locked("lock").await.expect("answers"));
    stranger.lock("lock", true, None).await.expect("free");
}

async fn sixty_four_callers_racing_for_a_lock_have_one_winner(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let key = fresh_key();
    let shared = channel(server.grpc).await;
    let races = (0..64).map(|_| {
        let wallet = Wallet::on(shared.clone(), key);
        async move { wallet.lock("lock", true, None).await }
    });
    let (won, lost): (Vec<_>, Vec<_>) = join_all(races).await.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    assert!(lost.iter().all(|refused| {
        refused.as_ref().is_err_and(|status| status.code() == Code::FailedPrecondition)
    }));
}
