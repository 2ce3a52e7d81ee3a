//! A private PgBouncer in transaction mode, as distributions ship it.

use std::{
    fs,
    net::TcpStream,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    postgres::Database,
    process::{Guarded, free_port, give_away, program, unprivileged},
};

/// One PgBouncer before one cluster.
#[derive(Debug)]
pub(crate) struct PgBouncer {
    _server: Guarded,
    _directory: TempDir,
    port: u16,
}

impl PgBouncer {
    /// Starts one before every database of `database`'s cluster.
    pub(crate) fn start(database: &Database<'_>) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("data-sync-pgbouncer-")
            .tempdir()
            .expect("a temporary directory");
        give_away(directory.path());
        let port = free_port();
        let settings = directory.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n\
             * = host=127.0.0.1 port={} user=postgres\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {port}\n\
             unix_socket_dir =\n\
             auth_type = any\n\
             pool_mode = transaction\n\
             default_pool_size = 5\n\
             server_login_retry = 1\n",
            database.cluster.port()
        );
        fs::write(&settings, text).expect("a settings file");
        give_away(&settings);
        let program = program("pgbouncer").display().to_string();
        let command = unprivileged(&[&program, &settings.display().to_string()]);
        let log = directory.path().join("pgbouncer.log");
        let server = Guarded::start(&command, "TERM", directory.path(), &log);
        let give_up = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let text = || fs::read_to_string(&log).unwrap_or_default();
            assert!(!server.has_ended(), "pgbouncer did not start:\n{}", text());
            assert!(Instant::now() < give_up, "pgbouncer is not ready:\n{}", text());
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { _server: server, _directory: directory, port }
    }

    /// The port it listens on.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// The URL of `database` through it.
    pub(crate) fn url(&self, database: &Database<'_>) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{}?sslmode=disable", self.port, database.name)
    }
}
