//! The commands and statements of the book: tests run the very text that operators copy.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The block of a page in `docs/` that follows the mark `<!-- tried: name -->`.
pub(crate) fn block(page: &str, name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    let text = fs::read_to_string(path).expect("a page");
    let mark = format!("<!-- tried: {name} -->\n```");
    let (_, rest) = text.split_once(&mark).unwrap_or_else(|| panic!("{page} has no block {name}"));
    let (_, rest) = rest.split_once('\n').expect("a language");
    let (block, _) = rest.split_once("\n```").expect("an end");
    block.to_owned()
}

/// Runs a block as a shell does that stops at the first failure; what it printed.
pub(crate) fn shell(block: &str, directory: &Path, environment: &[(&str, &str)]) -> String {
    let programs = Path::new(env!("CARGO_BIN_EXE_data-sync")).parent().expect("a directory");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(
        std::iter::once(PathBuf::from(programs)).chain(std::env::split_paths(&path)),
    );
    let output = Command::new("bash")
        .args(["-eu", "-o", "pipefail", "-c", block])
        .current_dir(directory)
        .env_clear()
        .env("PATH", path.expect("a path"))
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("bash runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{block}\nended with {}:\n{said}{complaint}", output.status);
    said
}
