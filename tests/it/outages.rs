//! A database that is slow, busy or gone: callers are answered in time and everything heals.

use std::time::{Duration, Instant};

use data_sync::proto::ListChangesRequest;
use h2::RecvStream;
use http::Response;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt as _;

use crate::support::{
    client::{Wallet, fresh_key, next, now},
    http::http1,
    postgres::{Cluster, migrated_database},
    raw::RawClient,
    server::{Server, ServerOptions},
    wait::{until, within},
};

/// A second, and what a loaded machine may add.
const ABOUT_A_SECOND: Duration = Duration::from_millis(1_500);

/// Checks that a call was refused as unavailable, soon, and with a time to come back.
fn is_unavailable<T: std::fmt::Debug>(what: &str, answer: Result<T, Status>, began: Instant) {
    let took = began.elapsed();
    let status = answer.expect_err(what);
    assert_eq!(status.code(), Code::Unavailable, "{what}: {status:?}");
    assert!(took < ABOUT_A_SECOND, "{what} took {took:?}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().expect("a reason").reason, "STORE_UNAVAILABLE", "{what}");
    let delay = details.retry_info().and_then(|info| info.retry_delay).expect("a delay");
    assert!(!delay.is_zero() && delay <= Duration::from_secs(5), "{what}: {delay:?}");
}

/// What the admin port answers, and that it does at once.
async fn admin_status(server: &Server, path: &str) -> u16 {
    let began = Instant::now();
    let answer = http1().get(format!("http://{}{path}", server.admin)).send();
    let status = within(path, answer).await.expect("answers").status().as_u16();
    assert!(began.elapsed() < Duration::from_secs(3), "{path} took {:?}", began.elapsed());
    status
}

/// Every health service answers at once that it serves: a replica's health is not the database's.
async fn is_healthy(server: &Server) {
    for service in ["", "sync.Syncer", "readiness", "liveness"] {
        let began = Instant::now();
        let status = crate::health::check(server.grpc, service).await.expect("answers");
        assert_eq!(status, ServingStatus::Serving, "{service}");
        assert!(began.elapsed() < ABOUT_A_SECOND, "{service} took {:?}", began.elapsed());
    }
    assert_eq!(admin_status(server, "/livez").await, 200);
    assert_eq!(admin_status(server, "/readyz").await, 200, "others are no better off");
}

async fn every_call_is_unavailable(wallet: &Wallet) {
    let now = Instant::now();
    is_unavailable("SetRecord", wallet.set("r", 1, b"y").await, now);
    let now = Instant::now();
    is_unavailable("ListChanges", wallet.list(0).await, now);
    let now = Instant::now();
    is_unavailable("ListenChanges", wallet.listen().await.map(|_| ()), now);
    let now = Instant::now();
    is_unavailable("SetLock", wallet.lock("l", true, None).await, now);
    let now = Instant::now();
    is_unavailable("GetLock", wallet.locked("l").await, now);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_database_is_unavailable_to_every_call_and_comes_back_by_itself() {
    let cluster = Cluster::start(&[]);
    let database = cluster.create_database().await;
    let server = ServerOptions::postgres(&database.url()).start();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    wallet.must_set("r", 0, b"x").await;
    let mut stream = wallet.listening().await;
    cluster.stop("QUIT");
    for _ in 0..3 {
        every_call_is_unavailable(&wallet).await;
    }
    is_healthy(&server).await;
    assert_eq!(admin_status(&server, "/metrics").await, 200);
    assert_eq!(admin_status(&server, "/statusz").await, 200);
    cluster.resume();
    until("writes succeed again", || async { wallet.set("r", 1, b"y").await.is_ok() }).await;
    // The stream has lived through it.
    assert_eq!(next(&mut stream).await.revision, 2);
    wallet.list(0).await.expect("lists");
    wallet.lock("l", true, None).await.expect("locks");
    assert!(wallet.locked("l").await.expect("looks"));
    wallet.listening().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_pool_is_unavailable_soon_and_heals_by_itself() {
    let database = migrated_database().await;
    let options = ServerOptions::postgres(&database.url()).env("DATABASE_POOL_SIZE", "2");
    // The pool is to be in use for as long as this takes.
    let server = options.env("DATABASE_STATEMENT_TIMEOUT", "15s").start();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    wallet.must_set("r", 0, b"x").await;
    let blocker = database.connect().await;
    let lock = "BEGIN; LOCK TABLE data_sync.records, data_sync.users, data_sync.locks";
    blocker.batch_execute(lock).await.expect("locks");
    let stuck: Vec<_> = (0..2)
        .map(|_| {
            let wallet = wallet.clone();
            tokio::spawn(async move { wallet.list(0).await })
        })
        .collect();
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    // Inside of its transaction the blocker would see the same answer again and again.
    let observer = database.connect().await;
    until("both connections wait", || async {
        observer.query_one(waiting, &[]).await.expect("counts").get::<_, i64>(0) >= 2
    })
    .await;
    for _ in 0..2 {
        let now = Instant::now();
        is_unavailable("ListChanges", wallet.list(0).await, now);
        let now = Instant::now();
        is_unavailable("GetLock", wallet.locked("l").await, now);
    }
    let now = Instant::now();
    is_unavailable("SetLock", wallet.lock("l", true, None).await, now);
    let now = Instant::now();
    is_unavailable("ListenChanges", wallet.listen().await.map(|_| ()), now);
    is_healthy(&server).await;
    blocker.batch_execute("ROLLBACK").await.expect("lets go");
    for call in stuck {
        // Let through, or cut by the limit of a statement or a lock: never anything else.
        if let Err(status) = within("a stuck call", call).await.expect("no panic") {
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        }
    }
    wallet.list(0).await.expect("lists");
    wallet.must_set("r", 1, b"y").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_deadline_bounds_its_wait_and_nobody_elses() {
    const DEADLINE: Duration = Duration::from_millis(300);
    let database = migrated_database().await;
    let server = ServerOptions::postgres(&database.url()).start();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    wallet.must_set("r", 0, b"x").await;
    let blocker = database.connect().await;
    blocker.batch_execute("BEGIN; LOCK TABLE data_sync.records").await.expect("locks");

    // By hand: other clients keep the deadline themselves.
    let mut hasty = RawClient::connect(server.grpc, 1024 * 1024).await;
    hasty.timeout = Some("300m");
    let is_exceeded = |what: &str, reply: &Response<RecvStream>, began: Instant| {
        let took = began.elapsed();
        let code = Code::from_bytes(reply.headers()["grpc-status"].as_bytes());
        assert_eq!(code, Code::DeadlineExceeded, "{what}");
        assert!(took >= DEADLINE && took < DEADLINE * 3, "{what} took {took:?}");
    };
    let began = Instant::now();
    let list = wallet.signed(ListChangesRequest { request_time: now(), ..Default::default() });
    let reply = hasty.answer("ListChanges", &list).await;
    is_exceeded("ListChanges", &reply, began);

    let patient = tokio::spawn({
        let wallet = wallet.clone();
        async move { wallet.set("patient", 0, b"x").await }
    });
    let began = Instant::now();
    let reply = hasty.answer("SetRecord", &wallet.set_request("hasty", 0, b"x")).await;
    is_exceeded("SetRecord", &reply, began);

    blocker.batch_execute("ROLLBACK").await.expect("lets go");
    let reply = within("the patient write", patient).await.expect("no panic").expect("accepted");
    assert!(reply.new_revision > 1, "{reply:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_refused_before_callers_without_deadline_lose_patience() {
    let database = migrated_database().await;
    let server = ServerOptions::postgres(&database.url()).env("REQUEST_TIMEOUT", "500ms").start();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let blocker = database.connect().await;
    blocker.batch_execute("BEGIN; LOCK TABLE data_sync.users").await.expect("locks");
    let began = Instant::now();
    let status = wallet.set("r", 0, b"x").await.expect_err("blocked");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(began.elapsed() < ABOUT_A_SECOND, "{:?}", began.elapsed());
}
