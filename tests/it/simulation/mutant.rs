//! Faults of a service, each to be switched on alone, that prove the checker.
//!
//! They sit at the seams of the service core (store, feed, clock) and before its RPCs, so the
//! product has no switch for them.

use crate::support::history::Rule;

/// One fault of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutant {
    /// Other replicas hear nothing, and nobody compares heads.
    DropsNotifications,
    /// Announcements are merged under the name of the last writer.
    MergesUnderOneName,
    /// Announcements name no writer.
    ForgetsNames,
    /// Announcements reach other users.
    TellsEverybody,
    /// The first notification is sent before the subscription is registered.
    SpeaksBeforeSubscribing,
    /// Streams end with OK.
    EndsWithOk,
    /// Clients with a cut page are not woken.
    NeverNudges,
    /// A nudge that another replica did not hear is lost for good.
    ForgetsLostNudges,
    /// Revisions are drawn before the commit and become visible out of order.
    DrawsRevisionsEarly,
    /// The revision is compared in one transaction and written in another.
    ReadsThenWrites,
    /// The revision is not compared.
    IgnoresConflicts,
    /// A conflict is answered where there is none.
    InventsConflicts,
    /// A write of unknown outcome is sent again without the digest of its request.
    RetriesWithoutDigest,
    /// A write is acknowledged and lost.
    LosesWrites,
    /// Writes are numbered by their replica in blocks, not by the user's counter.
    NumbersInBlocks,
    /// Pages come from a replica of the database that lags.
    ReadsStale,
    /// Pages are cut by records only.
    CutsByRecordsOnly,
    /// Locks expire by the replica's own clock.
    ExpiresByPodClock,
    /// Locks expire much too late.
    NeverExpires,
    /// Anybody's release frees a lock.
    ReleasesForOthers,
    /// Fencing tokens come from a counter that wraps.
    ReusesTokens,
    /// Quotas are checked in one transaction and used up in another.
    CountsThenWrites,
    /// Contention becomes an internal error.
    FailsUnderContention,
}

impl Mutant {
    /// Every mutant with the rule that must catch it.
    pub(super) const ALL: [(Self, Rule); 23] = [
        (Self::DropsNotifications, Rule::N1),
        (Self::MergesUnderOneName, Rule::N2),
        (Self::ForgetsNames, Rule::N5),
        (Self::TellsEverybody, Rule::N3),
        (Self::SpeaksBeforeSubscribing, Rule::N1),
        (Self::EndsWithOk, Rule::N2),
        (Self::NeverNudges, Rule::N4),
        (Self::ForgetsLostNudges, Rule::N4),
        (Self::DrawsRevisionsEarly, Rule::L5),
        (Self::ReadsThenWrites, Rule::L3),
        (Self::IgnoresConflicts, Rule::L3),
        (Self::InventsConflicts, Rule::L4),
        (Self::RetriesWithoutDigest, Rule::L7),
        (Self::LosesWrites, Rule::L6),
        (Self::NumbersInBlocks, Rule::L2),
        (Self::ReadsStale, Rule::L5),
        (Self::CutsByRecordsOnly, Rule::L5),
        (Self::ExpiresByPodClock, Rule::M1),
        (Self::NeverExpires, Rule::M3),
        (Self::ReleasesForOthers, Rule::M4),
        (Self::ReusesTokens, Rule::M2),
        (Self::CountsThenWrites, Rule::Q1),
        (Self::FailsUnderContention, Rule::E1),
    ];
}
