use std::future;

use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use tower::{ServiceExt as _, service_fn};

use super::*;
use crate::server::layers::testing::{SilentBody, request};

const UNARY: &str = "/sync.Syncer/SetRecord";
const STREAM: &str = "/sync.Syncer/ListenChanges";

/// A message of `length` bytes as it is sent.
fn message(length: u32) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(length.to_be_bytes());
    bytes.extend(std::iter::repeat_n(7, usize::try_from(length).expect("a small message")));
    bytes
}

/// A body of these messages, each in its own frame, and a last status.
fn body_of(messages: u32, code: Code) -> impl Body<Data = Bytes, Error = Infallible> {
    let data = (0..messages).map(|length| Ok(Frame::data(Bytes::from(message(length)))));
    let last = trailers(&Status::new(code, ""));
    StreamBody::new(futures_util::stream::iter(data.chain([Ok(last)])).boxed())
}

fn counted(metrics: &Metrics, path: &str, code: Code) -> u64 {
    metrics.call(Rpc::of_path(path)).handled(code).get()
}

#[test]
fn messages_are_counted_by_their_headers() {
    assert_eq!(messages_in(&[]), 0);
    assert_eq!(messages_in(&message(0)), 1);
    assert_eq!(messages_in(&[message(3), message(0), message(300)].concat()), 3);
    assert_eq!(messages_in(&message(9)[..7]), 1);
}

#[tokio::test]
async fn a_call_that_is_refused_ends_with_its_headers() {
    let metrics = Arc::new(Metrics::new());
    let handler = service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Status::not_found("").into_http::<tonic::body::Body>())
    });
    let service = Observe::new(handler, Arc::clone(&metrics));
    let Ok(response) = service.oneshot(request(UNARY)).await;
    assert_eq!(counted(&metrics, UNARY, Code::NotFound), 1);
    drop(response);
    let counters = metrics.call(Rpc::of_path(UNARY));
    assert_eq!((counters.started.get(), counters.ended()), (1, 1));
    assert_eq!(counters.messages_sent.get(), 0);
}

#[tokio::test]
async fn a_unary_call_ends_with_its_trailers_and_is_timed() {
    let metrics = Arc::new(Metrics::new());
    let handler = service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(body_of(1, Code::Ok)))
    });
    let service = Observe::new(handler, Arc::clone(&metrics));
    let Ok(response) = service.oneshot(request(UNARY)).await;
    let counters = metrics.call(Rpc::of_path(UNARY));
    assert_eq!(counters.ended(), 0);
    response.into_body().collect().await.expect("a whole body");
    assert_eq!(counted(&metrics, UNARY, Code::Ok), 1);
    assert_eq!(counters.seconds.as_ref().map(prometheus::Histogram::get_sample_count), Some(1));
    assert_eq!((counters.messages_received.get(), counters.messages_sent.get()), (1, 1));
}

#[tokio::test]
async fn the_messages_of_a_stream_are_counted() {
    let metrics = Arc::new(Metrics::new());
    let handler = service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(body_of(5, Code::Unavailable)))
    });
    let service = Observe::new(handler, Arc::clone(&metrics));
    let Ok(response) = service.oneshot(request(STREAM)).await;
    response.into_body().collect().await.expect("a whole body");
    assert_eq!(counted(&metrics, STREAM, Code::Unavailable), 1);
    assert_eq!(metrics.call(Rpc::of_path(STREAM)).messages_sent.get(), 5);
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_its_call() {
    let metrics = Arc::new(Metrics::new());
    let handler =
        service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(SilentBody)) });
    let service = Observe::new(handler, Arc::clone(&metrics));
    let Ok(response) = service.oneshot(request(STREAM)).await;
    assert_eq!(counted(&metrics, STREAM, Code::Cancelled), 0);
    drop(response);
    assert_eq!(counted(&metrics, STREAM, Code::Cancelled), 1);

    let handler =
        service_fn(|_: Request<()>| future::pending::<Result<Response<SilentBody>, Infallible>>());
    let never = Observe::new(handler, Arc::clone(&metrics)).oneshot(request(UNARY));
    assert!(futures_util::poll!(Box::pin(never)).is_pending());
    assert_eq!(counted(&metrics, UNARY, Code::Cancelled), 1);
}

#[tokio::test]
async fn a_path_made_up_by_a_caller_makes_no_series() {
    let metrics = Arc::new(Metrics::new());
    let handler = service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Status::unimplemented("").into_http::<tonic::body::Body>())
    });
    let before = metrics.encode().lines().count();
    for path in ["/made/up", "/sync.Syncer/Made", "/"] {
        let service = Observe::new(handler, Arc::clone(&metrics));
        let Ok(_) = service.oneshot(request(path)).await;
    }
    assert_eq!(counted(&metrics, "/made/up", Code::Unimplemented), 3);
    assert_eq!(metrics.encode().lines().count(), before);
}
