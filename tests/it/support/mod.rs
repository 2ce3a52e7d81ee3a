//! What the integration tests share: real servers private to this run, signed calls, bounded waits.

pub(crate) mod book;
pub(crate) mod client;
pub(crate) mod engine;
pub(crate) mod fault_proxy;
pub(crate) mod haproxy;
pub(crate) mod history;
pub(crate) mod http;
pub(crate) mod pgbouncer;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod prometheus;
pub(crate) mod proxy;
pub(crate) mod raw;
pub(crate) mod server;
pub(crate) mod wait;
