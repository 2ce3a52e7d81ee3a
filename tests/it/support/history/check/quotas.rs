//! Rule Q1: how much a user may hold.

use std::collections::BTreeSet;

use super::{Answer, Context, Report, Rule, UserEvents, holds, timeline::Timeline};
use crate::support::history::event::{Limits, LockReply, Set, SetReply};

/// What a user held after one revision.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    records: u64,
    bytes: u64,
}

/// Checks what was accepted, what was refused, and the store's own counters.
pub(super) fn check(
    events: &UserEvents<'_>,
    timeline: &Timeline<'_>,
    context: &Context<'_>,
    report: &mut Report,
) {
    let limits = &context.settings.limits;
    let held = held(timeline);
    // A version that nobody saw makes the sums lower bounds of records and no bounds of bytes.
    let complete = timeline.versions.len() as u64 == timeline.head;
    accepted(timeline, &held, complete, limits, report);
    if complete {
        refused(events, timeline, &held, limits, report);
    }
    locks(events, context, report);
    if let Some(state) = events.state
        && let Some((records, bytes)) = state.counters
    {
        let counted = state.records.len() as u64;
        let summed: u64 = state.records.iter().map(|record| record.bytes).sum();
        if (records, bytes) != (counted, summed) {
            let what = format!(
                "the counters say {records} records, {bytes} bytes; \
                 there are {counted} and {summed}"
            );
            report.add(Rule::Q1, what);
        }
    }
}

/// What was held after each version.
fn held(timeline: &Timeline<'_>) -> Vec<Held> {
    let mut held = Held::default();
    let after = timeline.versions.iter().map(|version| {
        match version.previous {
            None => held.records += 1,
            Some(previous) => held.bytes -= timeline.versions[previous].set.bytes,
        }
        held.bytes += version.set.bytes;
        held
    });
    after.collect()
}

fn accepted(
    timeline: &Timeline<'_>,
    held: &[Held],
    complete: bool,
    limits: &Limits,
    report: &mut Report,
) {
    for (version, held) in timeline.versions.iter().zip(held) {
        let (revision, Held { records, bytes }) = (version.revision, *held);
        let is_new = version.previous.is_none();
        if is_new && limits.max_records.is_some_and(|most| records > most) {
            report.add(Rule::Q1, format!("revision {revision} made it {records} records"));
        }
        let before = version.previous.map_or(0, |index| timeline.versions[index].set.bytes);
        let grew = version.set.bytes > before;
        if complete && grew && limits.max_bytes.is_some_and(|most| bytes > most) {
            report.add(Rule::Q1, format!("revision {revision} made it {bytes} bytes"));
        }
    }
}

fn refused(
    events: &UserEvents<'_>,
    timeline: &Timeline<'_>,
    held: &[Held],
    limits: &Limits,
    report: &mut Report,
) {
    for set in &events.sets {
        for send in &set.sends {
            let (Answer::Ok(SetReply::OverQuota(quota)), Some(returned)) =
                (&send.answer, send.returned)
            else {
                continue;
            };
            let versions = &timeline.versions;
            let first = versions.partition_point(|version| version.latest < send.invoked);
            let last = versions.partition_point(|version| version.earliest <= returned);
            // The state before the first of these may have been the one that refused, too.
            let states = held[first.saturating_sub(1)..last.max(first)].iter();
            let (_, absent) = timeline.current_between(&set.id, send.invoked, returned);
            if !states.into_iter().any(|state| forbids(state, set, quota, absent, limits)) {
                let what = format!("a write of {:?} was over the quota of {quota}", set.id);
                report.add(Rule::Q1, what);
            }
        }
    }
}

fn forbids(state: &Held, set: &Set, quota: &str, absent: bool, limits: &Limits) -> bool {
    match quota {
        "records" => absent && limits.max_records.is_some_and(|most| state.records >= most),
        "bytes" => limits.max_bytes.is_some_and(|most| state.bytes + set.bytes > most),
        _ => false,
    }
}

fn locks(events: &UserEvents<'_>, context: &Context<'_>, report: &mut Report) {
    let Some(most) = context.settings.limits.max_locks else { return };
    let holds = holds::of(events, &context.settings);
    let holds: Vec<_> = holds.values().flatten().collect();
    let count = |counts: &dyn Fn(&holds::Hold<'_>) -> bool| {
        let counted = holds.iter().filter(|hold| counts(hold));
        let keys = counted.map(|hold| (hold.lock.name.as_str(), hold.lock.holder.as_str()));
        keys.collect::<BTreeSet<_>>().len() as u64
    };
    for hold in &holds {
        let held = count(&|other| other.covers(hold.from, hold.from));
        if hold.is_certain() && held > most {
            report.add(Rule::Q1, format!("{held} locks were held at once"));
        }
    }
    for call in &events.locks {
        let (Answer::Ok(LockReply::OverQuota), Some(returned)) = (&call.answer, call.returned)
        else {
            continue;
        };
        let perhaps = count(&|hold| hold.may_touch(call.invoked, returned));
        if perhaps < most {
            let (name, holder) = (&call.name, &call.holder);
            let what = format!("{name:?} was over the quota of {holder} with {perhaps} locks held");
            report.add(Rule::Q1, what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::Script, Rule};

    /// Five records, as many as a script's user may hold.
    fn five_records() -> (Script, Vec<(&'static str, u64, u64)>) {
        let mut script = Script::new();
        let ids = ["a", "b", "c", "d", "e"];
        let records =
            ids.into_iter().zip(1..).map(|(id, at)| (id, at, script.set(1, id, 0).ok(at)));
        let records = records.collect();
        (script, records)
    }

    #[test]
    fn q1_bounds_records_and_lets_held_ones_be_rewritten() {
        let (mut script, _) = five_records();
        script.set(1, "a", 1).ok(6);
        script.set(1, "f", 0).over_quota("records");
        script.is_correct();
        script.set(1, "f", 0).ok(7);
        script.breaks(Rule::Q1);
    }

    #[test]
    fn q1_wants_no_refusal_below_the_quota() {
        let mut script = Script::new();
        script.set(1, "a", 0).ok(1);
        script.set(1, "b", 0).over_quota("records");
        script.breaks(Rule::Q1);

        let (mut held, _) = five_records();
        held.set(1, "a", 1).over_quota("records");
        held.breaks(Rule::Q1);
    }

    #[test]
    fn q1_bounds_bytes_and_lets_records_shrink() {
        let mut script = Script::new();
        script.set(1, "a", 0).bytes(600).ok(1);
        script.set(1, "b", 0).bytes(400).ok(2);
        script.set(1, "c", 0).bytes(8).over_quota("bytes");
        script.set(1, "a", 1).bytes(500).ok(3);
        script.is_correct();
        script.set(1, "a", 3).bytes(601).ok(4);
        script.breaks(Rule::Q1);
    }

    #[test]
    fn q1_bounds_locks() {
        let mut script = Script::new();
        for (name, token) in [("one", 1), ("two", 2), ("three", 3)] {
            script.lock(1, true, 1_000).named(name).ok(token);
        }
        script.lock(2, true, 1_000).named("four").over_quota();
        script.is_correct();
        let mut more = script.clone();
        more.lock(2, true, 1_000).named("four").ok(4);
        more.breaks(Rule::Q1);
        script.wait(1_000);
        script.lock(2, true, 1_000).named("four").over_quota();
        script.breaks(Rule::Q1);
    }

    #[test]
    fn q1_wants_counters_that_equal_a_recount() {
        let (script, records) = five_records();
        let mut same = script.clone();
        same.state_with_counters(&records, 5, Some((5, 50)));
        same.is_correct();
        let mut other = script;
        other.state_with_counters(&records, 5, Some((5, 60)));
        other.breaks(Rule::Q1);
    }
}
