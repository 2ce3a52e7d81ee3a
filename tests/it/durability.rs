//! Every acknowledged write survives a killed server.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::support::{
    client::{Wallet, channel, fresh_key},
    engine::{Engine, Fixture, on_both_engines},
    wait::until,
};

on_both_engines!(a_server_killed_under_load_keeps_every_acknowledged_write);

async fn a_server_killed_under_load_keeps_every_acknowledged_write(engine: Engine) {
    const WRITERS: usize = 16;
    const ACKNOWLEDGED_BEFORE_KILL: u64 = 300;
    let fixture = Fixture::new(engine).await;
    let mut server = fixture.serve();
    let shared = channel(server.grpc).await;
    let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
    let count = Arc::new(AtomicU64::new(0));
    let keys: Vec<_> = (0..WRITERS).map(|_| fresh_key()).collect();
    let writers: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(writer, key)| {
            let wallet = Wallet::on(shared.clone(), *key);
            let (acknowledged, count) = (Arc::clone(&acknowledged), Arc::clone(&count));
            tokio::spawn(async move {
                for number in 0_u64.. {
                    let id = format!("{number}");
                    let Ok(reply) = wallet.set(&id, 0, &number.to_be_bytes()).await else { return };
                    let mut acknowledged = acknowledged.lock().expect("not poisoned");
                    acknowledged.insert((writer, id), reply.new_revision);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    until("writes are acknowledged", || async {
        count.load(Ordering::Relaxed) >= ACKNOWLEDGED_BEFORE_KILL
    })
    .await;
    server.kill();
    for writer in writers {
        writer.await.expect("no panic");
    }

    let server = fixture.serve();
    let acknowledged = acknowledged.lock().expect("not poisoned").clone();
    assert!(acknowledged.len() as u64 >= ACKNOWLEDGED_BEFORE_KILL);
    let shared = channel(server.grpc).await;
    for (writer, key) in keys.iter().enumerate() {
        let wallet = Wallet::on(shared.clone(), *key);
        let stored: BTreeMap<String, u64> = wallet
            .list_all()
            .await
            .into_iter()
            .map(|record| (record.id, record.revision))
            .collect();
        for ((_, id), revision) in
            acknowledged.range((writer, String::new())..(writer + 1, String::new()))
        {
            assert_eq!(stored.get(id), Some(revision), "record {id} of writer {writer}");
        }
    }
}
