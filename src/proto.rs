//! The generated messages and services of `proto/sync.proto`.

pub mod codec;

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::str_to_string,
    clippy::use_self,
    clippy::large_futures,
    reason = "generated code"
)]
mod generated {
    tonic::include_proto!("sync");
}

pub use generated::*;

/// The compiled descriptors of the contract, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sync.bin"));

/// The full name of the service, as health checks and metrics spell it.
pub const SERVICE_NAME: &str = "sync.Syncer";
