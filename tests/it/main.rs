//! Integration tests: the real server over real sockets.

mod cli;
mod store_postgres;
mod support;
