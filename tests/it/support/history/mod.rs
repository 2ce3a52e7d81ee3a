//! What clients did and saw, and whether a correct service could have answered so.
//!
//! Tests write a [`History`] through a [`Recorder`] while they disturb the service, and hand it to
//! [`check`], which needs nothing else: a failing history can be stored as JSON lines and checked
//! again. Because every accepted write is answered with its revision, the order of writes is given
//! and checking is near-linear: no search for an order that fits.

mod check;
mod event;
mod recorder;

pub(crate) use check::{Rule, Violation, check};
pub(crate) use event::{
    ClientState, Event, History, Instance, Limits, Listed, LockAction, Nanos, Settings, State,
};
pub(crate) use recorder::{Recorder, SetOp, Told};
