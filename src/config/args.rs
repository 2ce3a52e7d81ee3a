//! The settings as they arrive: text, from flags or the environment.

use clap::Args;

use super::Secret;

/// Settings of the store, shared by every command that opens it.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Store")]
pub struct StoreArgs {
    /// Postgres URL (postgres://user:password@host:5432/name?sslmode=verify-full).
    /// Without one the service keeps its data in an SQLite file.
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<Secret>,

    /// File that holds the Postgres URL.
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "PATH")]
    pub database_url_file: Option<String>,

    /// Postgres URL for LISTEN and for migrations, past any transaction pooler
    /// [default: the Postgres URL].
    #[arg(long, env = "LISTEN_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub listen_database_url: Option<Secret>,

    /// File that holds the Postgres URL for LISTEN and for migrations.
    #[arg(long, env = "LISTEN_DATABASE_URL_FILE", value_name = "PATH")]
    pub listen_database_url_file: Option<String>,

    /// PEM file of the authorities that sign the Postgres server's certificate
    /// [default: the public ones].
    #[arg(long, env = "DATABASE_CA_FILE", value_name = "PATH")]
    pub database_ca_file: Option<String>,

    /// Most connections of this replica for reads and locks; writers and LISTEN have their own.
    #[arg(long, env = "DATABASE_POOL_SIZE", value_name = "CONNECTIONS", default_value = "8")]
    pub database_pool_size: String,

    /// Connections that write batches of records.
    #[arg(long, env = "DATABASE_WRITERS", value_name = "CONNECTIONS", default_value = "2")]
    pub database_writers: String,

    /// Longest time one statement may take in Postgres.
    #[arg(long, env = "DATABASE_STATEMENT_TIMEOUT", value_name = "DURATION", default_value = "5s")]
    pub database_statement_timeout: String,

    /// Longest wait for a connection to Postgres.
    #[arg(
        long,
        env = "DATABASE_CONNECT_TIMEOUT",
        value_name = "DURATION",
        default_value = "900ms"
    )]
    pub database_connect_timeout: String,

    /// Directory of the SQLite file db.sqlite; made if missing.
    #[arg(long, env = "SQLITE_DIR_PATH", value_name = "PATH", default_value = "db")]
    pub sqlite_dir_path: String,

    /// Most records of one user; 0 is no limit.
    #[arg(long, env = "MAX_USER_RECORDS", value_name = "RECORDS", default_value = "100000")]
    pub max_user_records: String,

    /// Most bytes of record data of one user; 0 is no limit.
    #[arg(long, env = "MAX_USER_BYTES", value_name = "BYTES", default_value = "268435456")]
    pub max_user_bytes: String,

    /// Most live locks of one user; 0 is no limit.
    #[arg(long, env = "MAX_USER_LOCKS", value_name = "LOCKS", default_value = "1000")]
    pub max_user_locks: String,
}

/// Settings of the service.
#[derive(Args, Debug, Clone, Default)]
pub struct ServeArgs {
    /// Address of the gRPC port.
    #[arg(
        long,
        env = "GRPC_LISTEN_ADDRESS",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:8080",
        help_heading = "Listeners"
    )]
    pub grpc_listen_address: String,

    /// Address of the gRPC-Web port.
    #[arg(
        long,
        env = "GRPC_WEB_LISTEN_ADDRESS",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:8081",
        help_heading = "Listeners"
    )]
    pub grpc_web_listen_address: String,

    /// Address of the admin port: metrics, probes, status. Not for the public.
    #[arg(
        long,
        env = "ADMIN_LISTEN_ADDRESS",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:9090",
        help_heading = "Listeners"
    )]
    pub admin_listen_address: String,

    /// Origins that browsers may call from, separated by commas; * is any.
    #[arg(
        long,
        env = "CORS_ALLOWED_ORIGINS",
        value_name = "ORIGINS",
        default_value = "*",
        help_heading = "Listeners"
    )]
    pub cors_allowed_origins: String,

    /// Serve gRPC reflection (true or false).
    #[arg(
        long,
        env = "GRPC_REFLECTION",
        value_name = "BOOL",
        default_value = "true",
        help_heading = "Listeners"
    )]
    pub grpc_reflection: String,

    /// Streams that one HTTP/2 connection may hold open.
    #[arg(
        long,
        env = "MAX_CONCURRENT_STREAMS",
        value_name = "STREAMS",
        default_value = "100",
        help_heading = "Listeners"
    )]
    pub max_concurrent_streams: String,

    /// Whether every connection to the public ports begins with a header of the PROXY protocol,
    /// version 1 or 2 (on). Then only the proxy may be able to reach them: the header is believed.
    #[arg(
        long,
        env = "PROXY_PROTOCOL",
        value_name = "off|on",
        default_value = "off",
        help_heading = "Listeners"
    )]
    pub proxy_protocol: String,

    /// Proxies in front of the public ports that append to x-forwarded-for: the client is who the
    /// first of them names. 0 is the address of the connection.
    #[arg(
        long,
        env = "TRUSTED_PROXY_HOPS",
        value_name = "PROXIES",
        default_value = "0",
        help_heading = "Listeners"
    )]
    pub trusted_proxy_hops: String,

    #[command(flatten)]
    #[allow(missing_docs, reason = "documented on the type")]
    pub store: StoreArgs,

    /// What to do about missing migrations at start: apply them (auto), wait until somebody has
    /// (wait), or refuse to start (off).
    #[arg(
        long,
        env = "MIGRATE",
        value_name = "auto|wait|off",
        default_value = "auto",
        help_heading = "Store"
    )]
    pub migrate: String,

    /// Certificate of the authority that signs API keys, as base64 of its DER form.
    /// Without one no API key is asked for.
    #[arg(
        long,
        env = "CA_CERT",
        value_name = "BASE64",
        hide_env_values = true,
        help_heading = "Authentication"
    )]
    pub ca_cert: Option<Secret>,

    /// File that holds that certificate, as base64 of its DER form.
    #[arg(long, env = "CA_CERT_FILE", value_name = "PATH", help_heading = "Authentication")]
    pub ca_cert_file: Option<String>,

    /// Where the revocation list is: decimal serial numbers, separated by commas.
    #[arg(long, env = "CRL_URL", value_name = "URL", help_heading = "Authentication")]
    pub crl_url: Option<String>,

    /// While the revocation list was never fetched: let every valid key in (open) or none (closed).
    #[arg(
        long,
        env = "CRL_POLICY",
        value_name = "open|closed",
        default_value = "open",
        help_heading = "Authentication"
    )]
    pub crl_policy: String,

    /// Time between two fetches of the revocation list.
    #[arg(
        long,
        env = "CRL_REFRESH",
        value_name = "DURATION",
        default_value = "5m",
        help_heading = "Authentication"
    )]
    pub crl_refresh: String,

    /// Longest time a call may take when its caller sets no deadline.
    #[arg(
        long,
        env = "REQUEST_TIMEOUT",
        value_name = "DURATION",
        default_value = "10s",
        help_heading = "Limits"
    )]
    pub request_timeout: String,

    /// Greatest age of a ListenChanges stream, ±20 %; 0s is no limit.
    #[arg(
        long,
        env = "STREAM_MAX_AGE",
        value_name = "DURATION",
        default_value = "1h",
        help_heading = "Limits"
    )]
    pub stream_max_age: String,

    /// Age (±20 %) after which a connection takes no further calls; 0s is no limit.
    #[arg(
        long,
        env = "CONNECTION_MAX_AGE",
        value_name = "DURATION",
        default_value = "30m",
        help_heading = "Limits"
    )]
    pub connection_max_age: String,

    /// Open connections of this replica.
    #[arg(
        long,
        env = "MAX_CONNECTIONS",
        value_name = "CONNECTIONS",
        default_value = "50000",
        help_heading = "Limits"
    )]
    pub max_connections: String,

    /// Open connections from one address (IPv4) or /64 (IPv6); 0 is no limit.
    /// Behind a proxy that does not speak the PROXY protocol they all come from its address.
    #[arg(
        long,
        env = "MAX_CONNECTIONS_PER_ADDRESS",
        value_name = "CONNECTIONS",
        default_value = "0",
        help_heading = "Limits"
    )]
    pub max_connections_per_address: String,

    /// Silence after which a connection is cut before its first request is complete.
    #[arg(
        long,
        env = "HANDSHAKE_TIMEOUT",
        value_name = "DURATION",
        default_value = "10s",
        help_heading = "Limits"
    )]
    pub handshake_timeout: String,

    /// How long a client may take nothing of what it is sent before its stream is cut, or its
    /// connection.
    #[arg(
        long,
        env = "STALL_TIMEOUT",
        value_name = "DURATION",
        default_value = "30s",
        help_heading = "Limits"
    )]
    pub stall_timeout: String,

    /// Requests a second from one client address (IPv4) or /64 (IPv6), after a pause thirty times
    /// as many at once; 0 is no limit. Behind a proxy that hides its clients they all share one.
    #[arg(
        long,
        env = "RATE_LIMIT_PER_ADDRESS",
        value_name = "REQUESTS",
        default_value = "10000",
        help_heading = "Limits"
    )]
    pub rate_limit_per_address: String,

    /// Requests a second of one user, after a pause thirty times as many at once; 0 is no limit.
    #[arg(
        long,
        env = "RATE_LIMIT_PER_USER",
        value_name = "REQUESTS",
        default_value = "2000",
        help_heading = "Limits"
    )]
    pub rate_limit_per_user: String,

    /// Open ListenChanges streams of this replica; 0 is no limit.
    #[arg(
        long,
        env = "MAX_STREAMS",
        value_name = "STREAMS",
        default_value = "50000",
        help_heading = "Limits"
    )]
    pub max_streams: String,

    /// Open ListenChanges streams of one user on this replica, of which the oldest gives way; 0 is
    /// no limit.
    #[arg(
        long,
        env = "MAX_STREAMS_PER_USER",
        value_name = "STREAMS",
        default_value = "32",
        help_heading = "Limits"
    )]
    pub max_streams_per_user: String,

    #[command(flatten)]
    #[allow(missing_docs, reason = "documented on the type")]
    pub telemetry: TelemetryArgs,

    /// After the signal to stop: how long to go on serving while load balancers look away.
    #[arg(
        long,
        env = "SHUTDOWN_DELAY",
        value_name = "DURATION",
        default_value = "5s",
        help_heading = "Shutdown"
    )]
    pub shutdown_delay: String,

    /// Time over which open streams are then ended, in random order.
    #[arg(
        long,
        env = "SHUTDOWN_SPREAD",
        value_name = "DURATION",
        default_value = "5s",
        help_heading = "Shutdown"
    )]
    pub shutdown_spread: String,

    /// Time that running calls are then given before connections are cut.
    #[arg(
        long,
        env = "SHUTDOWN_DRAIN",
        value_name = "DURATION",
        default_value = "10s",
        help_heading = "Shutdown"
    )]
    pub shutdown_drain: String,
}

/// Settings of logs and traces.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Telemetry")]
pub struct TelemetryArgs {
    /// What to log: a level, or directives such as info,data_sync::store=debug.
    #[arg(long, env = "LOG_LEVEL", value_name = "FILTER", default_value = "info")]
    pub log_level: String,

    /// Log format; auto is text on a terminal and json elsewhere.
    #[arg(long, env = "LOG_FORMAT", value_name = "auto|text|json", default_value = "auto")]
    pub log_format: String,

    /// OTLP/gRPC endpoint that traces are sent to, such as http://collector:4317.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,

    /// Share of traces kept that no caller decided about, from 0 to 1.
    #[arg(long, env = "TRACE_SAMPLE_RATIO", value_name = "RATIO", default_value = "0.01")]
    pub trace_sample_ratio: String,
}
