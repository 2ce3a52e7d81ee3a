//! `data-sync client` and `data-sync probe` against a running server.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::mpsc,
};

use tempfile::TempDir;

use super::{Said, data_sync, key_file, run};
use crate::support::{
    server::{Server, ServerOptions},
    wait::PATIENCE,
};

/// A server and a user of its own.
struct Fixture {
    server: Server,
    directory: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let server = ServerOptions::sqlite(directory.path()).start();
        let made = run(&["client", "keygen", "--key-file", &key_file(directory.path())]);
        assert_eq!(made.exit, Some(0), "{made:?}");
        Self { server, directory }
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = data_sync(&["client"]);
        command
            .args(arguments)
            .env("DATA_SYNC_URL", format!("http://{}", self.server.grpc))
            .env("DATA_SYNC_KEY_FILE", key_file(self.directory.path()));
        command
    }

    fn client(&self, arguments: &[&str]) -> Said {
        self.command(arguments).output().expect("the binary runs").into()
    }
}

/// Ends the process with the test.
struct Watching {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Watching {
    fn start(fixture: &Fixture, arguments: &[&str]) -> Self {
        let mut child =
            fixture.command(arguments).stdout(Stdio::piped()).spawn().expect("the binary runs");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the watch says something")
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_record_is_set_listed_and_replaced() {
    let fixture = Fixture::new();
    let said = fixture.client(&["set", "note", "hello"]);
    assert_eq!(said.out, "stored note as revision 1\n", "{said:?}");
    let said = fixture.client(&["list"]);
    let expected = "REVISION  ID    SCHEMA  BYTES  DATA\n       1  note  1.0.0       5  hello\n";
    assert_eq!(said.out, expected, "{said:?}");

    // The current revision is found without being named.
    let said = fixture.client(&["set", "note", "again", "--json"]);
    assert_eq!(said.out, "{\"id\":\"note\",\"revision\":2}\n", "{said:?}");
    let said = fixture.client(&["list", "--since", "2"]);
    assert_eq!(said.exit, Some(0), "{said:?}");
    assert!(!said.out.contains("note"), "{said:?}");
}

#[test]
fn a_stale_revision_is_a_conflict_that_names_the_current_one() {
    let fixture = Fixture::new();
    fixture.client(&["set", "note", "one"]);
    fixture.client(&["set", "note", "two"]);
    let said = fixture.client(&["set", "note", "three", "--revision", "1"]);
    assert_eq!(said.exit, Some(1), "{said:?}");
    assert!(said.err.contains("conflict") && said.err.contains("--revision 2"), "{said:?}");
    let said = fixture.client(&["set", "note", "three", "--revision", "2"]);
    assert_eq!(said.exit, Some(0), "{said:?}");
}

#[test]
fn a_file_of_bytes_arrives_as_it_is() {
    let fixture = Fixture::new();
    let path = fixture.directory.path().join("bytes");
    std::fs::write(&path, [0xff, 0x00, 0x1b]).expect("a file");
    let path = path.to_str().expect("a UTF-8 path");
    assert_eq!(fixture.client(&["set", "b", "--file", path]).exit, Some(0));
    assert!(fixture.client(&["list"]).out.contains("0xff001b (3 bytes)"));
    assert!(fixture.client(&["list", "--json"]).out.contains(r#""data":"/wAb""#));

    std::fs::write(path, vec![0; 65_537]).expect("a file");
    let said = fixture.client(&["set", "b", "--file", path]);
    assert_eq!(said.exit, Some(1), "{said:?}");
    assert!(said.err.contains("65536"), "{said:?}");
}

#[test]
fn a_refusal_names_the_field() {
    let fixture = Fixture::new();
    let said = fixture.client(&["set", &"x".repeat(65), "data"]);
    assert_eq!(said.exit, Some(1), "{said:?}");
    assert!(said.err.contains("InvalidArgument") && said.err.contains("record.id"), "{said:?}");
}

#[test]
fn watch_shows_changes_and_ends_cleanly() {
    let fixture = Fixture::new();
    fixture.client(&["set", "old", "before the watch"]);
    let mut watching = Watching::start(&fixture, &["watch"]);
    assert_eq!(watching.line(), "live");
    fixture.client(&["set", "note", "hello", "--client-id", "phone"]);
    assert_eq!(watching.line(), "changed up to revision 2 by phone");
    assert_eq!(watching.line(), "2  note  1.0.0  5  hello");

    let pid = watching.child.id().to_string();
    let sent = std::process::Command::new("kill").args(["-INT", &pid]).status();
    assert!(sent.expect("kill runs").success());
    // Its output closes when it ends.
    let closed = watching.lines.recv_timeout(PATIENCE);
    assert_eq!(closed, Err(mpsc::RecvTimeoutError::Disconnected));
    assert_eq!(watching.child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn a_lock_is_taken_refused_to_others_and_freed() {
    let fixture = Fixture::new();
    let taken = fixture.client(&["lock", "sweep", "--ttl", "1m", "--json"]);
    assert_eq!(taken.exit, Some(0), "{taken:?}");
    let lock: serde_json::Value = serde_json::from_str(&taken.out).expect("JSON");
    assert!(lock["fencing_token"].as_u64() > Some(0), "{taken:?}");
    assert_eq!(fixture.client(&["locked", "sweep"]).out, "locked\n");

    let refused = fixture.client(&["lock", "sweep"]);
    assert_eq!(refused.exit, Some(1), "{refused:?}");
    assert!(refused.err.contains("another instance"), "{refused:?}");

    let instance = lock["instance"].as_str().expect("an instance");
    let freed = fixture.client(&["unlock", "sweep", "--instance", instance]);
    assert_eq!(freed.exit, Some(0), "{freed:?}");
    assert_eq!(fixture.client(&["locked", "sweep"]).out, "free\n");
}

#[test]
fn probe_asks_for_each_service() {
    let fixture = Fixture::new();
    let address = fixture.server.grpc.to_string();
    for service in ["readiness", "liveness", "sync.Syncer", ""] {
        let said = run(&["probe", "--address", &address, "--service", service]);
        assert_eq!(said.exit, Some(0), "{said:?}");
    }
    let said = run(&["probe", "--address", &address, "--service", "nonsense"]);
    assert_eq!(said.exit, Some(1), "{said:?}");
}

#[test]
fn the_selftest_needs_no_key_and_reports_every_step() {
    let fixture = Fixture::new();
    let said = fixture.client(&["selftest", "--key-file", "/nowhere"]);
    assert_eq!(said.exit, Some(0), "{said:?}");
    let steps: Vec<&str> =
        said.out.lines().filter_map(|line| line.strip_prefix("ok    ")).collect();
    assert_eq!(steps, ["listen", "write", "notify", "list", "conflict", "lock"]);
}
