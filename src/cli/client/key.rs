//! The file that holds a user's key.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use anyhow::{Context as _, bail};

use crate::{client::Signer, config::KeySource};

/// Readable and writable by the owner alone.
const PRIVATE_FILE: u32 = 0o600;
const PRIVATE_DIRECTORY: u32 = 0o700;
/// Permissions that let others than the owner at the file.
const ANYBODY_ELSE: u32 = 0o077;

/// Reads the key that the settings point at.
pub(super) fn read(source: &KeySource) -> anyhow::Result<Signer> {
    let path = match source {
        KeySource::Given(key) => return Signer::from_hex(key.expose()).context("DATA_SYNC_KEY"),
        KeySource::File(path) => path,
    };
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("there is no key at {}; make one with `data-sync client keygen`", path.display())
        }
        text => text.with_context(|| format!("cannot read the key at {}", path.display()))?,
    };
    warn_if_shared(path);
    Signer::from_hex(&text).with_context(|| format!("{} holds no key", path.display()))
}

fn warn_if_shared(path: &Path) {
    let shared = fs::metadata(path).is_ok_and(|data| data.permissions().mode() & ANYBODY_ELSE != 0);
    if shared {
        let path = path.display();
        // Only advice: when nobody can read it, nothing is lost.
        let _ = writeln!(
            io::stderr(),
            "data-sync: warning: others can use the key at {path}; run `chmod 600 {path}`"
        );
    }
}

/// Makes a key and keeps it at `path`, which must not exist.
pub(super) fn make(path: &Path) -> anyhow::Result<Signer> {
    if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(PRIVATE_DIRECTORY);
        builder
            .create(directory)
            .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    }
    let mut file =
        match OpenOptions::new().write(true).create_new(true).mode(PRIVATE_FILE).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => bail!(
                "{} exists already, and a key that is overwritten is lost with all its records; \
                 move it away or choose another --key-file",
                path.display()
            ),
            file => file.with_context(|| format!("cannot write {}", path.display()))?,
        };
    let signer = Signer::generate();
    file.write_all(format!("{}\n", signer.to_secret_hex()).as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(signer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    #[test]
    fn a_made_key_is_private_and_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/key");
        let made = make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE_FILE);
        let error = make(&path).unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
        let read = read(&KeySource::File(path)).unwrap();
        assert_eq!(read.user_id(), made.user_id());
    }

    #[test]
    fn a_missing_key_names_the_remedy_and_a_wrong_one_is_not_shown() {
        let missing = KeySource::File("/nowhere/key".into());
        assert!(read(&missing).unwrap_err().to_string().contains("client keygen"));
        let wrong = read(&KeySource::Given(Secret::new("5ec2e7"))).unwrap_err();
        assert!(!format!("{wrong:#}").contains("5ec2e7"));
    }
}
