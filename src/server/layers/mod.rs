//! What happens around every call, whatever it asks: one thin service around the next.
//!
//! From the outside in: an id for the request, counting and tracing, a net under panics, the
//! codes of too large messages, the deadline. They work on HTTP requests around tonic's routes
//! and allocate nothing that a call could do without.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower::{Service, util::MapResponse};

use crate::telemetry::metrics::Metrics;

mod catch_panic;
mod deadline;
mod observe;
mod oversize;
mod request_id;
#[cfg(test)]
mod testing;

pub use catch_panic::{CatchPanic, PanicBody};
pub use deadline::{CallDeadline, Deadline, DeadlineBody};
pub use observe::{Observe, ObserveBody};
pub use request_id::{REQUEST_ID_HEADER, RequestId, SetRequestId};

/// The body of a reply that went through the whole stack.
pub type StackBody<B> = ObserveBody<PanicBody<DeadlineBody<B>>>;

/// The whole stack around a service that replies with bodies of type `B`.
pub type Stack<S, B> = SetRequestId<Observe<CatchPanic<OversizeMapped<Deadline<S>, B>>>>;

type OversizeMapped<S, B> = MapResponse<S, fn(Reply<B>) -> Reply<B>>;
type Reply<B> = Response<DeadlineBody<B>>;

/// Puts every layer around `service`, usually tonic's routes.
///
/// Unary calls end after `unary_timeout` at the latest; streams only when their caller said so.
pub fn stack<S, Q, B>(service: S, metrics: &Arc<Metrics>, unary_timeout: Duration) -> Stack<S, B>
where
    S: Service<Request<Q>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes>,
{
    let service = Deadline::new(service, unary_timeout);
    let service = MapResponse::new(service, oversize::map as fn(Reply<B>) -> Reply<B>);
    let service = CatchPanic::new(service, Arc::clone(metrics));
    SetRequestId::new(Observe::new(service, Arc::clone(metrics)))
}
