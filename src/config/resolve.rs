//! From text to a checked configuration: which settings go together and what they default to.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::{
    ApiKeyConfig, Config, ConfigErrors, EngineConfig, LogFormat, MigrateMode, PostgresConfig,
    RevocationConfig, RevocationPolicy, Secret, ServeArgs, ShutdownConfig, SqliteConfig, StoreArgs,
    StoreConfig, TelemetryArgs, TelemetryConfig, reader::Reader,
};
use crate::{limits, service::rate::Rates, store::Quotas};

const fn any_address(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), port)
}

impl StoreArgs {
    /// Checks the settings of the store.
    ///
    /// # Errors
    /// Every problem found.
    pub fn resolve(&self) -> Result<StoreConfig, ConfigErrors> {
        let mut reader = Reader::default();
        let config = self.read(&mut reader);
        reader.finish(config)
    }

    fn read(&self, reader: &mut Reader) -> StoreConfig {
        let quotas = Quotas {
            max_records: reader.limit("MAX_USER_RECORDS", &self.max_user_records, 100_000),
            max_bytes: reader.limit("MAX_USER_BYTES", &self.max_user_bytes, 268_435_456),
            max_locks: reader.limit("MAX_USER_LOCKS", &self.max_user_locks, 1_000),
        };
        let url = reader.secret(
            "DATABASE_URL",
            self.database_url.as_ref(),
            self.database_url_file.as_deref(),
        );
        let direct_url = reader.secret(
            "LISTEN_DATABASE_URL",
            self.listen_database_url.as_ref(),
            self.listen_database_url_file.as_deref(),
        );
        let engine = match url {
            Some(url) => EngineConfig::Postgres(self.read_postgres(reader, url, direct_url)),
            None => EngineConfig::Sqlite(self.read_sqlite()),
        };
        StoreConfig { engine, quotas }
    }

    fn read_sqlite(&self) -> SqliteConfig {
        let directory = match self.sqlite_dir_path.trim() {
            "" => "db",
            directory => directory,
        };
        SqliteConfig { path: PathBuf::from(directory).join("db.sqlite") }
    }

    fn read_postgres(
        &self,
        reader: &mut Reader,
        url: Secret,
        direct_url: Option<Secret>,
    ) -> PostgresConfig {
        for (name, url) in
            [("DATABASE_URL", Some(&url)), ("LISTEN_DATABASE_URL", direct_url.as_ref())]
        {
            let is_postgres = |url: &Secret| {
                url.expose().starts_with("postgres://") || url.expose().starts_with("postgresql://")
            };
            if url.is_some_and(|url| !is_postgres(url)) {
                reader.problems.push(format!("{name} does not begin with postgres://"));
            }
        }
        let ca_file =
            self.database_ca_file.as_deref().map(str::trim).filter(|path| !path.is_empty());
        PostgresConfig {
            direct_url: direct_url.unwrap_or_else(|| url.clone()),
            url,
            ca_file: ca_file.map(PathBuf::from),
            pool_size: reader
                .count("DATABASE_POOL_SIZE", &self.database_pool_size, 8, (1, 1_000))
                .into(),
            writers: reader.count("DATABASE_WRITERS", &self.database_writers, 2, (1, 16)).into(),
            statement_timeout: reader.duration(
                "DATABASE_STATEMENT_TIMEOUT",
                &self.database_statement_timeout,
                Duration::from_secs(5),
            ),
            connect_timeout: reader.duration(
                "DATABASE_CONNECT_TIMEOUT",
                &self.database_connect_timeout,
                Duration::from_millis(900),
            ),
        }
    }
}

impl TelemetryArgs {
    fn read(&self, reader: &mut Reader) -> TelemetryConfig {
        let formats =
            [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
        let ratio = reader.parse("TRACE_SAMPLE_RATIO", &self.trace_sample_ratio, 0.01, "a number");
        if !(0.0..=1.0).contains(&ratio) {
            reader.problems.push(format!("TRACE_SAMPLE_RATIO: {ratio} is not from 0 to 1"));
        }
        let log_level = match self.log_level.trim() {
            "" => "info",
            level => level,
        };
        if let Err(problem) = crate::telemetry::validate_filter(log_level) {
            reader.problems.push(format!("LOG_LEVEL: {problem}"));
        }
        let endpoint = self.otlp_endpoint.as_deref().map(str::trim).filter(|url| !url.is_empty());
        if let Some(url) = endpoint
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            let problem = "OTEL_EXPORTER_OTLP_ENDPOINT does not begin with http:// or https://";
            reader.problems.push(problem.to_owned());
        }
        TelemetryConfig {
            log_level: log_level.to_owned(),
            log_format: reader.choice("LOG_FORMAT", &self.log_format, &formats, LogFormat::Auto),
            otlp_endpoint: endpoint.map(str::to_owned),
            trace_sample_ratio: ratio,
        }
    }
}

impl ServeArgs {
    /// Checks every setting of `serve`.
    ///
    /// # Errors
    /// Every problem found.
    pub fn resolve(&self) -> Result<Config, ConfigErrors> {
        let mut reader = Reader::default();
        let r = &mut reader;
        let modes =
            [("auto", MigrateMode::Auto), ("wait", MigrateMode::Wait), ("off", MigrateMode::Off)];
        let config = Config {
            grpc_address: r.address(
                "GRPC_LISTEN_ADDRESS",
                &self.grpc_listen_address,
                any_address(8080),
            ),
            web_address: r.address(
                "GRPC_WEB_LISTEN_ADDRESS",
                &self.grpc_web_listen_address,
                any_address(8081),
            ),
            admin_address: r.address(
                "ADMIN_LISTEN_ADDRESS",
                &self.admin_listen_address,
                any_address(9090),
            ),
            cors_origins: self.read_origins(),
            reflection: r.switch("GRPC_REFLECTION", &self.grpc_reflection, true),
            max_concurrent_streams: r
                .count("MAX_CONCURRENT_STREAMS", &self.max_concurrent_streams, 100, (1, 10_000))
                .into(),
            store: self.store.read(r),
            migrate: r.choice("MIGRATE", &self.migrate, &modes, MigrateMode::Auto),
            api_key: self.read_api_key(r),
            request_timeout: r.duration(
                "REQUEST_TIMEOUT",
                &self.request_timeout,
                limits::UNARY_TIMEOUT,
            ),
            stream_max_age: r.age(
                "STREAM_MAX_AGE",
                &self.stream_max_age,
                Duration::from_secs(3_600),
            ),
            connection_max_age: r.age(
                "CONNECTION_MAX_AGE",
                &self.connection_max_age,
                Duration::from_secs(1_800),
            ),
            max_connections: r
                .size("MAX_CONNECTIONS", &self.max_connections, 50_000)
                .unwrap_or(usize::MAX),
            max_connections_per_address: r
                .size("MAX_CONNECTIONS_PER_ADDRESS", &self.max_connections_per_address, 0)
                .unwrap_or(usize::MAX),
            handshake_timeout: r.positive(
                "HANDSHAKE_TIMEOUT",
                &self.handshake_timeout,
                limits::HANDSHAKE_TIMEOUT,
            ),
            stall_timeout: r.positive("STALL_TIMEOUT", &self.stall_timeout, limits::STALL_TIMEOUT),
            proxy_protocol: r.choice(
                "PROXY_PROTOCOL",
                &self.proxy_protocol,
                &[("off", false), ("on", true)],
                false,
            ),
            trusted_proxy_hops: r
                .count("TRUSTED_PROXY_HOPS", &self.trusted_proxy_hops, 0, (0, 16))
                .into(),
            rates: self.read_rates(r),
            max_streams: r
                .size("MAX_STREAMS", &self.max_streams, limits::MAX_STREAMS)
                .unwrap_or(usize::MAX),
            max_streams_per_user: r
                .size(
                    "MAX_STREAMS_PER_USER",
                    &self.max_streams_per_user,
                    limits::MAX_STREAMS_PER_USER,
                )
                .unwrap_or(usize::MAX),
            telemetry: self.telemetry.read(r),
            shutdown: ShutdownConfig {
                delay: r.duration("SHUTDOWN_DELAY", &self.shutdown_delay, Duration::from_secs(5)),
                spread: r.duration(
                    "SHUTDOWN_SPREAD",
                    &self.shutdown_spread,
                    Duration::from_secs(5),
                ),
                drain: r.duration("SHUTDOWN_DRAIN", &self.shutdown_drain, Duration::from_secs(10)),
            },
        };
        reader.finish(config)
    }

    fn read_rates(&self, reader: &mut Reader) -> Rates {
        let mut rate = |name, value: &str, default| {
            let rate = reader.number(name, value, default, (0, limits::MAX_RATE_LIMIT));
            (rate > 0).then_some(rate)
        };
        Rates {
            per_address: rate(
                "RATE_LIMIT_PER_ADDRESS",
                &self.rate_limit_per_address,
                limits::RATE_LIMIT_PER_ADDRESS,
            ),
            per_user: rate(
                "RATE_LIMIT_PER_USER",
                &self.rate_limit_per_user,
                limits::RATE_LIMIT_PER_USER,
            ),
        }
    }

    fn read_origins(&self) -> Vec<String> {
        let origins = self.cors_allowed_origins.split(',').map(str::trim);
        let origins: Vec<String> =
            origins.filter(|origin| !origin.is_empty()).map(str::to_owned).collect();
        if origins.iter().any(|origin| origin == "*") { Vec::new() } else { origins }
    }

    fn read_api_key(&self, reader: &mut Reader) -> Option<ApiKeyConfig> {
        let policies = [("open", RevocationPolicy::Open), ("closed", RevocationPolicy::Closed)];
        let policy =
            reader.choice("CRL_POLICY", &self.crl_policy, &policies, RevocationPolicy::Open);
        let refresh = reader.duration("CRL_REFRESH", &self.crl_refresh, Duration::from_secs(300));
        if refresh < Duration::from_secs(1) {
            reader.problems.push("CRL_REFRESH: must be at least 1s".to_owned());
        }
        let url = self.crl_url.as_deref().map(str::trim).filter(|url| !url.is_empty());
        if let Some(url) = url
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            reader.problems.push("CRL_URL does not begin with http:// or https://".to_owned());
        }
        let ca_cert =
            reader.secret("CA_CERT", self.ca_cert.as_ref(), self.ca_cert_file.as_deref())?;
        let ca_der = crate::auth::api_key::decode_ca(ca_cert.expose());
        match ca_der {
            Ok(ca_der) => Some(ApiKeyConfig {
                ca_der,
                revocation: url.map(|url| RevocationConfig {
                    url: url.to_owned(),
                    policy,
                    refresh,
                }),
            }),
            Err(problem) => {
                reader.problems.push(format!("CA_CERT: {problem}"));
                None
            }
        }
    }
}
