//! The whole stack around tonic's routes with a real service.

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use tonic::{Code, Status, service::Routes};
use tower::Service as _;

use super::*;
use crate::{
    limits::{MAX_REQUEST_MESSAGE_BYTES, UNARY_TIMEOUT},
    proto::{
        GetLockReply, GetLockRequest, ListChangesReply, ListChangesRequest, ListenChangesRequest,
        Notification, SetLockReply, SetLockRequest, SetRecordReply, SetRecordRequest,
        syncer_server::{Syncer, SyncerServer},
    },
    service::call::CallDeadline,
    telemetry::rpc::Rpc,
};

/// Grants locks, sends two notifications, and breaks down when asked for changes.
struct Fixture;

#[tonic::async_trait]
impl Syncer for Fixture {
    async fn set_record(
        &self,
        _: tonic::Request<SetRecordRequest>,
    ) -> Result<tonic::Response<SetRecordReply>, Status> {
        std::future::pending().await
    }

    async fn list_changes(
        &self,
        _: tonic::Request<ListChangesRequest>,
    ) -> Result<tonic::Response<ListChangesReply>, Status> {
        panic!("on purpose");
    }

    type ListenChangesStream = BoxStream<'static, Result<Notification, Status>>;

    async fn listen_changes(
        &self,
        _: tonic::Request<ListenChangesRequest>,
    ) -> Result<tonic::Response<Self::ListenChangesStream>, Status> {
        let end = Status::unavailable("draining");
        let items = [Ok(Notification::default()), Ok(Notification::default()), Err(end)];
        Ok(tonic::Response::new(Box::pin(stream::iter(items))))
    }

    async fn set_lock(
        &self,
        request: tonic::Request<SetLockRequest>,
    ) -> Result<tonic::Response<SetLockReply>, Status> {
        let extensions = request.extensions();
        if extensions.get::<RequestId>().is_none() || extensions.get::<CallDeadline>().is_none() {
            return Err(Status::internal("the handler is told too little"));
        }
        Ok(tonic::Response::new(SetLockReply { fencing_token: 9, ..SetLockReply::default() }))
    }

    async fn get_lock(
        &self,
        _: tonic::Request<GetLockRequest>,
    ) -> Result<tonic::Response<GetLockReply>, Status> {
        Err(Status::failed_precondition("no"))
    }
}

/// What a caller sees.
struct Answer {
    status: Status,
    request_id: String,
    body: Bytes,
}

async fn call(metrics: &Arc<Metrics>, method: &str, message: &[u8]) -> Answer {
    let limited = SyncerServer::new(Fixture).max_decoding_message_size(MAX_REQUEST_MESSAGE_BYTES);
    let routes = Routes::new(limited).prepare();
    let mut stack = stack(routes, metrics, UNARY_TIMEOUT);
    let length = u32::try_from(message.len()).expect("a small message").to_be_bytes();
    let framed = [&[0_u8][..], &length, message].concat();
    let request = Request::post(format!("/sync.Syncer/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(framed)))
        .expect("a request");
    let Ok(response) = stack.call(request).await;
    let (parts, body) = response.into_parts();
    let collected = body.collect().await.expect("no broken body");
    let status = Status::from_header_map(&parts.headers)
        .or_else(|| collected.trailers().and_then(Status::from_header_map));
    let request_id = parts.headers[REQUEST_ID_HEADER].to_str().expect("text").to_owned();
    Answer { status: status.expect("a status"), request_id, body: collected.to_bytes() }
}

fn counted(metrics: &Metrics, method: &str, code: Code) -> u64 {
    metrics.call(Rpc::of_path(&format!("/sync.Syncer/{method}"))).handled(code).get()
}

#[tokio::test]
async fn a_call_goes_through_the_whole_stack() {
    let metrics = Arc::new(Metrics::new());
    let answer = call(&metrics, "SetLock", &SetLockRequest::default().encode_to_vec()).await;
    assert_eq!(answer.status.code(), Code::Ok, "{:?}", answer.status);
    assert_eq!(answer.request_id.len(), 32);
    let reply = SetLockReply::decode(&answer.body[5..]).expect("a reply");
    assert_eq!(reply.fencing_token, 9);
    assert_eq!(counted(&metrics, "SetLock", Code::Ok), 1);
}

#[tokio::test]
async fn an_error_is_passed_on_and_counted() {
    let metrics = Arc::new(Metrics::new());
    let answer = call(&metrics, "GetLock", &[]).await;
    assert_eq!(answer.status.code(), Code::FailedPrecondition);
    assert_eq!(counted(&metrics, "GetLock", Code::FailedPrecondition), 1);
}

#[tokio::test]
async fn a_message_above_the_limit_is_resource_exhausted() {
    let metrics = Arc::new(Metrics::new());
    let answer = call(&metrics, "GetLock", &vec![0; MAX_REQUEST_MESSAGE_BYTES + 1]).await;
    assert_eq!(answer.status.code(), Code::ResourceExhausted);
    assert_eq!(answer.status.message(), "the message is larger than 262144 bytes");
    assert_eq!(counted(&metrics, "GetLock", Code::ResourceExhausted), 1);
    assert_eq!(counted(&metrics, "GetLock", Code::OutOfRange), 0);
}

#[tokio::test]
async fn a_panic_is_internal_and_names_the_request() {
    let metrics = Arc::new(Metrics::new());
    let answer = call(&metrics, "ListChanges", &[]).await;
    assert_eq!(answer.status.code(), Code::Internal);
    let expected = format!("internal error, request id {}", answer.request_id);
    assert_eq!(answer.status.message(), expected);
    assert_eq!(counted(&metrics, "ListChanges", Code::Internal), 1);
    assert_eq!(metrics.panics.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_ends_at_its_deadline() {
    let metrics = Arc::new(Metrics::new());
    let answer = call(&metrics, "SetRecord", &[]).await;
    assert_eq!(answer.status.code(), Code::DeadlineExceeded);
    assert_eq!(counted(&metrics, "SetRecord", Code::DeadlineExceeded), 1);
}

#[tokio::test]
async fn a_stream_is_counted_message_by_message() {
    let metrics = Arc::new(Metrics::new());
    let answer = call(&metrics, "ListenChanges", &[]).await;
    assert_eq!(answer.status.code(), Code::Unavailable);
    assert_eq!(counted(&metrics, "ListenChanges", Code::Unavailable), 1);
    let listen = metrics.call(Rpc::of_path("/sync.Syncer/ListenChanges"));
    assert_eq!(listen.messages_sent.get(), 2);
}

#[tokio::test]
async fn a_method_that_does_not_exist_is_unimplemented() {
    let metrics = Arc::new(Metrics::new());
    let answer = call(&metrics, "DropAll", &[]).await;
    assert_eq!(answer.status.code(), Code::Unimplemented);
    assert_eq!(counted(&metrics, "DropAll", Code::Unimplemented), 1);
    assert_eq!(Rpc::of_path("/sync.Syncer/DropAll").method, "unknown");
}
