//! Reads a Postgres URL the way libpq does, as far as `tokio-postgres` does not.
//!
//! The driver knows neither `verify-ca` nor `verify-full` and refuses parameters it does not
//! know, among them those that other drivers add for their pools. Here the parameters that mean
//! something to us are taken out, foreign ones are dropped with a warning.

use std::{path::PathBuf, str::FromStr, time::Duration};

use thiserror::Error;
use tokio_postgres::config::SslMode;

/// Silence after which the kernel probes an idle connection; the driver's own two hours are far
/// beyond what firewalls remember.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Time between two such probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Unanswered probes after which the connection counts as dead.
const KEEPALIVE_RETRIES: u32 = 3;
/// Time after which a connection whose peer takes in nothing counts as dead.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// What the driver uses when a URL sets no idle time.
const DRIVER_KEEPALIVE_IDLE: Duration = Duration::from_secs(2 * 60 * 60);

/// Parameters handed on to the driver.
const DRIVER_PARAMETERS: &[&str] = &[
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "options",
    "password",
    "port",
    "sslnegotiation",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// Why a URL cannot be used. Never shows any of its values.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub(super) enum UrlError {
    /// The driver could not read it.
    #[error("the database url cannot be read: {0}")]
    Unreadable(String),
    /// `sslmode` has a value that libpq does not know.
    #[error(
        "the database url has an unknown sslmode; use disable, prefer, require, verify-ca or verify-full"
    )]
    SslMode,
}

/// How far the server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verify {
    /// Not at all: encryption without identity.
    Nothing,
    /// It must chain to a known authority.
    Chain,
    /// It must also be for the host in the URL.
    ChainAndHost,
}

/// A URL taken apart.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Everything the driver needs, `sslmode` included.
    pub(super) config: tokio_postgres::Config,
    /// What `sslmode` asks of the certificate, before an authority file is known.
    pub(super) verify: Verify,
    /// `sslrootcert`, unless it names the system's authorities.
    pub(super) root_certificate: Option<PathBuf>,
    /// `search_path`, where the Go server's tables may live.
    pub(super) search_path: Option<String>,
    /// Names of the parameters that mean nothing here.
    pub(super) ignored: Vec<String>,
}

impl Target {
    /// Reads a URL.
    pub(super) fn parse(url: &str) -> Result<Self, UrlError> {
        let (base, query) = split(url);
        let mut kept = Vec::new();
        let mut ssl_mode = (SslMode::Prefer, Verify::Nothing);
        let mut root_certificate = None;
        let mut search_path = None;
        let mut ignored = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "sslmode" => ssl_mode = read_ssl_mode(value)?,
                "sslrootcert" => root_certificate = Some(decode(value)),
                "search_path" => search_path = Some(decode(value)),
                // libpq's name for what the driver calls keepalives_retries.
                "keepalives_count" => kept.push(format!("keepalives_retries={value}")),
                name if DRIVER_PARAMETERS.contains(&name) => kept.push(pair.to_owned()),
                name => ignored.push(name.to_owned()),
            }
        }
        let driver_url =
            if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) };
        let mut config = tokio_postgres::Config::from_str(&driver_url)
            .map_err(|error| UrlError::Unreadable(describe(&error)))?;
        config.ssl_mode(ssl_mode.0);
        fill_in(&mut config);
        Ok(Self {
            config,
            verify: ssl_mode.1,
            root_certificate: root_certificate.filter(|path| path != "system").map(PathBuf::from),
            search_path,
            ignored,
        })
    }
}

/// The driver's reason; its sources name parameters, never their values.
fn describe(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

fn fill_in(config: &mut tokio_postgres::Config) {
    if config.get_application_name().is_none() {
        config.application_name("data-sync");
    }
    if config.get_keepalives_idle() == DRIVER_KEEPALIVE_IDLE {
        config.keepalives_idle(KEEPALIVE_IDLE);
    }
    if config.get_keepalives_interval().is_none() {
        config.keepalives_interval(KEEPALIVE_INTERVAL);
    }
    if config.get_keepalives_retries().is_none() {
        config.keepalives_retries(KEEPALIVE_RETRIES);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(TCP_USER_TIMEOUT);
    }
}

/// Parts the query from the rest. A password may hold a question mark, so the search starts where
/// the driver takes the credentials to end: at the first `@`.
fn split(url: &str) -> (&str, &str) {
    let host = url.find('@').map_or(0, |at| at + 1);
    match url[host..].find('?') {
        Some(mark) => (&url[..host + mark], &url[host + mark + 1..]),
        None => (url, ""),
    }
}

fn read_ssl_mode(value: &str) -> Result<(SslMode, Verify), UrlError> {
    Ok(match value {
        "disable" => (SslMode::Disable, Verify::Nothing),
        // libpq tries plain text first for `allow`; encrypting first serves it as well.
        "" | "allow" | "prefer" => (SslMode::Prefer, Verify::Nothing),
        "require" => (SslMode::Require, Verify::Nothing),
        "verify-ca" => (SslMode::Require, Verify::Chain),
        "verify-full" => (SslMode::Require, Verify::ChainAndHost),
        _ => return Err(UrlError::SslMode),
    })
}

/// Undoes percent-encoding; what is not valid stays as it is.
fn decode(value: &str) -> String {
    let bytes = value.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let byte = hex
            .and_then(|hex| data_encoding::HEXLOWER_PERMISSIVE.decode(hex).ok())
            .and_then(|byte| byte.first().copied());
        decoded.push(byte.unwrap_or(bytes[at]));
        at += if byte.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use tokio_postgres::config::Host;

    use super::*;

    fn parse(url: &str) -> Target {
        Target::parse(url).expect("a readable url")
    }

    #[test]
    fn every_ssl_mode_of_libpq_is_known() {
        for (mode, ssl, verify) in [
            ("disable", SslMode::Disable, Verify::Nothing),
            ("allow", SslMode::Prefer, Verify::Nothing),
            ("prefer", SslMode::Prefer, Verify::Nothing),
            ("require", SslMode::Require, Verify::Nothing),
            ("verify-ca", SslMode::Require, Verify::Chain),
            ("verify-full", SslMode::Require, Verify::ChainAndHost),
        ] {
            let target = parse(&format!("postgres://u:p@db/name?sslmode={mode}"));
            assert_eq!((target.config.get_ssl_mode(), target.verify), (ssl, verify), "{mode}");
        }
        let target = parse("postgres://u:p@db/name");
        assert_eq!(
            (target.config.get_ssl_mode(), target.verify),
            (SslMode::Prefer, Verify::Nothing)
        );
        assert_eq!(Target::parse("postgres://db/n?sslmode=full").unwrap_err(), UrlError::SslMode);
    }

    #[test]
    fn parameters_of_other_drivers_are_dropped_by_name() {
        let target = parse(
            "postgres://u@db:6000/n?pool_max_conns=4&connect_timeout=3&sslmode=require&sslcert=x",
        );
        assert_eq!(target.ignored, ["pool_max_conns", "sslcert"]);
        assert_eq!(target.config.get_connect_timeout(), Some(&Duration::from_secs(3)));
        assert_eq!(target.config.get_ports(), [6000]);
    }

    #[test]
    fn a_question_mark_in_the_password_is_no_query() {
        let target = parse("postgres://user:p?sslmode=x&y@db/name?sslmode=verify-full");
        assert_eq!(target.config.get_password(), Some(&b"p?sslmode=x&y"[..]));
        assert_eq!(target.verify, Verify::ChainAndHost);
        assert_eq!(target.config.get_hosts(), [Host::Tcp("db".to_owned())]);
    }

    #[test]
    fn encoded_values_are_decoded() {
        let target = parse("postgres://db/n?sslrootcert=%2Fetc%2Fca.pem&search_path=a%2cb%");
        assert_eq!(target.root_certificate, Some(PathBuf::from("/etc/ca.pem")));
        assert_eq!(target.search_path.as_deref(), Some("a,b%"));
        assert_eq!(parse("postgres://db/n?sslrootcert=system").root_certificate, None);
    }

    #[test]
    fn an_unreadable_url_is_refused_without_its_secrets() {
        let error = Target::parse("postgres://u:secret@db:port/n").unwrap_err().to_string();
        assert!(error.contains("port") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn idle_connections_are_probed_unless_the_url_says_otherwise() {
        assert_eq!(parse("postgres://db/n").config.get_keepalives_idle(), KEEPALIVE_IDLE);
        assert_eq!(parse("postgres://db/n").config.get_tcp_user_timeout(), Some(&TCP_USER_TIMEOUT));
        let target = parse("postgres://db/n?keepalives_idle=7&keepalives_count=2");
        assert_eq!(target.config.get_keepalives_idle(), Duration::from_secs(7));
        assert_eq!(target.config.get_keepalives_retries(), Some(2));
    }
}
