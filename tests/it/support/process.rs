//! Starts servers that cannot outlive the tests: each has a guard, a small shell that waits for
//! its standard input to end, which it does when the test process is gone in whatever way.

use std::{
    env, fs,
    io::Write as _,
    net::{Ipv4Addr, TcpListener},
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

/// Sends the server the signal it is told, or a default one when nobody can tell any more, and then
/// also clears the server's directory away.
const GUARD: &str = r#"
trap '' INT TERM HUP
"$@" <&- &
server=$!
echo "$server" >"$GUARDED_DIRECTORY/server.pid"
if read -r signal; then
    kill -s "$signal" "$server"
    wait "$server"
else
    kill -s "$GUARD_SIGNAL" "$server"
    wait "$server"
    rm -rf "$GUARDED_DIRECTORY"
fi
"#;

/// A running server and its guard.
#[derive(Debug)]
pub(crate) struct Guarded {
    guard: Child,
    order: Option<ChildStdin>,
    signal: &'static str,
    pid_file: PathBuf,
}

impl Guarded {
    /// Starts `command` under a guard. `directory` goes with the test process. `signal` stops the
    /// server at once; a shell makes its children ignore INT and QUIT unless they handle them.
    pub(crate) fn start(
        command: &[String],
        signal: &'static str,
        directory: &Path,
        log: &Path,
    ) -> Self {
        let log = fs::File::create(log).expect("a log file");
        let pid_file = directory.join("server.pid");
        // One of an earlier server would tell nothing about this one.
        drop(fs::remove_file(&pid_file));
        let mut guard = Command::new("/bin/sh")
            .arg("-c")
            .arg(GUARD)
            .arg("guard")
            .args(command)
            .env("GUARDED_DIRECTORY", directory)
            .env("GUARD_SIGNAL", signal)
            .current_dir("/")
            // A group of its own: an interrupt from the terminal must not end the guard first.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("/bin/sh runs");
        let order = guard.stdin.take();
        Self { guard, order, signal, pid_file }
    }

    /// Stops the server with a signal such as `INT` and waits until it is gone.
    pub(crate) fn stop(&mut self, signal: &str) {
        if let Some(mut order) = self.order.take() {
            writeln!(order, "{signal}").expect("the guard listens");
            self.guard.wait().expect("the guard ends");
        }
    }

    /// Whether the server has ended by itself.
    pub(crate) fn has_ended(&self) -> bool {
        let Ok(pid) = fs::read_to_string(&self.pid_file) else { return false };
        let status = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        // Its guard has not asked for its exit status yet: it lingers as a zombie.
        status.is_ok_and(|status| status.contains(") Z "))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.stop(self.signal);
    }
}

/// Prefixes `command` so that it does not run as root, which Postgres and PgBouncer refuse.
pub(crate) fn unprivileged(command: &[&str]) -> Vec<String> {
    let mut full: Vec<String> = Vec::new();
    if is_root() {
        let (uid, gid) = service_account();
        let account = ["setpriv", &format!("--reuid={uid}"), &format!("--regid={gid}")];
        full.extend(account.map(str::to_owned));
        full.push("--clear-groups".to_owned());
    }
    full.extend(command.iter().map(|&word| word.to_owned()));
    full
}

/// Gives a path to the account that [`unprivileged`] commands run as.
pub(crate) fn give_away(path: &Path) {
    if is_root() {
        let (uid, gid) = service_account();
        chown(path, Some(uid), Some(gid)).expect("root may give files away");
    }
}

/// Where a program is: on the path, where distributions put servers, or where `tests/run` keeps
/// what no distribution has.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let servers = ["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin"].map(PathBuf::from);
    let kept = tools().map(|tools| tools.join(name).join("bin"));
    env::split_paths(&path)
        .chain(servers)
        .chain(kept)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("no {name} is installed: tests/run says what the tests need"))
}

/// The directory of tools that `tests/run` fills.
fn tools() -> Option<PathBuf> {
    let cache = || {
        let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
    };
    let told = env::var_os("DATA_SYNC_TOOLS").map(PathBuf::from);
    told.or_else(|| cache().map(|cache| cache.join("data-sync-tools")))
}

/// A TCP port of the loopback that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// A TCP port of the loopback that was free a moment ago and that the system gives to no outgoing
/// connection: its owner may go and come back.
pub(crate) fn lasting_port() -> u16 {
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let mut tries = (0..1_000).map(|_| rand::random_range(10_000..32_000));
    tries.find(is_free).expect("a free port")
}

/// Lets this process and those it starts keep at least `wanted` files and sockets open.
pub(crate) fn allow_open_files(wanted: u64) {
    // Where there is no such file, whoever runs the tests has to see to it.
    let Ok(limits) = fs::read_to_string("/proc/self/limits") else { return };
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let soft = line.split_whitespace().nth(3).and_then(|soft| soft.parse().ok());
    if soft.unwrap_or(u64::MAX) >= wanted {
        return;
    }
    let status = Command::new("prlimit")
        .args(["--pid", &std::process::id().to_string(), &format!("--nofile={wanted}:")])
        .status()
        .expect("prlimit runs");
    assert!(status.success(), "at least {wanted} open files must be allowed: ulimit -n");
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The account named `postgres`, else `nobody`.
fn service_account() -> (u32, u32) {
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        let line = accounts.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    find("postgres").or_else(|| find("nobody")).unwrap_or((65_534, 65_534))
}
