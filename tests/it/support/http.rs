//! Plain HTTP to the ports that speak it.

use std::net::SocketAddr;

use reqwest::{Client, ClientBuilder};

use super::wait::within;

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

/// The answer to a GET of an admin port: status and text.
pub(crate) async fn get(admin: SocketAddr, path: &str) -> (u16, String) {
    let url = format!("http://{admin}{path}");
    let response = within(path, http1().get(url).send()).await.expect("answers");
    (response.status().as_u16(), within(path, response.text()).await.expect("text"))
}

/// The value of one series; its name with its labels.
pub(crate) async fn metric(admin: SocketAddr, series: &str) -> f64 {
    let (_, text) = get(admin, "/metrics").await;
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("{series} is missing in\n{text}"));
    value.parse().expect("a number")
}
