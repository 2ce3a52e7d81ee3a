//! ListenChanges as wallets rely on it (design §2, semantics 3 to 5).

use std::collections::BTreeSet;

use data_sync::proto::{Notification, SetRecordRequest, SetRecordStatus};
use tonic::Code;

use crate::support::{
    client::{Wallet, end, fresh_key, next},
    engine::{Engine, Fixture, on_both_engines},
};

on_both_engines!(
    the_first_notification_is_empty_and_means_live,
    every_stream_of_the_user_is_told_with_the_writers_client_id,
    a_write_without_client_id_is_told_without,
    a_conflict_tells_nobody,
    merged_notifications_cover_every_write,
    a_stream_ends_unavailable_at_its_greatest_age,
);

async fn the_first_notification_is_empty_and_means_live(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    wallet.must_set("before", 0, b"x").await;
    let mut stream = wallet.listen().await.expect("listens");
    assert_eq!(next(&mut stream).await, Notification::default());
    let revision = wallet.must_set("after", 0, b"x").await;
    assert_eq!(next(&mut stream).await.revision, revision);
}

async fn every_stream_of_the_user_is_told_with_the_writers_client_id(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let writer = Wallet::connect(server.grpc, fresh_key()).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(writer.listening().await);
    }
    let revision = writer.must_set("a", 0, b"x").await;
    for stream in &mut streams {
        let told = next(stream).await;
        assert_eq!(told, Notification { client_id: Some(writer.instance.to_string()), revision });
    }
}

async fn a_write_without_client_id_is_told_without(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let mut stream = wallet.listening().await;
    let request = SetRecordRequest { client_id: None, ..wallet.set_request("a", 0, b"x") };
    wallet.send_set(request).await.expect("accepted");
    assert_eq!(next(&mut stream).await, Notification { client_id: None, revision: 1 });
}

async fn a_conflict_tells_nobody(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    wallet.must_set("a", 0, b"x").await;
    let mut stream = wallet.listening().await;
    let loser = wallet.sibling();
    let reply = loser.set("a", 0, b"y").await.expect("answers");
    assert_eq!(reply.status(), SetRecordStatus::Conflict);
    let winner = wallet.sibling();
    winner.must_set("a", 1, b"z").await;
    assert_eq!(next(&mut stream).await.client_id, Some(winner.instance.to_string()));
}

async fn merged_notifications_cover_every_write(engine: Engine) {
    const WRITES: u64 = 200;
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let mut stream = wallet.listening().await;
    let writers: [Wallet; 2] = [wallet.sibling(), wallet.sibling()];
    let writes = futures_util::future::join_all((0..WRITES).map(|number| {
        let writer = &writers[(number % 2) as usize];
        async move { writer.must_set(&format!("{number}"), 0, b"x").await }
    }));
    let listen = async {
        let mut told = 0;
        let mut named = BTreeSet::new();
        while told < WRITES {
            let notification = next(&mut stream).await;
            assert!(notification.revision > told, "revisions only rise");
            if let Some(client) = notification.client_id {
                named.insert(client);
            }
            told = notification.revision;
        }
        named
    };
    let (_, named) = tokio::join!(writes, listen);
    let known = writers.map(|writer| writer.instance.to_string());
    assert!(named.iter().all(|client| known.contains(client)));
}

async fn a_stream_ends_unavailable_at_its_greatest_age(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.options().env("STREAM_MAX_AGE", "500ms").start();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let mut stream = wallet.listening().await;
    assert_eq!(end(&mut stream).await.code(), Code::Unavailable);
    wallet.listening().await;
}
