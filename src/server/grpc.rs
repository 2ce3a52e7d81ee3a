//! What the gRPC port serves: the RPCs, health, reflection.

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{ending::Ending, health::Health};
use crate::{
    limits,
    proto::{self, syncer_server::SyncerServer},
    service::SyncService,
};

/// Routes every service of the gRPC port. `hang_up` ends streams that would never end.
///
/// # Errors
/// If the compiled-in descriptors cannot be read.
pub(super) fn routes(
    service: SyncService,
    health: &Health,
    reflection: bool,
    hang_up: &CancellationToken,
) -> anyhow::Result<Routes> {
    let syncer =
        SyncerServer::new(service).max_decoding_message_size(limits::MAX_REQUEST_MESSAGE_BYTES);
    let mut routes =
        Routes::new(syncer).add_service(Ending::new(health.service(), hang_up.clone()));
    if reflection {
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let v1 = builder().build_v1().context("cannot build reflection")?;
        let v1alpha = builder().build_v1alpha().context("cannot build reflection v1alpha")?;
        routes = routes
            .add_service(Ending::new(v1, hang_up.clone()))
            .add_service(Ending::new(v1alpha, hang_up.clone()));
    }
    Ok(routes.prepare())
}
