//! Plain HTTP to the ports that speak it.

use reqwest::{Client, ClientBuilder};

/// A client to be finished; no TLS is spoken, but the builder insists on a provider for it.
fn builder() -> ClientBuilder {
    // An error says that another test was faster.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
}

/// A client of HTTP/1.1.
pub(crate) fn http1() -> Client {
    builder().http1_only().build().expect("a client")
}

/// A client of HTTP/2 without TLS.
pub(crate) fn http2() -> Client {
    builder().http2_prior_knowledge().build().expect("a client")
}
