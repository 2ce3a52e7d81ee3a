//! A private Postgres: a cluster in a directory of its own, on a free port of the loopback.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use data_sync::{
    config::{PostgresConfig, Secret},
    store::postgres::migrate,
    tasks::Tasks,
};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

use super::process::{Guarded, free_port, give_away, unprivileged};

/// Longest time a cluster may take to start or a condition to become true.
const PATIENCE: Duration = Duration::from_secs(60);

/// One Postgres server.
#[derive(Debug)]
pub(crate) struct Cluster {
    directory: TempDir,
    binaries: PathBuf,
    port: u16,
    settings: Vec<(String, String)>,
    server: std::sync::Mutex<Option<Guarded>>,
}

impl Cluster {
    /// Makes a cluster and starts it. It speaks TCP only and flushes nothing unless told to.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_with_files(settings, &[])
    }

    /// [`Self::start`] with files laid into the data directory, such as a certificate and its key.
    pub(crate) fn start_with_files(settings: &[(&str, &str)], files: &[(&str, &str)]) -> Self {
        let binaries = find_binaries();
        let directory = tempfile::Builder::new()
            .prefix("data-sync-postgres-")
            .tempdir()
            .expect("a temporary directory");
        give_away(directory.path());
        let data = directory.path().join("data");
        initialize(&binaries, &data);
        for (name, text) in files {
            let path = data.join(name);
            fs::write(&path, text).expect("a file in the data directory");
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("permissions");
            give_away(&path);
        }
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut cluster = Self {
            directory,
            binaries,
            port: 0,
            settings: settings.collect(),
            server: std::sync::Mutex::new(None),
        };
        // A free port may be taken before the server gets to it.
        let started = (0..3).any(|_| {
            cluster.port = free_port();
            cluster.launch()
        });
        assert!(started, "postgres did not start:\n{}", cluster.log());
        cluster
    }

    /// The one cluster that most tests share; it ends with the process.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[("max_connections", "400")]))
    }

    /// Starts the server after [`Self::stop`]; returns once it takes connections.
    pub(crate) fn resume(&self) {
        assert!(self.launch(), "postgres did not start again:\n{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("server.log")).unwrap_or_default()
    }

    /// Starts the server and waits until it takes connections; false if it ends instead.
    fn launch(&self) -> bool {
        let data = self.directory.path().join("data");
        let port = self.port.to_string();
        let mut command = vec![
            self.binaries.join("postgres").display().to_string(),
            "-D".to_owned(),
            data.display().to_string(),
        ];
        let mut settings = vec![
            ("listen_addresses", "127.0.0.1"),
            ("port", port.as_str()),
            ("unix_socket_directories", ""),
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("max_wal_size", "4GB"),
            ("log_min_messages", "warning"),
        ];
        settings.extend(self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        for (name, value) in settings {
            command.push("-c".to_owned());
            command.push(format!("{name}={value}"));
        }
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let log = self.directory.path().join("server.log");
        let server = Guarded::start(&unprivileged(&words), "QUIT", self.directory.path(), &log);
        let give_up = Instant::now() + PATIENCE;
        while !self.takes_connections() {
            if server.has_ended() {
                return false;
            }
            assert!(Instant::now() < give_up, "postgres is not ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        *self.server.lock().expect("an unpoisoned lock") = Some(server);
        true
    }

    /// Stops the server: `INT` is a fast shutdown, `QUIT` an immediate one, as a crash is to the
    /// database; `KILL` ends the postmaster alone.
    pub(crate) fn stop(&self, signal: &str) {
        if let Some(mut server) = self.server.lock().expect("an unpoisoned lock").take() {
            server.stop(signal);
        }
    }

    /// The port it listens on.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// A new, empty database.
    pub(crate) async fn create_database(&self) -> Database<'_> {
        self.create_database_from("template0").await
    }

    /// A new database with this program's schema.
    pub(crate) async fn create_migrated_database(&self) -> Database<'_> {
        let database = self.create_database().await;
        migrate(&database.config(), false).await.expect("an empty database is migrated");
        database
    }

    async fn create_database_from(&self, template: &str) -> Database<'_> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let admin = connect(&self.url("postgres")).await;
        admin
            .batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {template}"))
            .await
            .expect("a new database");
        Database { cluster: self, name }
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Asks for a session, as `pg_isready` does.
    fn takes_connections(&self) -> bool {
        Command::new(self.binaries.join("pg_isready"))
            .args([
                "-q",
                "-U",
                "postgres",
                "-d",
                "postgres",
                "-h",
                "127.0.0.1",
                "-p",
                &self.port.to_string(),
            ])
            .status()
            .is_ok_and(|status| status.success())
    }
}

/// A database of the shared cluster with this program's schema, copied from one made once.
pub(crate) async fn migrated_database() -> Database<'static> {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let cluster = Cluster::shared();
    let template =
        TEMPLATE.get_or_init(|| async { cluster.create_migrated_database().await.name }).await;
    cluster.create_database_from(template).await
}

/// One database of a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Database<'a> {
    /// Where it is.
    pub(crate) cluster: &'a Cluster,
    /// Its name.
    pub(crate) name: String,
}

impl Database<'_> {
    /// How to open it, with generous limits.
    pub(crate) fn config(&self) -> PostgresConfig {
        config(&self.url())
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        self.cluster.url(&self.name)
    }

    /// Its URL through whatever listens on `port`.
    pub(crate) fn url_through(&self, port: u16) -> String {
        format!("postgres://postgres@127.0.0.1:{port}/{}?sslmode=disable", self.name)
    }

    /// A plain connection to it.
    pub(crate) async fn connect(&self) -> Client {
        connect(&self.url()).await
    }
}

/// Settings for a URL, with generous limits.
pub(crate) fn config(url: &str) -> PostgresConfig {
    PostgresConfig {
        url: Secret::new(url),
        direct_url: Secret::new(url),
        ca_file: None,
        pool_size: 4,
        writers: 2,
        statement_timeout: Duration::from_secs(20),
        connect_timeout: Duration::from_secs(20),
    }
}

/// A plain connection, driven in the background.
pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.expect("the database takes connections");
    Tasks::new().spawn("test connection", async {
        // It ends with its client, or with the server that a test stops.
        drop(connection.await);
    });
    client
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < give_up, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn initialize(binaries: &Path, data: &Path) {
    let initdb = binaries.join("initdb").display().to_string();
    let data = data.display().to_string();
    let command = unprivileged(&[
        &initdb,
        "-D",
        &data,
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
        "-N",
    ]);
    let made = Command::new(&command[0])
        .args(&command[1..])
        .current_dir("/")
        .output()
        .expect("initdb can be started");
    let mut text = String::from_utf8_lossy(&made.stdout).into_owned();
    write!(text, "{}", String::from_utf8_lossy(&made.stderr)).expect("strings take text");
    assert!(made.status.success(), "initdb failed:\n{text}");
}

/// Looks where distributions put the server: it is often not on the path.
fn find_binaries() -> PathBuf {
    let told = Command::new("pg_config").arg("--bindir").output();
    let told = told.ok().filter(|output| output.status.success());
    let told = told.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let mut packaged: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    packaged.sort();
    let on_path = option_env!("PATH").unwrap_or_default().split(':').map(PathBuf::from);
    told.into_iter()
        .chain(packaged.into_iter().rev())
        .chain(on_path)
        .find(|directory| directory.join("postgres").exists() && directory.join("initdb").exists())
        .expect("no postgres server is installed: tests/run says what the tests need")
}
