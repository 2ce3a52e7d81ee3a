//! Two replicas and a proxy, each on a loopback address of its own, as they are on machines of
//! their own: so the ports can be the same everywhere, as in the example files.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
};

use tempfile::TempDir;
use uuid::Uuid;

use crate::support::{
    client::{Wallet, fresh_key},
    http::metric_sum,
    postgres::{Database, migrated_database},
    process::{Guarded, give_away, program, unprivileged},
    server::{Server, ServerOptions},
    wait::until,
};

/// Which proxy, with which of the examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proxy {
    Envoy,
    Haproxy,
    /// HAProxy that passes bytes on without looking into them.
    HaproxyTcp,
    Nginx,
}

impl Proxy {
    /// Its file in `examples/`.
    const fn example(self) -> &'static str {
        match self {
            Self::Envoy => "envoy/envoy.yaml",
            Self::Haproxy => "haproxy/haproxy.cfg",
            Self::HaproxyTcp => "haproxy/tcp.cfg",
            Self::Nginx => "nginx/nginx.conf",
        }
    }

    /// Whether it leaves a replica that says it drains; one that does not learns from failures.
    pub(super) const fn asks_for_health(self) -> bool {
        !matches!(self, Self::Nginx)
    }

    /// HAProxy goes on ignoring TERM where its parent does.
    const fn stop_signal(self) -> &'static str {
        match self {
            Self::Haproxy | Self::HaproxyTcp => "KILL",
            Self::Envoy | Self::Nginx => "TERM",
        }
    }

    fn command(self, settings: &Path, directory: &Path) -> Vec<String> {
        let settings = settings.display().to_string();
        let (name, arguments): (_, Vec<&str>) = match self {
            // Without hot restarts any number of them run on one machine.
            Self::Envoy => {
                ("envoy", vec!["-c", &settings, "--disable-hot-restart", "--log-level", "warning"])
            }
            Self::Haproxy | Self::HaproxyTcp => ("haproxy", vec!["-db", "-f", &settings]),
            Self::Nginx => {
                let main = "daemon off; error_log stderr; pid nginx.pid;";
                let prefix = directory.to_str().expect("a UTF-8 path");
                ("nginx", vec!["-e", "stderr", "-p", prefix, "-c", &settings, "-g", main])
            }
        };
        let program = program(name).display().to_string();
        let words: Vec<&str> = std::iter::once(program.as_str()).chain(arguments).collect();
        match self {
            // As root it would hand its files to yet another account.
            Self::Nginx => unprivileged(&words),
            _ => words.iter().map(|&word| word.to_owned()).collect(),
        }
    }
}

/// Addresses for the machines of the examples.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machines {
    /// Of 127.0.0.0/8.
    network: [u8; 2],
    grpc: u16,
    web: u16,
    admin: u16,
}

impl Machines {
    pub(super) fn new() -> Self {
        let [a, b, ..] = *Uuid::new_v4().as_bytes();
        // Far from where other servers of this machine are.
        let network = [a | 0x80, b];
        let ports = [(), (), ()].map(|()| {
            let everywhere = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
            (everywhere.local_addr().expect("an address").port(), everywhere)
        });
        let [grpc, web, admin] = ports.map(|(port, _)| port);
        Self { network, grpc, web, admin }
    }

    const fn host(&self, number: u8) -> Ipv4Addr {
        let [a, b] = self.network;
        Ipv4Addr::new(127, a, b, number)
    }

    /// The gRPC port of the proxy.
    pub(super) fn proxy_grpc(&self) -> SocketAddr {
        (self.host(3), self.grpc).into()
    }

    /// The settings of replica 1 or 2.
    pub(super) fn replica(&self, number: u8, options: &ServerOptions) -> ServerOptions {
        let at = |port| SocketAddr::from((self.host(number), port)).to_string();
        let options = options.clone();
        options
            .env("GRPC_LISTEN_ADDRESS", &at(self.grpc))
            .env("GRPC_WEB_LISTEN_ADDRESS", &at(self.web))
            .env("ADMIN_LISTEN_ADDRESS", &at(self.admin))
    }

    /// An example with these machines in place of its own.
    fn fill_in(&self, example: &str) -> String {
        let proxy = self.host(3).to_string();
        let text = example
            .replace("replica-1", &self.host(1).to_string())
            .replace("replica-2", &self.host(2).to_string())
            .replace("0.0.0.0", &proxy)
            .replace("bind :", &format!("bind {proxy}:"))
            .replace("listen 80", &format!("listen {proxy}:80"));
        [(8080, self.grpc), (8081, self.web), (9090, self.admin)]
            .iter()
            .fold(text, |text, (from, to)| text.replace(&from.to_string(), &to.to_string()))
    }
}

/// A running proxy.
#[derive(Debug)]
pub(super) struct RunningProxy {
    server: Guarded,
    directory: TempDir,
}

impl RunningProxy {
    pub(super) fn start(proxy: Proxy, machines: &Machines) -> Self {
        let directory =
            tempfile::Builder::new().prefix("data-sync-proxy-").tempdir().expect("a directory");
        give_away(directory.path());
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(proxy.example());
        let mut text = machines.fill_in(&fs::read_to_string(path).expect("an example"));
        if proxy == Proxy::Nginx {
            // Distributions compile in directories that only root may write.
            let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
            let paths = kinds.map(|kind| format!("{kind}_temp_path {kind};"));
            text =
                text.replacen("http {", &format!("http {{ access_log off; {}", paths.join(" ")), 1);
        }
        let name = Path::new(proxy.example()).file_name().expect("a name");
        let settings = directory.path().join(name);
        fs::write(&settings, text).expect("a settings file");
        give_away(&settings);
        let command = proxy.command(&settings, directory.path());
        let log = directory.path().join("log");
        let server = Guarded::start(&command, proxy.stop_signal(), directory.path(), &log);
        Self { server, directory }
    }

    /// Waits until it takes connections.
    pub(super) async fn listens(&self, address: SocketAddr) {
        until("the proxy listens", async || {
            self.check();
            tokio::net::TcpStream::connect(address).await.is_ok()
        })
        .await;
    }

    fn check(&self) {
        assert!(!self.server.has_ended(), "the proxy did not start:\n{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for RunningProxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("proxy log:\n{}", self.log());
        }
    }
}

/// A proxy, two replicas behind it, one database.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) servers: Vec<Server>,
    machines: Machines,
    proxy: RunningProxy,
    _database: Database<'static>,
}

impl Site {
    /// Starts everything and waits until calls through the proxy reach both replicas.
    pub(super) async fn start(proxy: Proxy) -> Self {
        Self::start_with(proxy, &[]).await
    }

    /// [`Self::start`] with settings of the replicas.
    pub(super) async fn start_with(proxy: Proxy, settings: &[(&str, &str)]) -> Self {
        let database = migrated_database().await;
        let machines = Machines::new();
        // As long as a replica serves on by default, for the proxy to look away.
        let options = ServerOptions::postgres(&database.url())
            .env("SHUTDOWN_DELAY", "5s")
            .env("SHUTDOWN_SPREAD", "1s");
        let options =
            settings.iter().fold(options, |options, (name, value)| options.env(name, value));
        let servers = [1, 2].map(|number| machines.replica(number, &options).start());
        let running = RunningProxy::start(proxy, &machines);
        let servers = Vec::from(servers);
        let site = Self { servers, machines, proxy: running, _database: database };
        site.all_are_reached().await;
        site
    }

    async fn all_are_reached(&self) {
        self.proxy.listens(self.grpc()).await;
        until("the proxy reaches every replica", async || {
            let wallet = Wallet::connect(self.grpc(), fresh_key()).await;
            // Refused for as long as the proxy knows of no replica.
            drop(wallet.locked("warm-up").await);
            let mut reached = true;
            for server in &self.servers {
                let method = r#"grpc_method="GetLock""#;
                reached &= metric_sum(server, "grpc_server_started_total", &[method]).await > 0.0;
            }
            reached
        })
        .await;
    }

    /// The proxy's gRPC port.
    pub(super) fn grpc(&self) -> SocketAddr {
        self.machines.proxy_grpc()
    }

    /// The proxy's gRPC-Web port.
    pub(super) fn web(&self) -> SocketAddr {
        (self.machines.host(3), self.machines.web).into()
    }
}
