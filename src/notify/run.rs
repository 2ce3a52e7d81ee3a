//! Who wrote the newest revisions: the one thing that is known of a user without a queue.
//!
//! Announcements of several replicas arrive out of order. A hole below a run therefore means that
//! somebody else may have written there.

use std::sync::Arc;

use super::Change;

/// An unbroken run of one user's revisions, all written by the same client, up to the newest that
/// is known of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Run {
    /// First revision of the run; above `to` where nothing is known of its writer.
    pub(super) from: u64,
    /// Newest revision known of; 0 for none.
    pub(super) to: u64,
    /// The writer, if it is known and has a name.
    pub(super) client_id: Option<Arc<str>>,
}

impl Run {
    /// Everything up to `head` was written by nobody knows whom.
    pub(super) const fn unknown(head: u64) -> Self {
        Self { from: head.saturating_add(1), to: head, client_id: None }
    }

    /// Takes in a later run; false if it was no news. What it does not join goes from memory.
    pub(super) fn take_in(&mut self, later: &Self) -> bool {
        if later.to <= self.to {
            return false;
        }
        let joins = later.from <= self.to.saturating_add(1);
        if !(joins && self.client_id == later.client_id) {
            self.from = later.from.max(self.to.saturating_add(1));
            self.client_id.clone_from(&later.client_id);
        }
        self.to = later.to;
        true
    }

    /// The writer of everything above `told`, if that is known to be one.
    pub(super) fn writer_since(&self, told: u64) -> Option<&Arc<str>> {
        self.client_id.as_ref().filter(|_| self.from <= told.saturating_add(1))
    }
}

impl From<&Change> for Run {
    fn from(change: &Change) -> Self {
        Self { from: change.from, to: change.to, client_id: change.client_id.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(from: u64, to: u64, client: &str) -> Run {
        let client_id = Some(client).filter(|client| !client.is_empty()).map(Arc::from);
        Run { from, to, client_id }
    }

    fn taken_in(runs: &[Run]) -> Run {
        let mut all = Run::default();
        for run in runs {
            all.take_in(run);
        }
        all
    }

    #[test]
    fn runs_of_one_writer_join_unless_there_is_a_hole() {
        assert_eq!(taken_in(&[run(1, 2, "a"), run(3, 4, "a")]), run(1, 4, "a"));
        assert_eq!(taken_in(&[run(1, 2, "a"), run(4, 4, "a")]), run(4, 4, "a"));
    }

    #[test]
    fn another_writer_begins_anew() {
        assert_eq!(taken_in(&[run(1, 2, "a"), run(3, 3, "b")]), run(3, 3, "b"));
        assert_eq!(taken_in(&[run(1, 2, "a"), run(3, 3, "")]), run(3, 3, ""));
    }

    #[test]
    fn what_comes_late_or_twice_changes_nothing() {
        let mut all = run(5, 6, "a");
        assert!(!all.take_in(&run(3, 4, "b")));
        assert!(!all.take_in(&run(5, 6, "a")));
        assert_eq!(all, run(5, 6, "a"));
    }

    #[test]
    fn a_run_that_overlaps_counts_from_what_is_new() {
        let mut all = Run::unknown(6);
        assert!(all.take_in(&run(5, 8, "a")));
        assert_eq!(all, run(7, 8, "a"));
    }

    #[test]
    fn a_writer_is_named_only_for_what_it_wrote() {
        let all = run(5, 6, "a");
        assert_eq!(all.writer_since(4).map(AsRef::as_ref), Some("a"));
        assert_eq!(all.writer_since(3), None);
        assert_eq!(Run::unknown(6).writer_since(6), None);
    }
}
