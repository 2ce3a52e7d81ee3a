//! The command line as people and scripts meet it: the real binary, its output and exit status.

use std::{
    io::Read as _,
    path::Path,
    process::{Command, Output, Stdio},
};

mod databases;
mod service;

/// The command with an empty environment, so that nothing of the host's leaks in.
fn data_sync(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_data-sync"));
    command.env_clear().args(arguments).stdin(Stdio::null());
    command
}

/// What a command said and how it ended.
#[derive(Debug)]
struct Said {
    exit: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            exit: output.status.code(),
            out: String::from_utf8(output.stdout).expect("UTF-8 on stdout"),
            err: String::from_utf8(output.stderr).expect("UTF-8 on stderr"),
        }
    }
}

fn run(arguments: &[&str]) -> Said {
    data_sync(arguments).output().expect("the binary runs").into()
}

fn key_file(directory: &Path) -> String {
    directory.join("key").to_str().expect("a UTF-8 path").to_owned()
}

#[test]
fn help_goes_to_stdout_and_teaches() {
    for arguments in [
        &["--help"][..],
        &["client", "--help"],
        &["import", "--help"],
        &["after-restore", "--help"],
    ] {
        let said = run(arguments);
        assert_eq!(said.exit, Some(0), "{said:?}");
        assert!(said.out.contains("Examples:") && said.out.contains("Exit status:"), "{said:?}");
        assert!(said.err.is_empty(), "{said:?}");
    }
}

#[test]
fn the_version_names_source_and_platform() {
    let said = run(&["--version"]);
    let expected = format!("data-sync {} (", env!("CARGO_PKG_VERSION"));
    assert!(said.out.starts_with(&expected) && said.out.contains(", "), "{said:?}");
}

#[test]
fn a_command_line_that_cannot_be_used_exits_64() {
    for arguments in [&["nonsense"][..], &["client"], &["client", "set"], &["migrate", "down"]] {
        let said = run(arguments);
        assert_eq!(said.exit, Some(64), "{said:?}");
        assert!(said.out.is_empty() && !said.err.is_empty(), "{said:?}");
    }
}

#[test]
fn an_invalid_configuration_lists_every_problem_and_exits_64() {
    let said: Said = data_sync(&["serve"])
        .env("GRPC_LISTEN_ADDRESS", "nowhere")
        .env("SHUTDOWN_DELAY", "soon")
        .env("DATABASE_URL", "mysql://user:secret@host/db")
        .output()
        .expect("the binary runs")
        .into();
    assert_eq!(said.exit, Some(64), "{said:?}");
    assert!(said.err.starts_with("data-sync: error: "), "{said:?}");
    for name in ["GRPC_LISTEN_ADDRESS", "SHUTDOWN_DELAY", "DATABASE_URL"] {
        assert!(said.err.contains(name), "{name} is not named: {said:?}");
    }
    assert!(!said.err.contains("secret"), "{said:?}");
}

#[test]
fn check_lists_every_problem_of_a_configuration() {
    let said: Said = data_sync(&["check", "--json"])
        .env("GRPC_REFLECTION", "perhaps")
        .env("CRL_URL", "ftp://host")
        .output()
        .expect("the binary runs")
        .into();
    assert_eq!(said.exit, Some(64), "{said:?}");
    let findings: Vec<serde_json::Value> =
        said.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(findings.len(), 2, "{said:?}");
    assert!(findings.iter().all(|finding| finding["verdict"] == "fail"), "{said:?}");
}

#[test]
fn completions_come_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let said = run(&["completions", shell]);
        assert_eq!(said.exit, Some(0), "{said:?}");
        assert!(said.out.contains("keygen"), "{shell}");
    }
}

#[test]
fn a_reader_that_stops_early_is_no_failure() {
    let mut child = data_sync(&["docs", "settings"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    // The pipe is closed before anything is read from it.
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut err).expect("UTF-8");
    assert_eq!(child.wait().expect("it ends").code(), Some(0), "{err}");
    assert!(err.is_empty(), "{err}");
}

#[test]
fn keygen_makes_a_private_key_once() {
    use std::os::unix::fs::PermissionsExt as _;

    let directory = tempfile::tempdir().expect("a directory");
    let path = key_file(directory.path());
    let said = run(&["client", "keygen", "--key-file", &path, "--json"]);
    assert_eq!(said.exit, Some(0), "{said:?}");
    let made: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(made["user_id"].as_str().map(str::len), Some(66), "{said:?}");

    let key = std::fs::read_to_string(&path).expect("the key");
    let mode = std::fs::metadata(&path).expect("the file").permissions().mode();
    assert_eq!((key.trim().len(), mode & 0o777), (64, 0o600));
    assert!(!said.out.contains(key.trim()), "the secret is printed");

    let again = run(&["client", "keygen", "--key-file", &path]);
    assert_eq!(again.exit, Some(1), "{again:?}");
    assert!(again.err.contains("exists already"), "{again:?}");
    assert_eq!(std::fs::read_to_string(&path).expect("the key"), key);
}

#[test]
fn the_default_key_lies_in_the_home_directory() {
    let home = tempfile::tempdir().expect("a directory");
    let said: Said = data_sync(&["client", "keygen"])
        .env("HOME", home.path())
        .output()
        .expect("the binary runs")
        .into();
    assert_eq!(said.exit, Some(0), "{said:?}");
    assert!(home.path().join(".config/data-sync/key").exists());
}

#[test]
fn a_server_out_of_reach_is_explained() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = key_file(directory.path());
    run(&["client", "keygen", "--key-file", &path]);
    let url = format!("http://{}", free_address());
    let said = run(&["client", "list", "--key-file", &path, "--url", &url]);
    assert_eq!(said.exit, Some(1), "{said:?}");
    assert!(said.err.contains(&url) && said.err.contains("is the server running"), "{said:?}");
}

#[test]
fn a_missing_key_names_the_remedy() {
    let said = run(&["client", "list", "--key-file", "/nowhere/key"]);
    assert_eq!(said.exit, Some(1), "{said:?}");
    assert!(said.err.contains("data-sync client keygen"), "{said:?}");
}

#[test]
fn probe_tells_that_nobody_answers() {
    let said = run(&["probe", "--address", &free_address(), "--timeout", "1s"]);
    assert_eq!(said.exit, Some(2), "{said:?}");
}

#[test]
fn probe_gives_up_in_time() {
    // Accepts connections and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("an address").to_string();
    let started = std::time::Instant::now();
    let said = run(&["probe", "--address", &address, "--timeout", "300ms"]);
    assert_eq!(said.exit, Some(2), "{said:?}");
    assert!(started.elapsed() < std::time::Duration::from_secs(5), "{said:?}");
}

#[test]
fn an_import_without_places_names_both() {
    let said = run(&["import"]);
    assert_eq!(said.exit, Some(64), "{said:?}");
    assert!(said.err.contains("--from") && said.err.contains("--to"), "{said:?}");
}

#[test]
fn the_settings_page_names_what_help_names() {
    let page = run(&["docs", "settings"]).out;
    let help = run(&["--help"]).out;
    let variables: Vec<&str> = help
        .lines()
        .filter_map(|line| line.trim().strip_prefix("[env: ")?.split(['=', ']']).next())
        .collect();
    assert!(variables.len() > 20, "{variables:?}");
    for variable in variables {
        assert!(page.contains(&format!("| `{variable}` |")), "{variable} is missing");
    }
}

/// An address of the loopback interface where nobody listens.
fn free_address() -> String {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("an address").to_string()
}
