//! The client against a server that fails on request. What a real server does is tested with the
//! real server.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, transport::Server};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::{
    proto::{
        GetLockReply, ListChangesReply, ListenChangesRequest, SetLockReply, SetRecordReply,
        syncer_server::{Syncer, SyncerServer},
    },
    tasks::Tasks,
};

/// What the server is about to answer, and what it was asked.
#[derive(Debug, Default)]
struct Script {
    set_record: VecDeque<Result<SetRecordReply, Status>>,
    list_changes: VecDeque<Result<ListChangesReply, Status>>,
    listen: VecDeque<Vec<Result<Notification, Status>>>,
    set_lock: VecDeque<Result<SetLockReply, Status>>,
    writes: Vec<SetRecordRequest>,
    sinces: Vec<u64>,
    locks: Vec<SetLockRequest>,
    authorization: Option<String>,
    deadlines: Vec<bool>,
}

#[derive(Debug, Clone, Default)]
struct Fake(Arc<Mutex<Script>>);

impl Fake {
    fn with<T>(&self, change: impl FnOnce(&mut Script) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }
}

#[tonic::async_trait]
impl Syncer for Fake {
    type ListenChangesStream = BoxStream<'static, Result<Notification, Status>>;

    async fn set_record(
        &self,
        request: Request<SetRecordRequest>,
    ) -> Result<Response<SetRecordReply>, Status> {
        let answer = self.with(|script| {
            let header = request.metadata().get("authorization");
            script.authorization = header.map(|value| value.to_str().unwrap().to_owned());
            script.deadlines.push(request.metadata().contains_key("grpc-timeout"));
            script.writes.push(request.into_inner());
            script.set_record.pop_front()
        });
        match answer {
            Some(answer) => answer.map(Response::new),
            None => std::future::pending().await,
        }
    }

    async fn list_changes(
        &self,
        request: Request<ListChangesRequest>,
    ) -> Result<Response<ListChangesReply>, Status> {
        let answer = self.with(|script| {
            script.sinces.push(request.into_inner().since_revision);
            script.list_changes.pop_front()
        });
        answer.unwrap_or_else(|| Ok(ListChangesReply::default())).map(Response::new)
    }

    async fn listen_changes(
        &self,
        _: Request<ListenChangesRequest>,
    ) -> Result<Response<Self::ListenChangesStream>, Status> {
        let told = self.with(|script| script.listen.pop_front());
        let told = told.ok_or_else(|| Status::unavailable("nothing more to tell"))?;
        Ok(Response::new(futures_util::stream::iter(told).boxed()))
    }

    async fn set_lock(
        &self,
        request: Request<SetLockRequest>,
    ) -> Result<Response<SetLockReply>, Status> {
        let answer = self.with(|script| {
            script.locks.push(request.into_inner());
            script.set_lock.pop_front()
        });
        answer.unwrap_or_else(|| Ok(SetLockReply::default())).map(Response::new)
    }

    async fn get_lock(&self, _: Request<GetLockRequest>) -> Result<Response<GetLockReply>, Status> {
        Err(Status::unauthenticated("no"))
    }
}

/// Starts the fake on a free port; it stops with the runtime of the test.
async fn serve(fake: &Fake) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = SyncerServer::new(fake.clone());
    Tasks::new().spawn("fake server", async move {
        let incoming = TcpListenerStream::new(listener);
        Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    address
}

async fn start(script: Script, options: Options) -> (Fake, Client) {
    let fake = Fake(Arc::new(Mutex::new(script)));
    let url = format!("http://{}", serve(&fake).await);
    let client = Client::connect(&url, Signer::generate(), options).await.unwrap();
    (fake, client)
}

fn stored(revision: u64) -> Result<SetRecordReply, Status> {
    Ok(SetRecordReply { new_revision: revision, ..SetRecordReply::default() })
}

fn unavailable<T>() -> Result<T, Status> {
    Err(Status::unavailable("restarting"))
}

fn record(id: &str, revision: u64) -> Record {
    Record { id: id.to_owned(), revision, ..Record::default() }
}

fn page(revisions: &[u64], has_more: bool) -> Result<ListChangesReply, Status> {
    let changes = revisions.iter().map(|revision| record("r", *revision)).collect();
    Ok(ListChangesReply { changes, has_more, head_revision: 9 })
}

#[tokio::test]
async fn a_write_is_repeated_with_the_same_signed_request() {
    let answers = VecDeque::from([unavailable(), unavailable(), stored(7)]);
    let script = Script { set_record: answers, ..Script::default() };
    let (fake, client) = start(script, Options::default()).await;
    let answer = client.set_record(record("a", 3)).await.unwrap();
    assert_eq!(answer, SetRecord::Stored { revision: 7 });
    fake.with(|script| {
        assert_eq!(script.writes.len(), 3);
        assert!(script.writes.iter().all(|write| *write == script.writes[0]));
        assert!(script.deadlines.iter().all(|sent| *sent), "each attempt carries its deadline");
    });
}

#[tokio::test]
async fn attempts_are_bounded() {
    let answers = (0..10).map(|_| unavailable()).collect();
    let script = Script { set_record: answers, ..Script::default() };
    let (fake, client) = start(script, Options { attempts: 2, ..Options::default() }).await;
    let error = client.set_record(record("a", 0)).await.unwrap_err();
    assert_eq!(error.status().unwrap().code(), Code::Unavailable);
    assert_eq!(fake.with(|script| script.writes.len()), 2);
}

#[tokio::test]
async fn a_refusal_is_not_repeated_and_keeps_its_details() {
    let details = ErrorDetails::with_bad_request_violation("record.id", "has 65 bytes");
    let refusal = Status::with_error_details(Code::InvalidArgument, "invalid record id", details);
    let answers = VecDeque::from([Err(refusal), stored(1)]);
    let script = Script { set_record: answers, ..Script::default() };
    let (fake, client) = start(script, Options::default()).await;
    let error = client.set_record(record("a", 0)).await.unwrap_err();
    let violations = error.details().bad_request().unwrap().field_violations.clone();
    assert_eq!(violations[0].field, "record.id");
    assert_eq!(fake.with(|script| script.writes.len()), 1);
}

#[tokio::test]
async fn the_pause_asked_for_is_kept_to() {
    let pause = Duration::from_millis(700);
    let details = ErrorDetails::with_retry_info(Some(pause));
    let refusal = Status::with_error_details(Code::Unavailable, "busy", details);
    let answers = VecDeque::from([Err(refusal), stored(1)]);
    let script = Script { set_record: answers, ..Script::default() };
    let (_fake, client) = start(script, Options::default()).await;
    let started = Instant::now();
    client.set_record(record("a", 0)).await.unwrap();
    assert!(started.elapsed() >= pause);
}

#[tokio::test]
async fn a_call_without_an_answer_ends_at_its_deadline() {
    let options = Options { timeout: Duration::from_millis(200), ..Options::default() };
    let (_fake, client) = start(Script::default(), options).await;
    let error = client.set_record(record("a", 0)).await.unwrap_err();
    assert_eq!(error.status().unwrap().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_conflict_is_an_answer() {
    let reply = SetRecordReply {
        status: SetRecordStatus::Conflict.into(),
        new_revision: 0,
        current: Some(record("a", 5)),
    };
    let script = Script { set_record: VecDeque::from([Ok(reply)]), ..Script::default() };
    let (fake, client) = start(script, Options::default()).await;
    let answer = client.set_record(record("a", 3)).await.unwrap();
    assert_eq!(answer, SetRecord::Conflict { current: Some(record("a", 5)) });
    assert!(fake.with(|script| script.writes[0].return_current));
}

#[tokio::test]
async fn the_api_key_goes_with_each_call_and_into_no_debug_text() {
    let options = Options { api_key: Some("TUlJ\n".to_owned()), ..Options::default() };
    assert!(!format!("{options:?}").contains("TUlJ"));
    let script = Script { set_record: VecDeque::from([stored(1)]), ..Script::default() };
    let (fake, client) = start(script, options).await;
    client.set_record(record("a", 0)).await.unwrap();
    assert_eq!(fake.with(|script| script.authorization.take()).as_deref(), Some("Bearer TUlJ"));
    assert!(!format!("{client:?}").contains("TUlJ"));
}

#[tokio::test]
async fn all_pages_are_listed() {
    let pages = VecDeque::from([page(&[2, 4], true), page(&[9], false)]);
    let script = Script { list_changes: pages, ..Script::default() };
    let (fake, client) = start(script, Options::default()).await;
    let pages: Vec<Changes> = client.changes_since(1).try_collect().await.unwrap();
    let revisions = pages.iter().flat_map(|page| &page.records).map(|record| record.revision);
    assert_eq!(revisions.collect::<Vec<_>>(), [2, 4, 9]);
    assert_eq!(fake.with(|script| script.sinces.clone()), [1, 4]);
}

#[tokio::test]
async fn a_page_that_leads_nowhere_ends_the_listing() {
    let script = Script { list_changes: VecDeque::from([page(&[], true)]), ..Script::default() };
    let (_fake, client) = start(script, Options::default()).await;
    let pages: Result<Vec<Changes>, Error> = client.changes_since(1).try_collect().await;
    assert!(matches!(pages, Err(Error::Protocol(_))), "{pages:?}");
}

#[tokio::test]
async fn a_subscription_comes_back_after_any_end() {
    let change = Notification { client_id: Some("other".to_owned()), revision: 3 };
    let first = Notification::default();
    let listen = VecDeque::from([
        // One ends in an error, one cleanly, one before it was ever live.
        vec![Ok(first.clone()), Ok(change.clone()), Err(Status::unavailable("drain"))],
        vec![Ok(first.clone())],
        vec![],
        vec![Ok(first), Ok(change.clone())],
    ]);
    let (_fake, client) = start(Script { listen, ..Script::default() }, Options::default()).await;
    let events = client.watch().take(9).map(|event| match event {
        WatchEvent::Live => "live",
        WatchEvent::Changed(notification) if notification == change => "changed",
        WatchEvent::Changed(_) => "something else",
        WatchEvent::Lost { .. } => "lost",
    });
    let events: Vec<&str> = tokio::time::timeout(Duration::from_secs(20), events.collect())
        .await
        .expect("the subscription comes back");
    let expected = ["live", "changed", "lost", "live", "lost", "lost", "live", "changed", "lost"];
    assert_eq!(events, expected);
}

#[tokio::test]
async fn a_held_lock_is_an_answer_and_its_ttl_is_rounded_up() {
    let held = Err(Status::failed_precondition("lock held by another instance"));
    let script = Script { set_lock: VecDeque::from([held]), ..Script::default() };
    let (fake, client) = start(script, Options::default()).await;
    let lock = Lock {
        name: "sweep".to_owned(),
        instance: Uuid::new_v4(),
        exclusive: true,
        ttl: Some(Duration::from_millis(1_001)),
    };
    assert_eq!(client.acquire_lock(&lock).await.unwrap(), AcquireLock::Held);
    assert_eq!(fake.with(|script| script.locks[0].ttl_seconds), Some(2));
}

#[tokio::test]
async fn a_server_that_does_not_listen_is_reported_as_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let url = format!("http://{address}");
    let refused = Client::connect(&url, Signer::generate(), Options::default()).await;
    assert!(matches!(refused, Err(Error::Connect { .. })), "{refused:?}");

    let options = Options { attempts: 1, ..Options::default() };
    let client = Client::lazy(&url, Signer::generate(), options).unwrap();
    let error = client.list_changes(0).await.unwrap_err();
    assert_eq!(error.status().unwrap().code(), Code::Unavailable);
}

#[tokio::test]
async fn an_address_without_scheme_or_host_is_refused() {
    for url in ["", "localhost:8080", "ftp://localhost", "http://", "/x"] {
        let refused = Client::lazy(url, Signer::generate(), Options::default());
        assert!(matches!(refused, Err(Error::Address { .. })), "{url:?}: {refused:?}");
    }
}
