//! The suite every engine passes.
//!
//! A case is an async function that is handed a way to start a fresh, empty store with given
//! quotas. [`store_conformance_tests`](crate::store_conformance_tests) stamps one test per case
//! for an engine:
//!
//! ```ignore
//! async fn start(quotas: Quotas) -> Fixture { … }
//! data_sync::store_conformance_tests!(start);
//! ```

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed case ends its test")]

use std::{
    any::Any,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    LockAction, LockOutcome, LockRequest, PageLimit, Quotas, RecordWrite, RequestDigest, Store,
    StoreError, UserId, WriteOutcome, transfer::Transfer,
};
use crate::{
    clock::ManualClock,
    notify::{Change, ChangeFeed},
};

pub mod locks;
pub mod moves;
pub mod pages;
pub mod quotas;
pub mod races;
pub mod records;
pub mod restores;

/// Longest time one call of a case may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A fresh, empty store and what a case needs around it.
pub struct Fixture {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The same store.
    pub transfer: Arc<dyn Transfer>,
    /// The feed that the store was given.
    pub feed: Arc<RecordingFeed>,
    /// How time passes for its locks.
    pub time: Time,
    /// Whatever must live as long as the store: a directory, a database.
    pub guard: Box<dyn Any + Send>,
}

impl fmt::Debug for Fixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fixture").field("store", &self.store).finish_non_exhaustive()
    }
}

/// How time passes for a store's locks.
#[derive(Debug, Clone)]
pub enum Time {
    /// The store reads this clock.
    Manual(ManualClock),
    /// The store's database has a clock of its own.
    Real,
}

/// Collects what a store announces.
#[derive(Debug, Default)]
pub struct RecordingFeed {
    changes: Mutex<Vec<Change>>,
}

impl RecordingFeed {
    /// A feed that heard nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Change>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything announced about `user`, in the order it was.
    #[must_use]
    pub fn changes_of(&self, user: UserId) -> Vec<Change> {
        self.locked().iter().filter(|change| change.user == user).cloned().collect()
    }

    /// Newest revision announced of `user`; checks that all from 1 on were announced exactly once
    /// and in order.
    #[must_use]
    pub fn announced_head(&self, user: UserId) -> u64 {
        let mut head = 0;
        for change in self.changes_of(user) {
            assert_eq!(change.from, head + 1, "a hole or a repetition after revision {head}");
            assert!(change.to >= change.from, "an empty range at revision {}", change.from);
            head = change.to;
        }
        head
    }
}

impl ChangeFeed for RecordingFeed {
    fn announce(&self, changes: &[Change]) {
        self.locked().extend_from_slice(changes);
    }

    fn nudge(&self, _user: UserId) {}
}

/// A user, by number.
#[must_use]
pub fn user(number: u32) -> UserId {
    let mut key = [2; UserId::BYTES];
    key[29..].copy_from_slice(&number.to_be_bytes());
    UserId::new(key)
}

/// An instance, by number.
#[must_use]
pub const fn instance(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

/// A deadline that no case reaches.
#[must_use]
pub fn soon() -> Instant {
    Instant::now() + CALL_TIMEOUT
}

/// A newly signed write; clone it to send it again.
#[must_use]
pub fn new_write(user: UserId, id: &str, base_revision: u64, data: &[u8]) -> RecordWrite {
    static SIGNED: AtomicU64 = AtomicU64::new(0);
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&SIGNED.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    RecordWrite {
        user,
        id: id.to_owned(),
        base_revision,
        schema_version: "1.0.0".to_owned(),
        data: Bytes::copy_from_slice(data),
        digest: RequestDigest(digest),
        client_id: None,
    }
}

impl Fixture {
    /// Lets time pass for the store's locks.
    pub async fn wait_ms(&self, ms: u64) {
        match &self.time {
            Time::Manual(clock) => clock.advance(Duration::from_millis(ms)),
            Time::Real => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
    }

    async fn set(&self, write: RecordWrite) -> WriteOutcome {
        self.store.set_record(write, soon()).await.unwrap()
    }

    /// Writes and expects the write to be accepted; answers its revision.
    async fn put(&self, user: UserId, id: &str, base_revision: u64, data: &[u8]) -> u64 {
        match self.set(new_write(user, id, base_revision, data)).await {
            WriteOutcome::Written { revision } => revision,
            other => panic!("the write was answered {other:?}"),
        }
    }

    async fn head(&self, user: UserId) -> u64 {
        self.store.heads(&[user], soon()).await.unwrap()[0]
    }

    /// All records of `user`, by as many pages as it takes.
    async fn list_all(&self, user: UserId, limit: PageLimit) -> Vec<super::StoredRecord> {
        let mut records = Vec::new();
        let mut since = 0;
        loop {
            let page = self.store.list_changes(user, since, limit, soon()).await.unwrap();
            let Some(last) = page.records.last() else {
                assert!(!page.has_more, "an empty page promises more");
                return records;
            };
            since = last.revision;
            let has_more = page.has_more;
            records.extend(page.records);
            if !has_more {
                return records;
            }
        }
    }

    async fn lock(
        &self,
        user: UserId,
        name: &str,
        instance: Uuid,
        action: LockAction,
    ) -> LockOutcome {
        let request = LockRequest { user, name: name.to_owned(), instance, action };
        self.store.set_lock(request, soon()).await.unwrap()
    }

    /// Takes a lock and expects to get it; answers fencing token and expiry.
    async fn take(
        &self,
        user: UserId,
        name: &str,
        instance: Uuid,
        exclusive: bool,
        ttl_ms: u64,
    ) -> (u64, u64) {
        match self.lock(user, name, instance, LockAction::Acquire { exclusive, ttl_ms }).await {
            LockOutcome::Acquired { fencing_token, expires_at_ms } => {
                (fencing_token, expires_at_ms)
            }
            other => panic!("the lock was answered {other:?}"),
        }
    }

    async fn is_locked(&self, user: UserId, name: &str) -> bool {
        self.store.is_locked(user, name, soon()).await.unwrap()
    }

    /// Waits until everything up to `head` was announced of `user`.
    async fn announced(&self, user: UserId, head: u64) {
        let give_up = soon();
        while self.feed.announced_head(user) < head {
            assert!(Instant::now() < give_up, "revision {head} was never announced");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Checks that every way into a closed store answers `Unavailable`.
async fn assert_closed(store: &Arc<dyn Store>) {
    fn refused<T: fmt::Debug>(answer: &Result<T, StoreError>) {
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    }
    let user = user(1);
    let action = LockAction::Acquire { exclusive: true, ttl_ms: 1_000 };
    let lock = LockRequest { user, name: "l".to_owned(), instance: instance(1), action };
    refused(&store.set_record(new_write(user, "r", 0, b""), soon()).await);
    refused(&store.record(user, "r", soon()).await);
    refused(&store.list_changes(user, 0, PageLimit::WIRE, soon()).await);
    refused(&store.heads(&[user], soon()).await);
    refused(&store.set_lock(lock, soon()).await);
    refused(&store.is_locked(user, "l", soon()).await);
    refused(&store.status(soon()).await);
}

/// Stamps one test per case of the suite for an engine, given the path of an
/// `async fn(Quotas) -> Fixture`.
#[macro_export]
macro_rules! store_conformance_tests {
    ($start:path) => {
        $crate::store_conformance_tests! { @stamp $start, records:
            an_absent_record_is_accepted_at_any_base
            a_held_record_is_replaced_only_at_its_revision
            a_conflict_writes_and_announces_nothing
            revisions_have_no_gaps_across_conflicts
            a_repeat_is_answered_with_the_first_revision
            a_repeat_whose_base_became_its_revision_writes_nothing
            a_repeat_is_known_after_other_records_were_written
            a_repeat_after_a_later_write_is_a_conflict
            a_digest_of_another_record_is_no_repeat
            empty_id_and_empty_data_round_trip
            the_largest_record_round_trips
            ids_are_compared_byte_by_byte
            users_do_not_see_each_other
            each_write_is_announced_before_its_answer
            heads_answer_in_order_with_zero_for_unknown
            a_passed_deadline_is_answered_so
            the_status_tells_schema_and_time
            a_closed_store_is_unavailable
        }
        $crate::store_conformance_tests! { @stamp $start, pages:
            changes_are_listed_ascending_and_once_per_record
            a_since_at_or_above_the_head_lists_nothing
            a_page_is_cut_at_the_number_of_records
            a_page_is_cut_at_its_bytes
            a_page_holds_at_least_one_record
            the_wire_limit_cuts_large_backlogs
            paging_neither_skips_nor_repeats
            pages_beside_writes_are_snapshots
        }
        $crate::store_conformance_tests! { @stamp $start, locks:
            exclusive_lock_refuses_other_instances
            shared_locks_tolerate_each_other_and_refuse_exclusive
            a_holder_takes_again_with_a_new_expiry
            an_upgrade_needs_to_be_alone
            a_downgrade_lets_others_share
            release_is_idempotent_and_only_by_its_holder
            locks_differ_by_name_and_user
            expiry_is_never_early_and_frees_the_lock
            the_expiry_counts_milliseconds
            an_expired_lock_is_not_renewed_but_taken_anew
            fencing_tokens_rise_with_each_change_of_holder
            a_renewal_keeps_its_fencing_token
            an_upgrade_draws_a_new_fencing_token
            one_racer_of_64_wins_an_exclusive_lock
        }
        $crate::store_conformance_tests! { @stamp $start, quotas:
            the_record_quota_is_exact
            the_byte_quota_counts_what_is_held
            a_user_over_quota_may_still_shrink
            a_conflict_is_told_before_a_quota
            the_lock_quota_counts_live_locks
            a_lock_held_by_another_is_told_before_the_quota
            racing_writers_never_pass_the_record_quota
            racing_writers_never_pass_the_byte_quota
            racing_instances_never_pass_the_lock_quota
            quotas_are_per_user
        }
        $crate::store_conformance_tests! { @stamp $start, races:
            one_of_32_writers_to_one_record_wins_each_round
            writers_of_one_user_get_gapless_revisions
            first_writes_of_64_users_all_succeed
            racing_repeats_write_and_announce_once
            announcements_name_only_true_writers
            a_write_survives_its_caller
        }
        $crate::store_conformance_tests! { @stamp $start, moves:
            a_move_keeps_everything
            putting_twice_is_as_once
            put_records_keep_the_counters_true
            counters_equal_a_recount
            a_raised_head_is_kept_and_counted_on
            a_raised_fencing_token_is_a_floor
            expired_locks_do_not_move
        }
        $crate::store_conformance_tests! { @stamp $start, restores:
            a_lift_renumbers_above_all_that_was_lost
            users_unknown_to_a_lift_begin_above_it
            a_lift_keeps_what_heals_resends
            lifting_again_is_safe
        }
    };
    (@stamp $start:path, $module:ident: $($case:ident)*) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    $crate::store::conformance::$module::$case($start).await;
                }
            )*
        }
    };
}

#[cfg(test)]
mod tests {
    /// A case that the macro does not name would never run.
    #[test]
    fn every_case_is_stamped() {
        let (_, list) = include_str!("mod.rs").split_once("macro_rules!").unwrap();
        let stamped: Vec<&str> = list.lines().map(str::trim).collect();
        let files = [
            include_str!("locks.rs"),
            include_str!("moves.rs"),
            include_str!("pages.rs"),
            include_str!("quotas.rs"),
            include_str!("races.rs"),
            include_str!("records.rs"),
            include_str!("restores.rs"),
        ];
        let mut cases = 0;
        for line in files.iter().flat_map(|file| file.lines()) {
            let Some(rest) = line.strip_prefix("pub async fn ") else { continue };
            let (case, _) = rest.split_once('(').unwrap();
            assert!(stamped.contains(&case), "{case} is not in the macro's list");
            cases += 1;
        }
        assert!(cases > 50, "found only {cases} cases");
    }
}
