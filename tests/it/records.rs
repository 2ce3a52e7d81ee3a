//! SetRecord and ListChanges as wallets rely on them (design §2, semantics 1, 2, 6, 8).

use std::collections::BTreeSet;

use data_sync::proto::{SetRecordRequest, SetRecordStatus};
use futures_util::future::join_all;

use crate::support::{
    client::{Wallet, channel, fresh_key, next},
    engine::{Engine, Fixture, on_both_engines},
};

on_both_engines!(
    a_record_the_server_does_not_hold_is_accepted_at_any_revision,
    a_record_the_server_holds_needs_its_current_revision,
    a_conflict_shows_the_current_record_only_when_asked,
    the_same_signed_request_again_is_the_same_write,
    a_resend_after_a_later_write_is_a_conflict,
    revisions_count_up_without_gaps_and_list_in_order,
    listing_from_ahead_of_the_head_is_empty,
    empty_ids_and_empty_data_round_trip,
    the_largest_record_round_trips,
    users_do_not_see_each_other,
    pages_are_cut_at_a_thousand_records_and_nudge_until_drained,
    pages_are_cut_below_what_clients_can_receive,
    thirty_two_writers_of_one_user_only_win_or_conflict,
    sixty_four_first_writes_at_once_all_succeed,
);

async fn a_record_the_server_does_not_hold_is_accepted_at_any_revision(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let bases = [0, 1, 5, 1 << 31, (1 << 63) - 1, 1 << 63, u64::MAX];
    for (index, base) in bases.into_iter().enumerate() {
        let revision = wallet.must_set(&format!("record {base}"), base, b"data").await;
        assert_eq!(revision, index as u64 + 1);
    }
}

async fn a_record_the_server_holds_needs_its_current_revision(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    assert_eq!(wallet.must_set("a", 0, b"1").await, 1);
    for stale in [0, 2, 1 << 31, 1 << 63, u64::MAX] {
        let reply = wallet.set("a", stale, b"2").await.expect("an OK reply");
        assert_eq!((reply.status(), reply.new_revision), (SetRecordStatus::Conflict, 0));
        assert_eq!(reply.current, None);
    }
    assert_eq!(wallet.must_set("a", 1, b"3").await, 2);
    let page = wallet.list(0).await.expect("lists");
    assert_eq!((page.changes.len(), page.head_revision, page.has_more), (1, 2, false));
    assert_eq!(page.changes[0].data.as_ref(), b"3");
}

async fn a_conflict_shows_the_current_record_only_when_asked(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    wallet.must_set("a", 0, b"mine").await;
    let stale = wallet.set_request("a", 0, b"theirs");
    let request = SetRecordRequest { return_current: true, ..stale };
    let reply = wallet.send_set(request).await.expect("an OK reply");
    assert_eq!(reply.status(), SetRecordStatus::Conflict);
    let current = reply.current.expect("asked for");
    assert_eq!((current.id.as_str(), current.revision), ("a", 1));
    assert_eq!((current.schema_version.as_str(), current.data.as_ref()), ("1.0.0", &b"mine"[..]));
}

async fn the_same_signed_request_again_is_the_same_write(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let mut stream = wallet.listening().await;
    // Four other records first, so that the new one becomes 5: the revision its resend names.
    for index in 1..=4 {
        wallet.must_set(&format!("other {index}"), 0, b"x").await;
    }
    let request = wallet.set_request("a", 5, b"data");
    for _ in 0..3 {
        let reply = wallet.send_set(request.clone()).await.expect("an OK reply");
        assert_eq!((reply.status(), reply.new_revision), (SetRecordStatus::Success, 5));
    }
    assert_eq!(wallet.must_set("b", 0, b"last").await, 6);
    while next(&mut stream).await.revision < 6 {}
    assert_eq!(wallet.list(4).await.expect("lists").changes.len(), 2);
}

async fn a_resend_after_a_later_write_is_a_conflict(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let request = wallet.set_request("a", 0, b"first");
    assert_eq!(wallet.send_set(request.clone()).await.expect("answers").new_revision, 1);
    assert_eq!(wallet.must_set("a", 1, b"second").await, 2);
    let reply = wallet.send_set(request).await.expect("answers");
    assert_eq!(reply.status(), SetRecordStatus::Conflict);
}

async fn revisions_count_up_without_gaps_and_list_in_order(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    for (revision, id) in ["a", "b", "c"].into_iter().enumerate() {
        assert_eq!(wallet.must_set(id, 0, b"1").await, revision as u64 + 1);
    }
    assert_eq!(wallet.must_set("a", 1, b"2").await, 4);
    let listed = wallet.list_all().await;
    let listed: Vec<_> =
        listed.iter().map(|record| (record.id.as_str(), record.revision)).collect();
    assert_eq!(listed, [("b", 2), ("c", 3), ("a", 4)]);
    let since_two = wallet.list(2).await.expect("lists").changes;
    assert_eq!(since_two.len(), 2);
}

async fn listing_from_ahead_of_the_head_is_empty(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let page = wallet.list(0).await.expect("lists");
    assert_eq!((page.changes.len(), page.head_revision), (0, 0));
    wallet.must_set("a", 0, b"1").await;
    for since in [1, 2, 1 << 31, (1 << 63) - 1, 1 << 63, u64::MAX] {
        let page = wallet.list(since).await.expect("lists");
        assert_eq!((page.changes.len(), page.has_more, page.head_revision), (0, false, 1));
    }
}

async fn empty_ids_and_empty_data_round_trip(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    assert_eq!(wallet.must_set("", 0, b"").await, 1);
    assert_eq!(wallet.must_set("", 1, b"x").await, 2);
    assert_eq!(wallet.must_set("naïve-記録", 0, b"").await, 3);
    let listed = wallet.list_all().await;
    assert_eq!((listed[0].id.as_str(), listed[0].data.as_ref()), ("", &b"x"[..]));
    assert_eq!((listed[1].id.as_str(), listed[1].data.len()), ("naïve-記録", 0));
}

async fn the_largest_record_round_trips(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let data: Vec<u8> = (0..65_536_u32).map(|index| (index % 251) as u8).collect();
    let id = "i".repeat(64);
    wallet.must_set(&id, 0, &data).await;
    let listed = wallet.list_all().await;
    assert_eq!(listed[0].id, id);
    assert_eq!(listed[0].data.as_ref(), data);
}

async fn users_do_not_see_each_other(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let alice = Wallet::connect(server.grpc, fresh_key()).await;
    let bob = Wallet::connect(server.grpc, fresh_key()).await;
    let mut bobs_stream = bob.listening().await;
    assert_eq!(alice.must_set("a", 0, b"alice").await, 1);
    assert_eq!(bob.must_set("a", 0, b"bob").await, 1);
    assert_eq!(bob.list_all().await[0].data.as_ref(), b"bob");
    let told = next(&mut bobs_stream).await;
    assert_eq!(told.client_id, Some(bob.instance.to_string()));
}

/// Writes `count` records of `bytes` each, many at a time.
async fn fill(wallet: &Wallet, count: usize, bytes: usize) {
    let data = vec![7; bytes];
    let numbers: Vec<usize> = (0..count).collect();
    for chunk in numbers.chunks(50) {
        let writes = chunk.iter().map(|number| {
            let data = &data;
            async move { wallet.must_set(&format!("record {number:05}"), 0, data).await }
        });
        join_all(writes).await;
    }
}

async fn pages_are_cut_at_a_thousand_records_and_nudge_until_drained(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    fill(&wallet, 2_100, 10).await;

    // A shipped client: one list for each notification, nothing else.
    let reader = Wallet::connect(server.grpc, fresh_key()).await;
    drop(reader);
    let mut stream = wallet.listening().await;
    let mut cursor = 0;
    let mut seen = BTreeSet::new();
    loop {
        let page = wallet.list(cursor).await.expect("lists");
        assert!(page.changes.len() <= 1_000);
        assert_eq!(page.head_revision, 2_100);
        assert!(page.changes.windows(2).all(|pair| pair[0].revision < pair[1].revision));
        cursor = page.changes.last().map_or(cursor, |record| record.revision);
        seen.extend(page.changes.into_iter().map(|record| record.id));
        if !page.has_more {
            break;
        }
        assert_eq!(next(&mut stream).await.client_id, None);
    }
    assert_eq!((seen.len(), cursor), (2_100, 2_100));
}

async fn pages_are_cut_below_what_clients_can_receive(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    fill(&wallet, 70, 65_536).await;
    let first = wallet.list(0).await.expect("fits what a client receives");
    assert!(first.has_more);
    assert!(first.changes.len() > 50, "only {} records on a page", first.changes.len());
    assert_eq!(wallet.list_all().await.len(), 70);
}

async fn thirty_two_writers_of_one_user_only_win_or_conflict(engine: Engine) {
    const WRITERS: u64 = 32;
    const ROUNDS: u64 = 10;
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let key = fresh_key();
    let shared = channel(server.grpc).await;
    let writers = (0..WRITERS).map(|writer| {
        let wallet = Wallet::on(shared.clone(), key);
        tokio::spawn(async move {
            let mut accepted = Vec::new();
            for round in 0..ROUNDS {
                let current = wallet.list(0).await.expect("lists").changes;
                let base = current.first().map_or(0, |record| record.revision);
                // Equal bytes would be one signed request sent twice, which is one write.
                let data = [writer.to_be_bytes(), round.to_be_bytes()].concat();
                let reply = wallet.set("shared", base, &data).await;
                let reply = reply.expect("success or conflict");
                if reply.status() == SetRecordStatus::Success {
                    accepted.push(reply.new_revision);
                }
            }
            accepted
        })
    });
    let accepted: Vec<u64> =
        join_all(writers).await.into_iter().flat_map(|writer| writer.expect("no panic")).collect();
    let distinct: BTreeSet<u64> = accepted.iter().copied().collect();
    let gapless: BTreeSet<u64> = (1..=accepted.len() as u64).collect();
    assert_eq!(distinct, gapless);
    let wallet = Wallet::on(shared, key);
    assert_eq!(wallet.list(0).await.expect("lists").head_revision, accepted.len() as u64);
}

async fn sixty_four_first_writes_at_once_all_succeed(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let shared = channel(server.grpc).await;
    let writes = (0..64).map(|_| {
        let wallet = Wallet::on(shared.clone(), fresh_key());
        async move { wallet.must_set("first", 0, b"data").await }
    });
    assert!(join_all(writes).await.into_iter().all(|revision| revision == 1));
}
