//! Rules L1 to L4, L6 and L7: what writes were answered.

use std::collections::{BTreeMap, BTreeSet};

use super::{Context, Nanos, Report, Rule, UserEvents, timeline::Timeline};
use crate::support::history::event::{Answer, Set, SetReply};

/// Checks the writes, and puts them in order for the other rules.
pub(super) fn check<'h>(
    events: &UserEvents<'h>,
    context: &Context<'h>,
    report: &mut Report,
) -> Timeline<'h> {
    let timeline = Timeline::read(events, context, report);
    let hidden = bases(&timeline, events, report);
    holes(&timeline, events, &hidden, report);
    conflicts(&timeline, events, report);
    durability(&timeline, events, report);
    timeline
}

/// Unanswered writes that must have happened although nobody saw them.
#[derive(Debug, Default)]
struct Hidden {
    /// Their revisions.
    revisions: BTreeSet<u64>,
    /// Their tags.
    tags: BTreeSet<u64>,
}

/// L3: each version replaces the one that its writer named.
fn bases(timeline: &Timeline<'_>, events: &UserEvents<'_>, report: &mut Report) -> Hidden {
    let mut unseen = BTreeMap::<&str, Vec<&Set>>::new();
    for set in timeline.unseen(events) {
        unseen.entry(&set.id).or_default().push(set);
    }
    let mut hidden = Hidden::default();
    for version in &timeline.versions {
        let Some(previous) = version.previous.map(|index| timeline.revision(index)) else {
            continue;
        };
        let base = version.set.base;
        if base == previous {
            continue;
        }
        // A version that nobody saw may lie between, if an unanswered write can have made it.
        let between = previous < base && base < version.revision && timeline.at(base).is_none();
        let id = version.set.id.as_str();
        let maker = unseen.get_mut(id).filter(|_| between).and_then(|sets| {
            let fits = |set: &&Set| set.base == previous && set.invoked() <= version.latest;
            sets.iter().position(fits).map(|index| sets.swap_remove(index))
        });
        if let Some(maker) = maker {
            hidden.revisions.insert(base);
            hidden.tags.insert(maker.tag);
        } else {
            let revision = version.revision;
            let what = format!(
                "revision {revision} of {id:?} was written on {base} and replaced {previous}"
            );
            report.add(Rule::L3, what);
        }
    }
    hidden
}

/// L1: every revision up to the head belongs to a write that was answered, seen, or left open
/// early enough.
fn holes(timeline: &Timeline<'_>, events: &UserEvents<'_>, hidden: &Hidden, report: &mut Report) {
    let known = (timeline.versions.len() + hidden.revisions.len()) as u64;
    let missing = timeline.head.saturating_sub(known);
    let mut open: Vec<Nanos> = timeline
        .unseen(events)
        .filter(|set| !hidden.tags.contains(&set.tag))
        .map(Set::invoked)
        .collect();
    if missing > open.len() as u64 {
        let (head, open) = (timeline.head, open.len());
        let what = format!(
            "{missing} revisions up to head {head} belong to nobody; {open} writes are open"
        );
        report.add(Rule::L1, what);
        return;
    }
    open.sort_unstable();
    // Falling revisions have falling times to be sent by, so the earliest writes serve the lowest.
    let taken =
        |revision: &u64| timeline.at(*revision).is_some() || hidden.revisions.contains(revision);
    let missing = (1..=timeline.head).filter(|revision| !taken(revision));
    for (revision, sent) in missing.zip(open) {
        let above = timeline.versions.get(timeline.above(revision)).map(|version| version.latest);
        let committed = [above, timeline.head_seen(revision)].into_iter().flatten().min();
        if committed.is_some_and(|committed| sent > committed) {
            let what = format!("revision {revision} was there before any open write was sent");
            report.add(Rule::L1, what);
        }
    }
}

/// L4: a conflict needs another revision than the one named, at some instant meanwhile.
///
/// An open write of the same record that nobody saw may have been the reason.
fn conflicts(timeline: &Timeline<'_>, events: &UserEvents<'_>, report: &mut Report) {
    let unseen: BTreeSet<&str> = timeline.unseen(events).map(|set| set.id.as_str()).collect();
    for set in events.sets.iter().filter(|set| !unseen.contains(set.id.as_str())) {
        for send in &set.sends {
            let (Answer::Ok(SetReply::Conflict(_)), Some(returned)) = (&send.answer, send.returned)
            else {
                continue;
            };
            let (mut current, _) = timeline.current_between(&set.id, send.invoked, returned);
            let stands_against = |revision, tag| revision != set.base && tag != set.tag;
            if !current.any(|version| stands_against(version.revision, version.set.tag)) {
                let (id, base) = (&set.id, set.base);
                let what = format!("a write of {id:?} on {base} met a conflict with nothing");
                report.add(Rule::L4, what);
            }
        }
    }
}

/// L6: what was acknowledged is in the last state, or a higher revision of the same record is.
fn durability(timeline: &Timeline<'_>, events: &UserEvents<'_>, report: &mut Report) {
    let Some(state) = events.state else { return };
    let held: BTreeMap<&str, u64> =
        state.records.iter().map(|record| (record.id.as_str(), record.revision)).collect();
    for (id, versions) in &timeline.by_id {
        let mut versions = versions.iter().map(|index| &timeline.versions[*index]);
        let acknowledged = versions.rfind(|version| version.set.written().is_some());
        let Some(last) = acknowledged else { continue };
        let revision = last.revision;
        match held.get(id) {
            Some(held) if *held >= revision => {}
            Some(held) => {
                let what = format!("revision {revision} of {id:?} was lost, {held} is there");
                report.add(Rule::L6, what);
            }
            None => report.add(Rule::L6, format!("revision {revision} of {id:?} was lost")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::Script, Rule};

    #[test]
    fn l1_wants_unique_revisions() {
        let mut script = Script::new();
        script.set(1, "a", 0).ok(1);
        script.set(2, "b", 0).ok(2);
        script.is_correct();
        script.set(1, "c", 0).ok(2);
        script.breaks(Rule::L1);
    }

    #[test]
    fn l1_counts_each_user_apart() {
        let mut script = Script::new();
        script.set(1, "a", 0).ok(1);
        script.set(101, "a", 0).ok(1);
        script.is_correct();
    }

    #[test]
    fn l1_wants_no_hole_that_no_open_write_fills() {
        let mut script = Script::new();
        script.set(1, "a", 0).unknown("UNAVAILABLE");
        script.set(1, "b", 0).ok(2);
        script.is_correct();
        script.set(1, "c", 0).ok(4);
        script.breaks(Rule::L1);
    }

    #[test]
    fn l1_lets_an_open_write_fill_only_later_holes() {
        let mut script = Script::new();
        script.set(1, "b", 0).ok(2);
        script.set(1, "a", 0).unknown("UNAVAILABLE");
        script.breaks(Rule::L1);
    }

    #[test]
    fn l1_begins_at_one() {
        let mut script = Script::new();
        script.set(1, "a", 0).ok(0);
        script.breaks(Rule::L1);
    }

    #[test]
    fn l2_lets_writes_overlap_in_any_order_and_follow_in_one() {
        let mut script = Script::new();
        script.set(1, "a", 0).between(0, 30).ok(2);
        script.set(2, "b", 0).between(10, 20).ok(1);
        script.is_correct();

        let mut script = Script::new();
        script.set(1, "a", 0).between(0, 10).ok(2);
        script.set(2, "b", 0).between(20, 30).ok(1);
        script.breaks(Rule::L2);
    }

    #[test]
    fn l3_wants_the_named_revision_replaced() {
        let mut script = Script::new();
        script.set(1, "a", 0).ok(1);
        script.set(2, "a", 1).ok(2);
        script.is_correct();
        script.set(1, "a", 1).ok(3);
        script.breaks(Rule::L3);
    }

    #[test]
    fn l3_takes_an_absent_record_at_any_revision() {
        let mut script = Script::new();
        script.set(1, "a", 77).ok(1);
        script.is_correct();
    }

    #[test]
    fn l3_allows_a_version_that_nobody_saw() {
        let mut script = Script::new();
        script.set(1, "a", 0).ok(1);
        script.set(1, "a", 1).unknown("UNAVAILABLE");
        script.set(2, "a", 2).ok(3);
        script.is_correct();

        let mut script = Script::new();
        script.set(1, "a", 0).ok(1);
        script.set(1, "b", 0).unknown("UNAVAILABLE");
        script.set(2, "a", 2).ok(3);
        script.breaks(Rule::L3);
    }

    #[test]
    fn l4_wants_a_reason_for_a_conflict() {
        let mut script = Script::new();
        script.set(1, "a", 0).ok(1);
        script.set(2, "a", 0).conflict();
        script.is_correct();
        script.set(2, "a", 1).conflict();
        script.breaks(Rule::L4);
    }

    #[test]
    fn l4_finds_the_reason_in_a_write_meanwhile() {
        let mut script = Script::new();
        script.set(1, "a", 0).ok(1);
        script.set(1, "a", 1).between(100, 120).ok(2);
        script.set(2, "a", 1).between(110, 130).conflict();
        script.is_correct();
    }

    #[test]
    fn l4_knows_no_conflict_with_an_absent_record() {
        let mut script = Script::new();
        script.set(1, "a", 5).conflict();
        script.breaks(Rule::L4);
    }

    #[test]
    fn l4_knows_no_conflict_of_a_write_with_itself() {
        let mut script = Script::new();
        script.set(1, "a", 0).unknown_then("UNAVAILABLE").ok(1);
        script.is_correct();

        let mut script = Script::new();
        let tag = script.set(1, "a", 0).unknown_then("UNAVAILABLE").conflict();
        script.list(1, 0).shows(&[("a", 1, tag)], 1);
        script.breaks(Rule::L4);
    }

    #[test]
    fn l6_wants_acknowledged_writes_kept_or_superseded() {
        let mut script = Script::new();
        script.set(1, "a", 0).ok(1);
        let tag = script.set(1, "a", 1).ok(2);
        let mut superseded = script.clone();
        superseded.state(&[("a", 2, tag)], 2);
        superseded.is_correct();
        script.state(&[], 2);
        script.breaks(Rule::L6);
    }

    #[test]
    fn l6_asks_nothing_of_unanswered_writes() {
        let mut script = Script::new();
        script.set(1, "a", 0).unknown("UNAVAILABLE");
        script.state(&[], 0);
        script.is_correct();
    }

    #[test]
    fn l7_wants_one_revision_for_one_write() {
        let mut script = Script::new();
        let tag = script.set(1, "a", 0).unknown("UNAVAILABLE");
        script.list(1, 0).shows(&[("a", 1, tag)], 1);
        script.is_correct();
        script.list(1, 0).shows(&[("a", 2, tag)], 2);
        script.breaks(Rule::L7);
    }

    #[test]
    fn l7_wants_refused_writes_undone() {
        let mut script = Script::new();
        script.set(2, "a", 0).ok(1);
        let tag = script.set(1, "a", 0).conflict();
        script.is_correct();
        script.list(1, 0).shows(&[("a", 2, tag)], 2);
        script.breaks(Rule::L7);
    }

    #[test]
    fn l7_lets_a_resent_write_that_was_overtaken_conflict() {
        let mut script = Script::new();
        let tag = script.set(1, "a", 0).between(0, 90).unknown_then("UNAVAILABLE").conflict();
        script.list(2, 0).between(100, 110).shows(&[("a", 1, tag)], 1);
        script.breaks(Rule::L4);

        let mut script = Script::new();
        script.set(1, "a", 0).between(0, 90).unknown_then("UNAVAILABLE").conflict();
        script.set(2, "a", 1).between(20, 30).ok(2);
        script.is_correct();
    }
}
