//! What happens around every call, whatever it asks: one thin service around the next.
//!
//! From the outside in: an id for the request, counting and tracing, a net under panics, the
//! codes of too large messages, the deadline. They work on HTTP requests around tonic's routes
//! and allocate nothing that a call could do without.

use std::{sync::Arc, time::Duration};

use crate::telemetry::metrics::Metrics;

mod catch_panic;
mod deadline;
mod observe;
mod oversize;
mod request_id;
#[cfg(test)]
mod testing;

pub use catch_panic::{CatchPanic, PanicBody};
pub use deadline::{Deadline, DeadlineBody};
pub use observe::{Observe, ObserveBody};
pub use oversize::Oversize;
pub use request_id::{REQUEST_ID_HEADER, RequestId, SetRequestId};

/// The body of a reply that went through the whole stack.
pub type StackBody<B> = ObserveBody<PanicBody<DeadlineBody<B>>>;

/// The whole stack around a service.
pub type Stack<S> = SetRequestId<Observe<CatchPanic<Oversize<Deadline<S>>>>>;

/// Puts every layer around `service`, usually tonic's routes.
///
/// Unary calls end after `unary_timeout` at the latest; streams only when their caller said so.
/// A reply's body becomes a [`StackBody`].
pub fn stack<S>(service: S, metrics: &Arc<Metrics>, unary_timeout: Duration) -> Stack<S> {
    let service = Oversize::new(Deadline::new(service, unary_timeout));
    let service = CatchPanic::new(service, Arc::clone(metrics));
    SetRequestId::new(Observe::new(service, Arc::clone(metrics)))
}

#[cfg(test)]
mod tests;
