//! What is asked: one file an RPC, over traits only.
//!
//! A request passes, from cheap to dear: its limits ([`validate`]), the rate of its address, the
//! API key, the curve, the rate of its user, the store. Nothing in here knows an engine, and nothing but [`error`] makes a status.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::{
    auth::{Authenticator, api_key::ApiKey, signing::SignedRequest},
    clock::Clock,
    notify::{ChangeFeed, Hub},
    proto,
    store::{RequestDigest, Store, UserId},
    telemetry::metrics::Metrics,
};

pub mod call;
pub mod delivery;
pub mod error;
mod get_lock;
mod list_changes;
mod listen_changes;
pub mod nudge;
pub mod places;
pub mod rate;
mod set_lock;
mod set_record;
mod validate;

pub use error::{ServiceError, StreamEnd};
pub use listen_changes::StreamLife;

use call::Call;
use nudge::Nudger;
use places::StreamPlaces;
use rate::RateLimits;

/// Everything the service works with.
#[derive(Debug)]
pub struct ServiceParts {
    /// Records, heads and locks.
    pub store: Arc<dyn Store>,
    /// Where nudges go.
    pub feed: Arc<dyn ChangeFeed>,
    /// Where streams wait.
    pub hub: Arc<Hub>,
    /// Who may call.
    pub auth: Arc<Authenticator>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where things are counted.
    pub metrics: Arc<Metrics>,
    /// Wakes clients that have not seen everything.
    pub nudger: Nudger,
    /// How streams end.
    pub streams: StreamLife,
    /// How many streams may be open.
    pub places: Arc<StreamPlaces>,
    /// How often callers may call.
    pub rates: RateLimits,
    /// Longest unary call whose caller set no deadline.
    pub request_timeout: Duration,
}

/// The five RPCs. Cloning it is cheap.
#[derive(Clone)]
pub struct SyncService(Arc<ServiceParts>);

impl fmt::Debug for SyncService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncService").finish_non_exhaustive()
    }
}

/// Who calls, proven by a signature.
#[derive(Debug)]
struct Caller {
    user: UserId,
    digest: RequestDigest,
    api_key: Option<ApiKey>,
}

impl SyncService {
    /// Puts the service together.
    #[must_use]
    pub fn new(parts: ServiceParts) -> Self {
        Self(Arc::new(parts))
    }

    fn now_seconds(&self) -> u64 {
        self.0.clock.now_seconds()
    }

    /// Finds out who calls, and counts the call. Comes after every check that is cheaper.
    fn authenticate<R: SignedRequest>(
        &self,
        call: &Call,
        request: &R,
    ) -> Result<Caller, ServiceError> {
        let ServiceParts { auth, rates, metrics, .. } = self.0.as_ref();
        rates.admit_address(call.peer, metrics)?;
        let api_key = auth.check_api_key(call.authorization.as_deref())?;
        if let Some(key) = &api_key {
            tracing::Span::current().record("api_key", tracing::field::display(key.hash));
        }
        let (user, digest) = auth.recover_user(request)?;
        rates.admit_user(user, metrics)?;
        Ok(Caller { user, digest, api_key })
    }
}

#[tonic::async_trait]
impl proto::syncer_server::Syncer for SyncService {
    type ListenChangesStream =
        Pin<Box<dyn Stream<Item = Result<proto::Notification, Status>> + Send>>;

    async fn set_record(
        &self,
        request: Request<proto::SetRecordRequest>,
    ) -> Result<Response<proto::SetRecordReply>, Status> {
        let (call, request) = Call::split(request, self.0.request_timeout);
        Ok(Response::new(self.handle_set_record(&call, request).await?))
    }

    async fn list_changes(
        &self,
        request: Request<proto::ListChangesRequest>,
    ) -> Result<Response<proto::ListChangesReply>, Status> {
        let (call, request) = Call::split(request, self.0.request_timeout);
        Ok(Response::new(self.handle_list_changes(&call, &request).await?))
    }

    async fn listen_changes(
        &self,
        request: Request<proto::ListenChangesRequest>,
    ) -> Result<Response<Self::ListenChangesStream>, Status> {
        let (call, request) = Call::split(request, self.0.request_timeout);
        Ok(Response::new(Box::pin(self.handle_listen_changes(&call, &request).await?)))
    }

    async fn set_lock(
        &self,
        request: Request<proto::SetLockRequest>,
    ) -> Result<Response<proto::SetLockReply>, Status> {
        let (call, request) = Call::split(request, self.0.request_timeout);
        Ok(Response::new(self.handle_set_lock(&call, request).await?))
    }

    async fn get_lock(
        &self,
        request: Request<proto::GetLockRequest>,
    ) -> Result<Response<proto::GetLockReply>, Status> {
        let (call, request) = Call::split(request, self.0.request_timeout);
        Ok(Response::new(self.handle_get_lock(&call, &request).await?))
    }
}
