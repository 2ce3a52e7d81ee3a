//! Fetches and keeps the list of revoked API keys.
//!
//! The list is a text of decimal serial numbers, separated by commas. Only a text that is wholly
//! such a list replaces the one at hand: an error page or a half-sent answer changes nothing.

use std::{collections::HashSet, error::Error as _, fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{ETAG, HeaderValue, IF_NONE_MATCH},
    redirect::Policy,
};
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::serial::{Serial, canonical_decimal};
use crate::{
    clock::Clock,
    config::{RevocationConfig, RevocationPolicy},
    limits::{
        MAX_REVOCATION_LIST_BYTES, MAX_REVOCATION_REDIRECTS, REVOCATION_FETCH_TIMEOUT,
        REVOCATION_FIRST_RETRY,
    },
    telemetry::metrics::Metrics,
};

/// Share of a pause by which it is cut at random, so that replicas do not ask all at once.
const JITTER: f64 = 0.2;

/// Why the fetcher cannot be set up.
#[derive(Debug, Error)]
pub enum RevocationSetupError {
    /// The address is none.
    #[error("CRL_URL is not a URL")]
    Url,
    /// No HTTP client.
    #[error("cannot set up the client for the revocation list: {0}")]
    Client(String),
}

/// Why a fetch gave no list.
#[derive(Debug, Error)]
pub enum FetchError {
    /// No whole answer.
    #[error("{}", describe(.0))]
    Http(#[from] reqwest::Error),
    /// An answer other than the list.
    #[error("the server answered with status {0}")]
    Status(StatusCode),
    /// Over the limit.
    #[error("the list is longer than {MAX_REVOCATION_LIST_BYTES} bytes")]
    TooLong,
    /// Not a list.
    #[error("entry {0} is not a decimal number")]
    Entry(usize),
}

/// An HTTP error with its causes and without the URL, which may hold a password.
fn describe(error: &reqwest::Error) -> String {
    let mut text = String::from(if error.is_timeout() { "timed out" } else { "request failed" });
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// What the list says about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not on the list, or there is none yet and that is good enough.
    Good,
    /// On the list.
    Revoked,
    /// There is no list yet, and that is not good enough.
    Unknown,
}

struct List {
    serials: HashSet<Box<str>>,
    etag: Option<HeaderValue>,
}

/// The list of revoked serial numbers, as last fetched.
pub struct RevocationList {
    client: Client,
    url: Url,
    policy: RevocationPolicy,
    refresh: Duration,
    list: ArcSwapOption<List>,
    /// Told whenever the numbers on the list are others than before.
    changed: watch::Sender<()>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for RevocationList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevocationList")
            .field("policy", &self.policy)
            .field("entries", &self.entries())
            .finish_non_exhaustive()
    }
}

impl RevocationList {
    /// Prepares to fetch; nothing is fetched yet.
    ///
    /// # Errors
    /// If the address is no URL or the system gives no client.
    pub fn new(
        config: &RevocationConfig,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, RevocationSetupError> {
        let url = Url::parse(&config.url).map_err(|_| RevocationSetupError::Url)?;
        Ok(Self {
            client: http_client(&url, REVOCATION_FETCH_TIMEOUT)?,
            url,
            policy: config.policy,
            refresh: config.refresh,
            list: ArcSwapOption::empty(),
            changed: watch::Sender::new(()),
            clock,
            metrics,
        })
    }

    /// What the list says about a key. Takes no lock.
    #[must_use]
    pub fn standing(&self, serial: &Serial) -> Standing {
        match (&*self.list.load(), self.policy) {
            (Some(list), _) if list.serials.contains(serial.as_str()) => Standing::Revoked,
            (Some(_), _) | (None, RevocationPolicy::Open) => Standing::Good,
            (None, RevocationPolicy::Closed) => Standing::Unknown,
        }
    }

    /// Number of entries; `None` while the list was never fetched.
    #[must_use]
    pub fn entries(&self) -> Option<usize> {
        self.list.load().as_ref().map(|list| list.serials.len())
    }

    /// Hears of every change of the list.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Fetches the list once, within [`REVOCATION_FETCH_TIMEOUT`]. A failure is logged and
    /// counted and leaves the list as it is. To be awaited once before anything is served.
    ///
    /// # Errors
    /// Why there is no new list.
    pub async fn fetch_once(&self) -> Result<(), FetchError> {
        let outcome = self.fetch().await;
        match &outcome {
            Ok(()) => self.metrics.revocation_list_last_success.set(self.now_seconds()),
            Err(error) => {
                self.metrics.revocation_fetch_failures.inc();
                let kept = self.entries();
                match (kept, self.policy) {
                    (Some(entries), _) => tracing::warn!(
                        %error, entries, "cannot fetch the revocation list, the last one is kept"
                    ),
                    (None, RevocationPolicy::Open) => tracing::error!(
                        %error, "no revocation list was ever fetched: revoked API keys are accepted"
                    ),
                    (None, RevocationPolicy::Closed) => tracing::error!(
                        %error, "no revocation list was ever fetched: every API key is refused"
                    ),
                }
            }
        }
        outcome
    }

    /// Keeps the list fresh until told to stop.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let keep_fresh = async {
            let mut retry = REVOCATION_FIRST_RETRY;
            loop {
                let pause = if self.entries().is_some() { self.refresh } else { retry };
                tokio::time::sleep(jittered(pause.min(self.refresh))).await;
                // Already logged and counted; the next round is the answer to it.
                if self.fetch_once().await.is_err() {
                    retry = retry.saturating_mul(2);
                }
            }
        };
        stop.run_until_cancelled(keep_fresh).await;
    }

    async fn fetch(&self) -> Result<(), FetchError> {
        let last = self.list.load_full();
        let mut request = self.client.get(self.url.clone());
        if let Some(etag) = last.as_ref().and_then(|list| list.etag.clone()) {
            request = request.header(IF_NONE_MATCH, etag);
        }
        let response = request.send().await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED if last.is_some() => return Ok(()),
            status => return Err(FetchError::Status(status)),
        }
        let etag = response.headers().get(ETAG).cloned();
        let text = read_bounded(response).await?;
        let serials = parse(&text)?;
        let changed = last.is_none_or(|last| last.serials != serials);
        let entries = serials.len();
        self.metrics.revocation_list_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        self.list.store(Some(Arc::new(List { serials, etag })));
        if changed {
            tracing::info!(entries, "the revocation list has changed");
            self.changed.send_replace(());
        }
        Ok(())
    }

    #[allow(clippy::cast_precision_loss, reason = "exact until the year 285428751")]
    fn now_seconds(&self) -> f64 {
        self.clock.now_seconds() as f64
    }
}

/// A client that trusts the public authorities and the system's, never leaves https for http, and
/// gives up after `timeout` over connecting, redirects and the whole answer.
fn http_client(url: &Url, timeout: Duration) -> Result<Client, RevocationSetupError> {
    let failed = |error: &dyn fmt::Display| RevocationSetupError::Client(error.to_string());
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(url.scheme() == "https")
        .redirect(Policy::limited(MAX_REVOCATION_REDIRECTS))
        .timeout(timeout)
        .user_agent(concat!("data-sync/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| failed(&error))
}

async fn read_bounded(mut response: Response) -> Result<Vec<u8>, FetchError> {
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if text.len() + chunk.len() > MAX_REVOCATION_LIST_BYTES {
            return Err(FetchError::TooLong);
        }
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}

/// Reads a whole list. Space around entries, line ends and empty entries do not matter.
///
/// # Errors
/// Names the first entry that is no decimal number.
pub fn parse(text: &[u8]) -> Result<HashSet<Box<str>>, FetchError> {
    let entries = text.split(|byte| *byte == b',').enumerate();
    let entries = entries.map(|(index, entry)| (index + 1, entry.trim_ascii()));
    entries
        .filter(|(_, entry)| !entry.is_empty())
        .map(|(number, entry)| {
            let decimal = std::str::from_utf8(entry).ok().and_then(canonical_decimal);
            decimal.map(Box::from).ok_or(FetchError::Entry(number))
        })
        .collect()
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 - JITTER * rand::random::<f64>())
}
