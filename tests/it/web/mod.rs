//! The gRPC-Web port: its framings, its headers for browsers, and a browser itself.

mod browser;
mod framing;
