//! Integration tests: the real server over real sockets.

mod store_postgres;
mod support;
