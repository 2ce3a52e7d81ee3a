//! The real binary as a process, on free ports of the loopback address.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use super::wait::PATIENCE;

/// Settings of a server under test.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServerOptions {
    environment: Vec<(String, String)>,
    open_files: Option<String>,
}

impl ServerOptions {
    /// A server with its SQLite file in `directory`.
    pub(crate) fn sqlite(directory: &Path) -> Self {
        Self::default().env("SQLITE_DIR_PATH", directory.to_str().expect("a UTF-8 path"))
    }

    /// A replica over the database at `url`.
    pub(crate) fn postgres(url: &str) -> Self {
        Self::default().env("DATABASE_URL", url)
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Lets the server have at most `limit` files and sockets open.
    pub(crate) fn open_files(mut self, limit: u32) -> Self {
        self.open_files = Some(format!("ulimit -n {limit}"));
        self
    }

    /// [`Self::open_files`] as a limit that the server may raise.
    pub(crate) fn open_files_at_first(mut self, limit: u32) -> Self {
        self.open_files = Some(format!("ulimit -S -n {limit}"));
        self
    }

    /// Starts the server and waits until it listens.
    pub(crate) fn start(&self) -> Server {
        self.try_start().unwrap_or_else(|log| panic!("the server did not start:\n{log}"))
    }

    /// Starts the server; its log if it ends before it listens.
    pub(crate) fn try_start(&self) -> Result<Server, String> {
        let binary = env!("CARGO_BIN_EXE_data-sync");
        let mut command = Command::new(self.open_files.as_ref().map_or(binary, |_| "/bin/sh"));
        if let Some(limit) = &self.open_files {
            command.args(["-c", &format!("{limit} && exec \"$0\""), binary]);
        }
        command
            .env_clear()
            .env("GRPC_LISTEN_ADDRESS", "127.0.0.1:0")
            .env("GRPC_WEB_LISTEN_ADDRESS", "127.0.0.1:0")
            .env("ADMIN_LISTEN_ADDRESS", "127.0.0.1:0")
            .env("LOG_FORMAT", "json")
            .env("SHUTDOWN_DELAY", "0s")
            .env("SHUTDOWN_SPREAD", "0s")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let stderr = child.stderr.take().expect("stderr is piped");
        let log = Arc::new(Mutex::new(String::new()));
        let addresses = follow_log(stderr, Arc::clone(&log));
        let mut server = Server { child, log, grpc: unset(), web: unset(), admin: unset() };
        match addresses.recv_timeout(PATIENCE) {
            Ok([grpc, web, admin]) => {
                (server.grpc, server.web, server.admin) = (grpc, web, admin);
                Ok(server)
            }
            Err(_) => {
                server.kill();
                Err(server.log())
            }
        }
    }
}

const fn unset() -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0)
}

/// Collects the log; sends the addresses when the server says that it listens.
fn follow_log(
    stderr: std::process::ChildStderr,
    log: Arc<Mutex<String>>,
) -> mpsc::Receiver<[SocketAddr; 3]> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if line.contains("Server listening at") {
                let _ = sender.send(listening_addresses(&line));
            }
            let mut log = log.lock().expect("not poisoned");
            log.push_str(&line);
            log.push('\n');
        }
    });
    receiver
}

fn listening_addresses(line: &str) -> [SocketAddr; 3] {
    let line: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
    let fields = line.get("fields").unwrap_or(&line);
    ["grpc", "web", "admin"]
        .map(|name| fields[name].as_str().and_then(|text| text.parse().ok()).expect("an address"))
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    log: Arc<Mutex<String>>,
    /// Address of the gRPC port.
    pub(crate) grpc: SocketAddr,
    /// Address of the gRPC-Web port.
    pub(crate) web: SocketAddr,
    /// Address of the admin port.
    pub(crate) admin: SocketAddr,
}

impl Server {
    /// What the server has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("not poisoned").clone()
    }

    /// The number of its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills the process at once (SIGKILL).
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal by its name, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(status.success(), "cannot send {name}");
    }

    /// Whether the process has ended.
    pub(crate) fn has_exited(&mut self) -> bool {
        self.child.try_wait().expect("the process is ours").is_some()
    }

    /// Waits until the process has ended.
    pub(crate) fn wait_for_exit(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("the process is ours") {
                return status;
            }
            assert!(Instant::now() < end, "the server did not stop:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("server log:\n{}", self.log());
        }
    }
}
