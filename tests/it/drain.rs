//! A replica that is asked to stop ends streams, finishes calls and exits with 0.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use tonic::Code;

use crate::support::{
    client::{Wallet, end, fresh_key},
    engine::{Engine, Fixture},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_end_unavailable_and_the_exit_status_is_0() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let mut server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let mut stream = wallet.listening().await;
    server.signal("TERM");
    assert_eq!(end(&mut stream).await.code(), Code::Unavailable);
    assert_eq!(server.wait_for_exit(Duration::from_secs(10)).code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_and_a_half_open_client_do_not_hold_up_a_drain() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let mut server = fixture.options().env("SHUTDOWN_DRAIN", "1s").start();
    let silent = TcpStream::connect(server.grpc).expect("connects");
    let mut half_open = TcpStream::connect(server.grpc).expect("connects");
    // The preface and an empty SETTINGS frame, and then nothing ever again.
    half_open.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("writes");
    let mut settings = [0; 9];
    half_open.read_exact(&mut settings).expect("the server's settings");
    server.signal("TERM");
    assert_eq!(server.wait_for_exit(Duration::from_secs(5)).code(), Some(0));
    drop((silent, half_open));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_replica_goes_on_serving_for_the_delay() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let mut server = fixture.options().env("SHUTDOWN_DELAY", "2s").start();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let mut stream = wallet.listening().await;
    server.signal("TERM");
    crate::support::wait::until("readiness falls", || async { server.log().contains("draining") })
        .await;
    wallet.must_set("during the delay", 0, b"x").await;
    assert_eq!(crate::support::client::next(&mut stream).await.revision, 1);
    assert_eq!(server.wait_for_exit(Duration::from_secs(10)).code(), Some(0));
}
