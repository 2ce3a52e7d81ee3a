//! What tests run against: real servers, private to this run.

pub(crate) mod pgbouncer;
pub(crate) mod postgres;
pub(crate) mod process;
