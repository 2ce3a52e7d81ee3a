//! What the gRPC port serves: the RPCs, health, reflection.

use std::{
    convert::Infallible,
    fmt,
    task::{Context, Poll, ready},
};

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, server::NamedService, service::Routes};
use tower::Service;

use super::{ending::Ending, health::Health};
use crate::{
    limits,
    proto::{self, syncer_server::SyncerServer},
    service::SyncService,
};

/// Every service of the gRPC port. Calls of the one that devices wait for go straight to it: the
/// router would box their future and twice each of their bodies.
#[derive(Clone)]
pub(super) struct GrpcServices {
    syncer: SyncerServer<SyncService>,
    others: Routes,
}

impl fmt::Debug for GrpcServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcServices").finish_non_exhaustive()
    }
}

/// Whether `path` is a method of the service.
fn is_of<S: NamedService>(path: &str) -> bool {
    path.strip_prefix('/')
        .and_then(|path| path.strip_prefix(S::NAME))
        .is_some_and(|method| method.starts_with('/'))
}

impl Service<Request<Body>> for GrpcServices {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The syncer's own service is always ready.
        ready!(Service::<Request<Body>>::poll_ready(&mut self.others, context))?;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if is_of::<SyncerServer<SyncService>>(request.uri().path()) {
            self.syncer.call(request)
        } else {
            // Boxed, so that the calls of devices are not given room for it.
            Box::pin(self.others.call(request))
        }
    }
}

/// Puts every service of the gRPC port together. `hang_up` ends streams that would never end.
///
/// # Errors
/// If the compiled-in descriptors cannot be read.
pub(super) fn services(
    service: SyncService,
    health: &Health,
    reflection: bool,
    hang_up: &CancellationToken,
) -> anyhow::Result<GrpcServices> {
    let syncer =
        SyncerServer::new(service).max_decoding_message_size(limits::MAX_REQUEST_MESSAGE_BYTES);
    let mut others = Routes::new(Ending::new(health.service(), hang_up.clone()));
    if reflection {
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let v1 = builder().build_v1().context("cannot build reflection")?;
        let v1alpha = builder().build_v1alpha().context("cannot build reflection v1alpha")?;
        others = others
            .add_service(Ending::new(v1, hang_up.clone()))
            .add_service(Ending::new(v1alpha, hang_up.clone()));
    }
    Ok(GrpcServices { syncer, others: others.prepare() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_methods_of_the_service_itself_are_its_own() {
        let is_own = is_of::<SyncerServer<SyncService>>;
        assert!(is_own("/sync.Syncer/SetRecord"));
        assert!(is_own("/sync.Syncer/NoSuchMethod"));
        for other in ["/grpc.health.v1.Health/Check", "/sync.Syncer", "/sync.Syncers/X", "", "/"] {
            assert!(!is_own(other), "{other:?}");
        }
    }
}
