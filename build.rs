//! Compiles `proto/sync.proto` without an external compiler and records what the binary is.

#![allow(
    clippy::disallowed_methods,
    reason = "a build script is told everything by the environment"
)]

use std::{env, error::Error, path::PathBuf, process::Command};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/sync.proto");
    println!("cargo:rerun-if-env-changed=DATA_SYNC_REVISION");
    // A file that does not exist counts as changed: name the right one, which in a work tree is
    // elsewhere, or none, or every build would start from here.
    if let Some(head) = git(&["rev-parse", "--git-path", "HEAD"]) {
        println!("cargo:rerun-if-changed={head}");
    }

    let descriptors = protox::compile(["proto/sync.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(out.join("sync.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::proto::codec::Codec")
        .compile_fds(descriptors)?;

    println!("cargo:rustc-env=DATA_SYNC_REVISION={}", revision());
    println!("cargo:rustc-env=DATA_SYNC_TARGET={}", env::var("TARGET")?);
    Ok(())
}

/// The source revision: given by an image build, else asked of git, else unknown.
fn revision() -> String {
    let given = env::var("DATA_SYNC_REVISION").ok().filter(|value| !value.is_empty());
    let asked = || git(&["rev-parse", "--short=12", "HEAD"]);
    given.or_else(asked).unwrap_or_else(|| "unknown".to_owned())
}

/// What git answers, if it is here and these sources are its.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned()).filter(|text| !text.is_empty())
}
