//! What the integration tests share: servers as processes, signed calls, bounded waits.

pub(crate) mod client;
pub(crate) mod engine;
pub(crate) mod postgres;
pub(crate) mod server;
pub(crate) mod wait;
