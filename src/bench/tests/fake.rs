//! The contract in a few lines, with faults at will.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::{net::TcpListener, sync::broadcast};
use tokio_stream::wrappers::{BroadcastStream, TcpListenerStream};
use tonic::{Request, Response, Status, transport::Server};

use crate::{
    auth::{signature::recover, signing::SignedRequest},
    proto::{
        self, GetLockReply, ListChangesReply, Notification, SetLockReply, SetRecordReply,
        SetRecordStatus,
        syncer_server::{Syncer, SyncerServer},
    },
    store::UserId,
    tasks::Tasks,
};

/// Notifications that may wait for a stream of the fake.
const QUEUE: usize = 1_024;

/// What is wrong with a server.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    /// Every write is a conflict.
    pub(super) conflict: bool,
    /// Each n-th call fails; 0 lets none fail.
    pub(super) fail_every: u64,
    /// Every unary call takes this long.
    pub(super) delay: Duration,
    /// No change is told.
    pub(super) mute: bool,
    /// Notifications carry no revision, as the Go server's.
    pub(super) no_revisions: bool,
}

#[derive(Debug)]
struct User {
    head: u64,
    records: HashMap<String, proto::Record>,
    changes: broadcast::Sender<Notification>,
}

impl Default for User {
    fn default() -> Self {
        Self { head: 0, records: HashMap::new(), changes: broadcast::Sender::new(QUEUE) }
    }
}

/// A server on a free port, until it is dropped.
#[derive(Debug)]
pub(super) struct Fake {
    port: u16,
    tasks: Tasks,
}

impl Fake {
    pub(super) async fn start(faults: Faults) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let tasks = Tasks::new();
        let stop = tasks.stop_signal();
        let service = SyncerServer::new(Service { faults, ..Service::default() });
        tasks.spawn("fake server", async move {
            let serving = Server::builder().add_service(service);
            let incoming = TcpListenerStream::new(socket);
            tokio::select! {
                served = serving.serve_with_incoming(incoming) => served.unwrap(),
                () = stop.cancelled() => {}
            }
        });
        Self { port, tasks }
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.tasks.stop_signal().cancel();
    }
}

#[derive(Debug, Clone, Default)]
struct Service {
    faults: Faults,
    calls: Arc<AtomicU64>,
    users: Arc<Mutex<HashMap<UserId, User>>>,
}

impl Service {
    async fn admit<R: SignedRequest>(&self, request: &R) -> Result<UserId, Status> {
        tokio::time::sleep(self.faults.delay).await;
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        if self.faults.fail_every > 0 && call.is_multiple_of(self.faults.fail_every) {
            return Err(Status::unknown("out of luck"));
        }
        recover(request).map(|(user, _)| user).map_err(|_| Status::unauthenticated("who?"))
    }

    fn with<T>(&self, user: UserId, act: impl FnOnce(&mut User) -> T) -> T {
        act(self.users.lock().unwrap().entry(user).or_default())
    }
}

#[tonic::async_trait]
impl Syncer for Service {
    type ListenChangesStream = Pin<Box<dyn Stream<Item = Result<Notification, Status>> + Send>>;

    async fn set_record(
        &self,
        request: Request<proto::SetRecordRequest>,
    ) -> Result<Response<SetRecordReply>, Status> {
        let request = request.into_inner();
        let user = self.admit(&request).await?;
        let record = request.record.unwrap_or_default();
        Ok(Response::new(self.with(user, |user| {
            let held = user.records.get(&record.id).map(|held| held.revision);
            if self.faults.conflict || held.is_some_and(|held| held != record.revision) {
                let status = SetRecordStatus::Conflict.into();
                return SetRecordReply { status, ..SetRecordReply::default() };
            }
            user.head += 1;
            let record = proto::Record { revision: user.head, ..record };
            user.records.insert(record.id.clone(), record);
            let revision = if self.faults.no_revisions { 0 } else { user.head };
            if !self.faults.mute {
                // Nobody listens: nobody is told.
                let _ = user.changes.send(Notification { client_id: request.client_id, revision });
            }
            SetRecordReply { new_revision: user.head, ..SetRecordReply::default() }
        })))
    }

    async fn list_changes(
        &self,
        request: Request<proto::ListChangesRequest>,
    ) -> Result<Response<ListChangesReply>, Status> {
        let request = request.into_inner();
        let user = self.admit(&request).await?;
        let since = request.since_revision;
        let changes = self.with(user, |user| {
            user.records.values().filter(|record| record.revision > since).cloned().collect()
        });
        Ok(Response::new(ListChangesReply { changes, ..ListChangesReply::default() }))
    }

    async fn listen_changes(
        &self,
        request: Request<proto::ListenChangesRequest>,
    ) -> Result<Response<Self::ListenChangesStream>, Status> {
        let user = self.admit(&request.into_inner()).await?;
        let (changes, head) = self.with(user, |user| (user.changes.subscribe(), user.head));
        let revision = if self.faults.no_revisions { 0 } else { head };
        let live = stream::iter([Ok(Notification { client_id: None, revision })]);
        let changes = BroadcastStream::new(changes)
            .map(|change| change.map_err(|_| Status::resource_exhausted("too slow")));
        Ok(Response::new(Box::pin(live.chain(changes))))
    }

    async fn set_lock(
        &self,
        request: Request<proto::SetLockRequest>,
    ) -> Result<Response<SetLockReply>, Status> {
        self.admit(&request.into_inner()).await?;
        Ok(Response::new(SetLockReply::default()))
    }

    async fn get_lock(
        &self,
        request: Request<proto::GetLockRequest>,
    ) -> Result<Response<GetLockReply>, Status> {
        self.admit(&request.into_inner()).await?;
        Ok(Response::new(GetLockReply::default()))
    }
}
