//! Checks of the whole service, over a store in memory.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use data_sync::{
    auth::signing::SignedRequest as _,
    limits::MAX_REQUEST_MESSAGE_BYTES,
    proto::{
        GetLockRequest, ListChangesRequest, ListenChangesRequest, SetLockRequest, SetRecordRequest,
        SetRecordStatus,
        syncer_server::{Syncer, SyncerServer},
    },
    service::SyncService,
    telemetry::metrics::Metrics,
};
use http::{Request as HttpRequest, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, StreamBody};
use prost::Message;
use tonic::{Code, Request, Status, body::Body};
use tonic_web::GrpcWebLayer;
use tower::{Layer as _, ServiceExt as _};

use super::key;

#[path = "../../tests/bench/in_memory.rs"]
mod in_memory;

const NOW_SECONDS: u32 = 1_700_000_000;
const METHODS: [&str; 5] = ["SetRecord", "ListChanges", "ListenChanges", "SetLock", "GetLock"];
const CONTENT_TYPES: [&str; 5] = [
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
    "application/grpc",
];
/// A stream is live at once; whoever waits longer for its first notification waits for ever.
const PATIENCE: Duration = Duration::from_secs(5);

thread_local! {
    static METRICS: Arc<Metrics> = Arc::new(Metrics::new());
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
}

fn service() -> SyncService {
    in_memory::service(METRICS.with(Arc::clone), NOW_SECONDS, PATIENCE)
}

/// Whatever a message says, it is answered, and never as a fault of the server's. The first byte
/// chooses the RPC and whether the request is signed and timely, the others are the message.
pub(crate) fn request(input: &[u8]) {
    let Some((choice, message)) = input.split_first() else { return };
    let valid = choice & 0x80 != 0;
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let service = service();
            match choice % 5 {
                0 => set_record(&service, message, valid).await,
                1 => {
                    let Ok(mut request) = ListChangesRequest::decode(message) else { return };
                    if valid {
                        request.request_time = NOW_SECONDS;
                        request.sign(&key());
                    }
                    blame(service.list_changes(Request::new(request)).await.err(), valid);
                }
                2 => {
                    let Ok(mut request) = ListenChangesRequest::decode(message) else { return };
                    if valid {
                        request.request_time = NOW_SECONDS;
                        request.sign(&key());
                    }
                    blame(service.listen_changes(Request::new(request)).await.err(), valid);
                }
                3 => {
                    let Ok(mut request) = SetLockRequest::decode(message) else { return };
                    if valid {
                        request.request_time = NOW_SECONDS;
                        request.sign(&key());
                    }
                    blame(service.set_lock(Request::new(request)).await.err(), valid);
                }
                _ => {
                    let Ok(mut request) = GetLockRequest::decode(message) else { return };
                    if valid {
                        request.request_time = NOW_SECONDS;
                        request.sign(&key());
                    }
                    blame(service.get_lock(Request::new(request)).await.err(), valid);
                }
            }
        });
    });
}

/// What was accepted is there as it was sent.
async fn set_record(service: &SyncService, message: &[u8], valid: bool) {
    let Ok(mut request) = SetRecordRequest::decode(message) else { return };
    if valid {
        request.request_time = NOW_SECONDS;
        request.sign(&key());
    }
    let sent = request.record.clone();
    let answer = service.set_record(Request::new(request)).await;
    if let (true, Ok(reply)) = (valid, &answer) {
        let reply = reply.get_ref();
        assert_eq!(reply.status(), SetRecordStatus::Success, "the store was empty");
        assert_eq!(reply.new_revision, 1);
        let mut request = ListChangesRequest { request_time: NOW_SECONDS, ..Default::default() };
        request.sign(&key());
        let list = service.list_changes(Request::new(request)).await.expect("a valid request");
        let stored = list.into_inner().changes;
        let sent = sent.expect("accepted, so there was a record");
        assert_eq!(stored.len(), 1);
        assert_eq!(
            (&stored[0].id, &stored[0].data, &stored[0].schema_version),
            (&sent.id, &sent.data, &sent.schema_version)
        );
    }
    blame(answer.err(), valid);
}

/// The caller is to blame for every error; one who signed is known.
fn blame(error: Option<Status>, valid: bool) {
    let Some(status) = error else { return };
    let known = [Code::InvalidArgument, Code::FailedPrecondition];
    let unknown = [Code::InvalidArgument, Code::Unauthenticated];
    let expected = if valid { known } else { unknown };
    assert!(expected.contains(&status.code()), "{status:?}");
}

/// Whatever a browser sends, it is answered with a status, in time. The first byte chooses the
/// RPC, the second the framing, the third where the body is torn into chunks.
pub(crate) fn grpc_web(input: &[u8]) {
    let [method, framing, tear, body @ ..] = input else { return };
    let method = METHODS[usize::from(*method) % METHODS.len()];
    let framing = CONTENT_TYPES[usize::from(*framing) % CONTENT_TYPES.len()];
    let chunks: Vec<Bytes> =
        body.chunks(usize::from(*tear).max(1)).map(Bytes::copy_from_slice).collect();
    let frames = chunks.into_iter().map(|chunk| Ok::<_, Status>(http_body::Frame::data(chunk)));
    let request = HttpRequest::post(format!("http://localhost/sync.Syncer/{method}"))
        .header(CONTENT_TYPE, framing)
        .body(Body::new(StreamBody::new(Frames(frames.collect()))))
        .expect("a valid request");
    let syncer = SyncerServer::new(service()).max_decoding_message_size(MAX_REQUEST_MESSAGE_BYTES);
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let answer = tokio::time::timeout(PATIENCE, is_answered(syncer, request)).await;
            assert!(answer.expect("an answer in time"), "an answer without a status");
        });
    });
}

/// Body frames that are all there at once.
struct Frames(std::collections::VecDeque<Result<http_body::Frame<Bytes>, Status>>);

impl tokio_stream::Stream for Frames {
    type Item = Result<http_body::Frame<Bytes>, Status>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Ready(self.0.pop_front())
    }
}

/// Whether the answer has a `grpc-status` in its head, or a body, which then ends in one; the body
/// of a stream that went live does not end.
async fn is_answered(syncer: SyncerServer<SyncService>, request: HttpRequest<Body>) -> bool {
    let web = GrpcWebLayer::new().layer(syncer);
    let response = web.oneshot(request).await.expect("an answer");
    if response.status() != StatusCode::OK || response.headers().contains_key("grpc-status") {
        return true;
    }
    let first = response.into_body().frame().await;
    matches!(first, Some(Ok(frame)) if frame.is_trailers() || frame.data_ref().is_some_and(|data| !data.is_empty()))
}
