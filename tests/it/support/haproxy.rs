//! A private HAProxy in TCP mode before several replicas, as distributions ship it.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    http::http1,
    process::{Guarded, free_port},
    wait::within,
};

/// A replica behind it: where calls go, and who says whether they may.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backend {
    pub(crate) grpc: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// One HAProxy. A replica gets new connections while its readiness check passes; connections it
/// has stay where they are.
#[derive(Debug)]
pub(crate) struct Haproxy {
    _server: Guarded,
    _directory: TempDir,
    /// Where clients connect to.
    pub(crate) address: SocketAddr,
    statistics: SocketAddr,
}

impl Haproxy {
    /// Starts one before `backends` for at most `clients` connections.
    pub(crate) fn start(backends: &[Backend], clients: usize) -> Self {
        Self::start_with(backends, clients, "")
    }

    /// [`Self::start`] with an option for every backend, such as `send-proxy`.
    pub(crate) fn start_with(backends: &[Backend], clients: usize, option: &str) -> Self {
        // A free port may be taken before it gets to it.
        let mut log = String::new();
        for _ in 0..3 {
            match Self::launch(backends, clients, option) {
                Ok(started) => return started,
                Err(said) => log = said,
            }
        }
        panic!("haproxy did not start:\n{log}");
    }

    fn launch(backends: &[Backend], clients: usize, option: &str) -> Result<Self, String> {
        let directory = tempfile::Builder::new()
            .prefix("data-sync-haproxy-")
            .tempdir()
            .expect("a temporary directory");
        let [address, statistics] =
            [free_port(), free_port()].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let settings = directory.path().join("haproxy.cfg");
        let mut text = general(clients, address, statistics);
        for (number, Backend { grpc, admin }) in backends.iter().enumerate() {
            let check = format!("addr {} port {}", admin.ip(), admin.port());
            writeln!(text, "  server replica{number} {grpc} {check} {option}").expect("text");
        }
        fs::write(&settings, text).expect("a file");
        let program = ["/usr/sbin/haproxy", "/usr/bin/haproxy", "/usr/local/sbin/haproxy"]
            .into_iter()
            .find(|path| fs::exists(path).unwrap_or_default())
            .expect("no haproxy is installed: tests/run says what the tests need");
        let command = [program, "-db", "-f", &settings.display().to_string()].map(str::to_owned);
        let log = directory.path().join("haproxy.log");
        // Anything milder it inherited to ignore, or takes for a wish to wait for its clients.
        let server = Guarded::start(&command, "KILL", directory.path(), &log);
        let said = || fs::read_to_string(&log).unwrap_or_default();
        let give_up = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(statistics).is_err() {
            if server.has_ended() || Instant::now() > give_up {
                return Err(said());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { _server: server, _directory: directory, address, statistics })
    }

    /// The number of replicas that get new connections.
    pub(crate) async fn replicas_up(&self) -> usize {
        let url = format!("http://{}/;csv", self.statistics);
        let response = within("statistics", http1().get(url).send()).await.expect("answers");
        let table = within("statistics", response.text()).await.expect("text");
        let rows = table.lines().filter(|row| row.starts_with("replicas,replica"));
        rows.filter(|row| row.split(',').nth(17) == Some("UP")).count()
    }
}

/// Settings up to the backend's servers.
fn general(clients: usize, address: SocketAddr, statistics: SocketAddr) -> String {
    format!(
        "global\n\
         \x20 maxconn {clients}\n\
         defaults\n\
         \x20 timeout connect 2s\n\
         \x20 timeout client 5m\n\
         \x20 timeout server 5m\n\
         \x20 retries 3\n\
         \x20 option redispatch 1\n\
         frontend statistics\n\
         \x20 mode http\n\
         \x20 bind {statistics}\n\
         \x20 stats enable\n\
         \x20 stats uri /\n\
         frontend clients\n\
         \x20 mode tcp\n\
         \x20 bind {address}\n\
         \x20 default_backend replicas\n\
         backend replicas\n\
         \x20 mode tcp\n\
         \x20 balance leastconn\n\
         \x20 option httpchk GET /readyz\n\
         \x20 default-server check inter 200ms fall 1 rise 1\n"
    )
}
