//! Integration tests: the real server over real sockets, one binary for all of them.
#![allow(
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test ends when something is off, and runs tasks as clients do"
)]

mod ages;
mod api_keys;
mod bad_input;
mod book;
mod chaos;
mod cli;
mod descriptors;
mod drain;
mod durability;
mod fuzz_corpus;
mod guards;
mod health;
mod limits;
mod listen;
mod locks;
mod opening;
mod outages;
mod prometheus;
// Each machine of the examples is a loopback address of its own, which only Linux has unasked.
#[cfg(target_os = "linux")]
mod proxies;
mod records;
mod replicas;
mod restores;
mod simulation;
mod stalls;
mod store_postgres;
mod support;
mod traces;
mod web;
