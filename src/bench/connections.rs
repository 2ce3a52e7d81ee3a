//! Connections to a server: a few callers share one, as the devices of one person do.

use anyhow::Context as _;
use tonic::{
    Request, Response, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, ClientTlsConfig, Endpoint},
};

use super::plan::Side;
use crate::{
    limits::{BENCH_CONNECT_TIMEOUT, HTTP2_WINDOW_BYTES},
    proto::{
        GetLockReply, GetLockRequest, ListChangesReply, ListChangesRequest, ListenChangesRequest,
        Notification, SetLockReply, SetLockRequest, SetRecordReply, SetRecordRequest,
        syncer_client::SyncerClient,
    },
};

/// Calls a server over one of its connections. Cloning it shares the connection.
pub(super) type Caller = SyncerClient<InterceptedService<Channel, ApiKeyHeader>>;

/// Puts the API key on each call, where there is one.
#[derive(Clone)]
pub(super) struct ApiKeyHeader(Option<MetadataValue<Ascii>>);

impl Interceptor for ApiKeyHeader {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// Opens connections for so many callers; one caller for each, connections and replicas in turn.
///
/// # Errors
/// If a URL cannot be used or a server does not answer.
pub(super) async fn open(side: &Side, callers: usize) -> anyhow::Result<Vec<Caller>> {
    open_to(&side.targets, side, callers).await
}

/// The same to the replicas that take the writes beside streams.
///
/// # Errors
/// If a URL cannot be used or a server does not answer.
pub(super) async fn open_for_writes(side: &Side, callers: usize) -> anyhow::Result<Vec<Caller>> {
    let own = &side.write_targets;
    open_to(if own.is_empty() { &side.targets } else { own }, side, callers).await
}

async fn open_to(targets: &[String], side: &Side, callers: usize) -> anyhow::Result<Vec<Caller>> {
    let per_connection = side.streams_per_connection.max(1);
    let count = callers.div_ceil(per_connection).max(targets.len().min(callers));
    let header = api_key_header(side)?;
    let mut connections = Vec::with_capacity(count);
    for target in targets.iter().cycle().take(count) {
        let channel = connect(target).await.with_context(|| format!("cannot reach {target}"))?;
        connections.push(SyncerClient::with_interceptor(channel, header.clone()));
    }
    Ok(connections.iter().cycle().take(callers).cloned().collect())
}

async fn connect(target: &str) -> anyhow::Result<Channel> {
    let mut endpoint = Endpoint::from_shared(target.to_owned())?
        .connect_timeout(BENCH_CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(HTTP2_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_WINDOW_BYTES);
    if endpoint.uri().scheme_str() == Some("https") {
        endpoint = endpoint.tls_config(ClientTlsConfig::new().with_enabled_roots())?;
    }
    Ok(endpoint.connect().await?)
}

fn api_key_header(side: &Side) -> anyhow::Result<ApiKeyHeader> {
    let Some(key) = &side.api_key else { return Ok(ApiKeyHeader(None)) };
    // The error of the conversion would show the key.
    let value = format!("Bearer {}", key.trim()).parse().ok();
    let mut value: MetadataValue<Ascii> = value.context("the API key is no header value")?;
    value.set_sensitive(true);
    Ok(ApiKeyHeader(Some(value)))
}

/// The calls, in the shape that all of them share.
macro_rules! calls {
    ($($name:ident($request:ident) -> $reply:ty;)*) => {$(
        pub(super) async fn $name(
            mut caller: Caller,
            request: $request,
        ) -> Result<Response<$reply>, Status> {
            caller.$name(request).await
        }
    )*};
}

calls! {
    set_record(SetRecordRequest) -> SetRecordReply;
    list_changes(ListChangesRequest) -> ListChangesReply;
    listen_changes(ListenChangesRequest) -> Streaming<Notification>;
    set_lock(SetLockRequest) -> SetLockReply;
    get_lock(GetLockRequest) -> GetLockReply;
}
