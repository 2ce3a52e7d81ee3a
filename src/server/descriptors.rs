//! How many files and sockets the process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::limits::RESERVED_DESCRIPTORS;

/// Lets the process have as many open as it may allow itself: the lower limit that systems begin
/// with is for programs of another age. Says so where `connections` come to more.
pub(super) fn allow_for(connections: usize) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let mut allowed = current;
    if current.is_some() && current != maximum {
        match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
            Ok(()) => allowed = maximum,
            // Some systems have a bound that they do not tell.
            Err(error) => tracing::debug!(%error, "the limit of open files cannot be raised"),
        }
    }
    let connections = u64::try_from(connections).unwrap_or(u64::MAX);
    if let Some(allowed) = allowed
        && allowed < connections.saturating_add(RESERVED_DESCRIPTORS)
    {
        tracing::info!(
            allowed,
            connections,
            "fewer files may be open than MAX_CONNECTIONS counts on; raise the limit (ulimit -n)"
        );
    }
}
