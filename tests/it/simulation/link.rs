//! A client's way to the replicas: signs, picks one, loses some, writes everything down.

use std::{sync::Arc, time::Duration};

use data_sync::{
    auth::signing::SignedRequest,
    clock::Clock as _,
    proto::{self, syncer_server::Syncer as _},
    service::SyncService,
};
use rand::{RngExt as _, rngs::StdRng};
use secp256k1::SecretKey;
use tokio::{sync::mpsc, time::sleep};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{
    database::SimClock,
    replica::{Item, Replica},
    world::World,
};
use crate::support::history::{Instance, LockAction, Recorder, SetOp};

/// Longest time of a message one way, in milliseconds.
const LATENCY_MS: u64 = 20;

/// One client's connection and identity.
pub(super) struct Link {
    pub(super) by: Instance,
    pub(super) recorder: Recorder,
    key: SecretKey,
    clock: SimClock,
    world: Arc<World>,
    rng: StdRng,
    /// The replica that the connection ends at.
    home: usize,
    /// Each call goes to any replica, as through a proxy that knows calls: a stream may end at
    /// another one than the lists.
    roams: bool,
    holder: Uuid,
}

impl Link {
    pub(super) fn new(
        by: Instance,
        key: SecretKey,
        world: &Arc<World>,
        clock: SimClock,
        mut rng: StdRng,
    ) -> Self {
        let home = rng.random_range(0..world.plan.replicas);
        let holder = Uuid::from_u128(rng.random());
        let roams = rng.random_bool(0.3);
        let recorder = world.recorder.clone();
        Self { by, recorder, key, clock, world: Arc::clone(world), rng, home, roams, holder }
    }

    /// Another connection, to wherever the load balancer sends it.
    pub(super) fn reconnect(&mut self) {
        self.home = self.rng.random_range(0..self.world.plan.replicas);
    }

    /// A new run of the app holds no lock.
    pub(super) fn new_holder(&mut self) {
        self.holder = Uuid::from_u128(self.rng.random());
    }

    fn now(&self) -> u32 {
        u32::try_from(self.clock.now_seconds()).expect("before 2106")
    }

    fn signed<R: SignedRequest>(&self, mut request: R) -> R {
        request.sign(&self.key);
        request
    }

    pub(super) fn set_request(&self, op: &SetOp, return_current: bool) -> proto::SetRecordRequest {
        self.signed(proto::SetRecordRequest {
            record: Some(op.record()),
            request_time: self.now(),
            client_id: op.client_id(),
            return_current,
            ..Default::default()
        })
    }

    pub(super) async fn set(
        &mut self,
        request: proto::SetRecordRequest,
    ) -> Result<proto::SetRecordReply, Status> {
        self.call(async move |service: &SyncService| {
            service.set_record(Request::new(request)).await
        })
        .await
    }

    pub(super) async fn list(&mut self, since: u64) -> Result<proto::ListChangesReply, Status> {
        let request = self.signed(proto::ListChangesRequest {
            since_revision: since,
            request_time: self.now(),
            ..Default::default()
        });
        let (recorder, by) = (self.recorder.clone(), self.by);
        let call = self.call(async move |service: &SyncService| {
            service.list_changes(Request::new(request)).await
        });
        recorder.list(by, since, call).await
    }

    pub(super) async fn lock(
        &mut self,
        name: &str,
        action: LockAction,
    ) -> Result<proto::SetLockReply, Status> {
        let (acquire, exclusive, ttl_seconds) = match action {
            LockAction::Acquire { exclusive, ttl } => {
                let seconds = u32::try_from(ttl / 1_000_000_000).expect("a short life");
                (true, exclusive, Some(seconds))
            }
            LockAction::Release => (false, false, None),
        };
        let holder = self.holder.to_string();
        let request = self.signed(proto::SetLockRequest {
            lock_name: name.to_owned(),
            instance_id: holder.clone(),
            acquire,
            exclusive,
            ttl_seconds,
            request_time: self.now(),
            ..Default::default()
        });
        let (recorder, by) = (self.recorder.clone(), self.by);
        let call = self
            .call(async move |service: &SyncService| service.set_lock(Request::new(request)).await);
        recorder.lock(by, name, &holder, action, call).await
    }

    pub(super) async fn locked(&mut self, name: &str) -> Result<proto::GetLockReply, Status> {
        let request = self.signed(proto::GetLockRequest {
            lock_name: name.to_owned(),
            request_time: self.now(),
            ..Default::default()
        });
        let (recorder, by) = (self.recorder.clone(), self.by);
        let call = self
            .call(async move |service: &SyncService| service.get_lock(Request::new(request)).await);
        recorder.locked(by, name, call).await
    }

    pub(super) async fn listen(&mut self) -> Result<mpsc::UnboundedReceiver<Item>, Status> {
        let request = self
            .signed(proto::ListenChangesRequest { request_time: self.now(), ..Default::default() });
        self.latency().await;
        self.replica()?.listen(request).await
    }

    /// The replica at the other end; the next one where there is none.
    fn replica(&mut self) -> Result<Arc<Replica>, Status> {
        if let Some(replica) = self.world.replica(self.home) {
            return Ok(replica);
        }
        self.reconnect();
        Err(Status::unavailable("the connection is refused"))
    }

    async fn latency(&mut self) {
        sleep(Duration::from_millis(self.rng.random_range(0..=LATENCY_MS))).await;
    }

    async fn call<T>(
        &mut self,
        call: impl AsyncFnOnce(&SyncService) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let lost = self.rng.random_bool(self.world.call_lost());
        let request_lost = lost && self.rng.random_bool(0.5);
        self.latency().await;
        if request_lost {
            return Err(Status::unavailable("the request is lost"));
        }
        if self.roams {
            self.reconnect();
        }
        let answer = self.replica()?.call(call).await;
        self.latency().await;
        if lost {
            return Err(Status::unavailable("the reply is lost"));
        }
        answer.map(Response::into_inner)
    }
}
