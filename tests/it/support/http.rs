//! Plain HTTP to the ports that speak it.

use reqwest::{Client, ClientBuilder};

use super::{
    server::Server,
    wait::{until, within},
};

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

/// The answer to a GET of the admin port: status and text.
pub(crate) async fn get(server: &Server, path: &str) -> (u16, String) {
    let url = format!("http://{}{path}", server.admin);
    let response = within(path, http1().get(url).send()).await.expect("answers");
    (response.status().as_u16(), within(path, response.text()).await.expect("text"))
}

/// The value of one series of a server's metrics.
pub(crate) async fn metric(server: &Server, series: &str) -> f64 {
    let (_, page) = get(server, "/metrics").await;
    let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {series} in\n{page}")).parse().expect("a number")
}

/// The sum of all series of a metric whose labels hold each of `labels`, such as `op="heads"`.
pub(crate) async fn metric_sum(server: &Server, name: &str, labels: &[&str]) -> f64 {
    let (_, page) = get(server, "/metrics").await;
    let series = page.lines().filter_map(|line| line.strip_prefix(name)).filter(|line| {
        line.starts_with(['{', ' ']) && labels.iter().all(|label| line.contains(label))
    });
    let value = |line: &str| {
        let value = line.rsplit(' ').next().expect("a value");
        value.parse::<f64>().expect("a number")
    };
    series.map(value).sum()
}

/// Waits until a series has a value.
pub(crate) async fn metric_becomes(server: &Server, series: &str, value: f64) {
    until(series, || async { (metric(server, series).await - value).abs() < f64::EPSILON }).await;
}
