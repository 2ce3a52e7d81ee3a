//! How a command ends: exit status, and the last words where somebody finds them.

use std::{fs::OpenOptions, io, io::Write as _, path::Path, process::ExitCode};

use crate::config::{ConfigErrors, EXIT_USAGE};

/// Kubernetes shows what is written here as the reason a container stopped.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// An exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exit(pub(super) u8);

impl Exit {
    pub(super) const SUCCESS: Self = Self(0);
    pub(super) const FAILURE: Self = Self(1);
    pub(super) const USAGE: Self = Self(EXIT_USAGE);
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.0.into()
    }
}

/// Says why a command failed, and finds its exit status.
pub(super) fn report(error: &anyhow::Error) -> Exit {
    if is_closed_pipe(error) {
        // Whoever read the output has seen enough, as in `data-sync client list | head`.
        return Exit::SUCCESS;
    }
    let text = format!("data-sync: error: {error:#}\n");
    // When standard error is gone too, the status alone has to tell.
    let _ = io::stderr().write_all(text.as_bytes());
    write_termination_log(Path::new(TERMINATION_LOG), &text);
    exit_of(error)
}

fn exit_of(error: &anyhow::Error) -> Exit {
    if error.chain().any(|cause| cause.is::<ConfigErrors>()) { Exit::USAGE } else { Exit::FAILURE }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// Outside Kubernetes there is no such file, and a failure to write it must not hide the cause.
fn write_termination_log(path: &Path, text: &str) {
    if let Ok(mut log) = OpenOptions::new().write(true).truncate(true).open(path) {
        let _ = log.write_all(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn an_invalid_configuration_is_a_usage_error() {
        let error = anyhow::Error::from(ConfigErrors(vec!["X: wrong".to_owned()]));
        assert_eq!(exit_of(&error), Exit::USAGE);
        assert_eq!(exit_of(&anyhow::anyhow!("cannot bind")), Exit::FAILURE);
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        let error = Err::<(), _>(closed).context("cannot write").unwrap_err();
        assert_eq!(report(&error), Exit::SUCCESS);
    }

    #[test]
    fn the_termination_log_is_replaced_but_never_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        write_termination_log(&path, "new");
        assert!(!path.exists());
        std::fs::write(&path, "something older").unwrap();
        write_termination_log(&path, "new");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
    }
}
