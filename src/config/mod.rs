//! Every setting: its flag, environment variable, default, unit and meaning, once.
//!
//! A flag wins over the environment, the environment over the default; an empty value counts as
//! unset. Values are parsed here and nowhere else, and all problems are reported together.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use crate::{service::rate::Rates, store::Quotas};

mod args;
mod client;
mod reader;
mod resolve;

pub use args::{ServeArgs, StoreArgs, TelemetryArgs};
pub use client::{ClientArgs, ClientConfig, KeySource};

/// Exit status for a command line or configuration that cannot be used (`EX_USAGE`).
pub const EXIT_USAGE: u8 = 64;

/// A value that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl Secret {
    /// Wraps a value.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Which engine keeps the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineConfig {
    /// An embedded file.
    Sqlite(SqliteConfig),
    /// A Postgres server.
    Postgres(PostgresConfig),
}

/// How to open the SQLite file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteConfig {
    /// The file itself.
    pub path: PathBuf,
}

/// How to reach Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    /// For reads, writes and locks; may lead through a transaction pooler.
    pub url: Secret,
    /// For LISTEN and migrations; leads to the server itself.
    pub direct_url: Secret,
    /// Authorities of the server's certificate.
    pub ca_file: Option<PathBuf>,
    /// Most pooled connections for reads and locks.
    pub pool_size: usize,
    /// Connections that write batches.
    pub writers: usize,
    /// Longest time of one statement.
    pub statement_timeout: Duration,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
}

/// Which store, and how much a user may keep in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// The engine.
    pub engine: EngineConfig,
    /// Limits of one user.
    pub quotas: Quotas,
}

/// What `serve` does about missing migrations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrateMode {
    /// Applies them.
    Auto,
    /// Serves NOT_SERVING until somebody has applied them.
    Wait,
    /// Refuses to start.
    Off,
}

/// What holds while the revocation list was never fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RevocationPolicy {
    /// Every otherwise valid key passes.
    Open,
    /// No key passes.
    Closed,
}

/// How API keys are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKeyConfig {
    /// The authority's certificate, DER.
    pub ca_der: Vec<u8>,
    /// Where revoked serials are listed.
    pub revocation: Option<RevocationConfig>,
}

/// Where the revocation list is and how it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationConfig {
    /// `http` or `https`.
    pub url: String,
    /// While it was never fetched.
    pub policy: RevocationPolicy,
    /// Time between two fetches.
    pub refresh: Duration,
}

/// How lines are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For collectors.
    Json,
}

/// Logs and traces.
#[derive(Debug, Clone, PartialEq)]
pub struct TelemetryConfig {
    /// Filter directives.
    pub log_level: String,
    /// Format of a line.
    pub log_format: LogFormat,
    /// Where traces go, if anywhere.
    pub otlp_endpoint: Option<String>,
    /// Share of undecided traces kept.
    pub trace_sample_ratio: f64,
}

/// Time given to each step of stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownConfig {
    /// Still serving, not ready.
    pub delay: Duration,
    /// Streams are ended one after another.
    pub spread: Duration,
    /// Running calls finish.
    pub drain: Duration,
}

/// The whole configuration of `serve`, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// gRPC port.
    pub grpc_address: SocketAddr,
    /// gRPC-Web port.
    pub web_address: SocketAddr,
    /// Admin port.
    pub admin_address: SocketAddr,
    /// Origins that browsers may call from; empty is any.
    pub cors_origins: Vec<String>,
    /// Whether reflection is served.
    pub reflection: bool,
    /// Streams of one HTTP/2 connection.
    pub max_concurrent_streams: u32,
    /// The store.
    pub store: StoreConfig,
    /// Missing migrations.
    pub migrate: MigrateMode,
    /// API keys; none are asked for without.
    pub api_key: Option<ApiKeyConfig>,
    /// Longest unary call.
    pub request_timeout: Duration,
    /// Greatest age of a stream, before jitter.
    pub stream_max_age: Option<Duration>,
    /// Greatest age of a connection, before jitter.
    pub connection_max_age: Option<Duration>,
    /// Open connections.
    pub max_connections: usize,
    /// Open connections from one address.
    pub max_connections_per_address: usize,
    /// Silence before a connection's first request is complete.
    pub handshake_timeout: Duration,
    /// How long a peer may take nothing of what it is sent.
    pub stall_timeout: Duration,
    /// Whether public connections begin with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// Proxies whose `x-forwarded-for` is believed.
    pub trusted_proxy_hops: usize,
    /// How often one caller may call.
    pub rates: Rates,
    /// Open streams.
    pub max_streams: usize,
    /// Open streams of one user.
    pub max_streams_per_user: usize,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// Stopping.
    pub shutdown: ShutdownConfig,
}

impl Config {
    /// Time between two fetches of the revocation list, where there is one.
    #[must_use]
    pub fn revocation_refresh(&self) -> Option<Duration> {
        let revocation = self.api_key.as_ref()?.revocation.as_ref()?;
        Some(revocation.refresh)
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the configuration has {} problem(s):", self.0.len())?;
        for problem in &self.0 {
            writeln!(f, "  - {problem}")?;
        }
        f.write_str("see `data-sync --help` for every setting")
    }
}

impl std::error::Error for ConfigErrors {}
