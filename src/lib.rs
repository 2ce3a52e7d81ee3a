//! data-sync keeps small encrypted records of one person in step across devices.
//!
//! The modules follow a request:
//!
//! ```text
//! server   listeners: gRPC, gRPC-Web, admin; life of a connection
//!   └ auth     who calls: signature, API key, revocation list
//!       └ service  what is asked: one file an RPC
//!           ├ store    where it lives: SQLite or Postgres behind one trait
//!           └ notify   who must know: hub and change feed
//! ```
//!
//! `client` is the library for applications. `ARCHITECTURE.md` holds the picture and the
//! invariants.

pub mod auth;
#[cfg(feature = "bench")]
pub mod bench;
#[cfg(all(feature = "server", feature = "client"))]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(any(feature = "server", feature = "client"))]
pub mod clock;
#[cfg(feature = "server")]
pub mod config;
pub mod limits;
#[cfg(feature = "server")]
pub mod notify;
pub mod proto;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod service;
#[cfg(feature = "server")]
pub mod store;
#[cfg(feature = "server")]
pub mod tasks;
#[cfg(feature = "server")]
pub mod telemetry;
