//! Rules M1 to M4: what locks promise.

use std::collections::BTreeMap;

use super::{
    Answer, Context, Lock, Nanos, Report, Rule, UserEvents,
    holds::{self, Hold},
};
use crate::support::history::event::{LockAction, LockReply};

/// Checks every lock of one user.
pub(super) fn check(events: &UserEvents<'_>, context: &Context<'_>, report: &mut Report) {
    let holds = holds::of(events, &context.settings);
    let mut calls = BTreeMap::<&str, Vec<&Lock>>::new();
    for lock in &events.locks {
        calls.entry(&lock.name).or_default().push(lock);
    }
    for (name, holds) in &holds {
        let judge = Judge { name, holds, calls: &calls[name] };
        judge.exclusion(report);
        judge.tokens(report);
    }
    for (name, calls) in &calls {
        let holds = holds.get(name).map_or(&[][..], Vec::as_slice);
        Judge { name, holds, calls }.refusals(report);
    }
    for locked in &events.locked {
        let holds = holds.get(locked.name.as_str()).map_or(&[][..], Vec::as_slice);
        let calls = calls.get(locked.name.as_str()).map_or(&[][..], Vec::as_slice);
        let judge = Judge { name: &locked.name, holds, calls };
        if let (Answer::Ok(answer), Some(returned)) = (&locked.answer, locked.returned) {
            judge.answer(*answer, locked.invoked, returned, report);
        }
    }
    shared_tokens(&holds, report);
}

/// One lock.
struct Judge<'j, 'h> {
    name: &'j str,
    /// By the time they were asked for.
    holds: &'j [Hold<'h>],
    calls: &'j [&'h Lock],
}

impl Judge<'_, '_> {
    /// M1 and M4: nobody is granted what another certainly holds.
    fn exclusion(&self, report: &mut Report) {
        for (index, one) in self.holds.iter().enumerate() {
            // Holds asked for later than this one ends cannot touch it.
            let touching = self.holds[index + 1..]
                .iter()
                .take_while(|other| other.lock.invoked <= one.perhaps_until);
            for other in touching {
                let apart = one.lock.holder == other.lock.holder
                    || !(one.exclusive || other.exclusive)
                    || one.token.is_none()
                    || other.token.is_none();
                if apart {
                    continue;
                }
                let both = one.is_certain()
                    && other.is_certain()
                    && one.from < other.until
                    && other.from < one.until;
                let grants = one.covers(other.lock.invoked, other.from)
                    || other.covers(one.lock.invoked, one.from);
                if both || grants {
                    let (name, first, second) = (self.name, &one.lock.holder, &other.lock.holder);
                    let rule = self.rule(one.from.min(other.from), one.from.max(other.from), one);
                    report.add(rule, format!("{name:?} was held by {first} and {second} together"));
                }
            }
        }
    }

    /// M4 where somebody released a lock that was not theirs meanwhile, else M1.
    fn rule(&self, from: Nanos, until: Nanos, hold: &Hold<'_>) -> Rule {
        let by_others = self.calls.iter().any(|call| {
            matches!(call.action, LockAction::Release)
                && call.holder != hold.lock.holder
                && call.invoked <= until
                && call.returned.is_none_or(|returned| returned >= from)
        });
        if by_others { Rule::M4 } else { Rule::M1 }
    }

    /// M2: a new holder's token is above those of all holders before it.
    fn tokens(&self, report: &mut Report) {
        let granted = || self.holds.iter().filter_map(|hold| Some((hold, hold.token?)));
        let mut answered: Vec<_> = granted().collect();
        answered.sort_by_key(|(hold, _)| hold.from);
        let mut answered = answered.into_iter().peekable();
        let (mut all, mut exclusive) = (Highest::default(), Highest::default());
        for (hold, token) in granted() {
            let asked = hold.lock.invoked;
            while let Some((before, token)) = answered.next_if(|(before, _)| before.from < asked) {
                all.add(&before.lock.holder, token);
                if before.exclusive {
                    exclusive.add(&before.lock.holder, token);
                }
            }
            // Two shared holders may renew side by side, each keeping its token.
            let others = if hold.exclusive { &all } else { &exclusive };
            let holder = hold.lock.holder.as_str();
            let name = self.name;
            if let Some(before) = others.of_others(holder).filter(|before| *before >= token) {
                let what = format!("{name:?}: {holder} got token {token} after {before} was given");
                report.add(Rule::M2, what);
            }
            if let Some(before) = all.of(holder).filter(|before| *before > token) {
                let what = format!("{name:?}: {holder} fell from token {before} to {token}");
                report.add(Rule::M2, what);
            }
        }
    }

    /// M3: whoever is refused was so because of somebody.
    fn refusals(&self, report: &mut Report) {
        for call in self.calls {
            let (
                LockAction::Acquire { exclusive, .. },
                Answer::Ok(LockReply::Held),
                Some(returned),
            ) = (call.action, &call.answer, call.returned)
            else {
                continue;
            };
            let forbids = |hold: &&Hold<'_>| {
                hold.lock.holder != call.holder
                    && (hold.exclusive || exclusive)
                    && hold.may_touch(call.invoked, returned)
            };
            if !self.asked_by(returned).any(|hold| forbids(&hold)) {
                let (name, holder) = (self.name, &call.holder);
                report
                    .add(Rule::M3, format!("{name:?} was refused to {holder}, but nobody held it"));
            }
        }
    }

    /// GetLock: held if certainly so, free if certainly so.
    fn answer(&self, locked: bool, invoked: Nanos, returned: Nanos, report: &mut Report) {
        let name = self.name;
        if locked {
            if !self.asked_by(returned).any(|hold| hold.may_touch(invoked, returned)) {
                report.add(Rule::M3, format!("{name:?} was said to be held, but nobody held it"));
            }
        } else if let Some(hold) =
            self.asked_by(returned).find(|hold| hold.covers(invoked, returned))
        {
            let rule = self.rule(hold.from, returned, hold);
            let holder = &hold.lock.holder;
            report.add(rule, format!("{name:?} was said to be free, but {holder} held it"));
        }
    }

    /// Holds asked for by `time`, the latest first.
    fn asked_by(&self, time: Nanos) -> impl Iterator<Item = &Hold<'_>> {
        let asked = self.holds.partition_point(|hold| hold.lock.invoked <= time);
        self.holds[..asked].iter().rev()
    }
}

/// M2: no two holders share a token.
fn shared_tokens(holds: &holds::Holds<'_>, report: &mut Report) {
    let mut owners = BTreeMap::<u64, (&str, &str)>::new();
    for (name, holds) in holds {
        for hold in holds {
            let Some(token) = hold.token else { continue };
            let owner = (*name, hold.lock.holder.as_str());
            let first = *owners.entry(token).or_insert(owner);
            if first != owner {
                let what = format!("token {token} was given to {first:?} and to {owner:?}");
                report.add(Rule::M2, what);
            }
        }
    }
}

/// The greatest token of each holder, of which the greatest of all but one is wanted.
#[derive(Debug, Default)]
struct Highest<'h> {
    by_holder: BTreeMap<&'h str, u64>,
    /// Greatest tokens of two different holders, descending.
    top: Vec<(u64, &'h str)>,
}

impl<'h> Highest<'h> {
    fn add(&mut self, holder: &'h str, token: u64) {
        let highest = self.by_holder.entry(holder).or_default();
        *highest = token.max(*highest);
        let highest = *highest;
        self.top.retain(|(_, known)| *known != holder);
        self.top.push((highest, holder));
        self.top.sort_unstable_by(|one, other| other.cmp(one));
        self.top.truncate(2);
    }

    fn of(&self, holder: &str) -> Option<u64> {
        self.by_holder.get(holder).copied()
    }

    fn of_others(&self, holder: &str) -> Option<u64> {
        self.top.iter().find(|(_, known)| *known != holder).map(|(token, _)| *token)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::Script, Rule};

    #[test]
    fn m1_lets_a_lock_pass_on_after_release_or_expiry() {
        let mut script = Script::new();
        script.lock(1, true, 1_000).ok(1);
        script.unlock(1).released();
        script.lock(2, true, 1_000).ok(2);
        script.wait(1_000);
        script.lock(3, true, 1_000).ok(3);
        script.is_correct();
    }

    #[test]
    fn m1_wants_one_holder_alone() {
        let mut script = Script::new();
        script.lock(1, true, 1_000).ok(1);
        script.lock(2, true, 1_000).ok(2);
        script.breaks(Rule::M1);

        let mut shared = Script::new();
        shared.lock(1, false, 1_000).ok(1);
        shared.lock(2, false, 1_000).ok(2);
        shared.is_correct();
        shared.lock(3, true, 1_000).ok(3);
        shared.breaks(Rule::M1);
    }

    #[test]
    fn m1_wants_no_early_expiry() {
        let mut script = Script::new();
        script.lock(1, true, 1_000).ok(1);
        script.wait(900);
        script.lock(2, true, 10).ok(2);
        script.breaks(Rule::M1);
    }

    #[test]
    fn m1_claims_nothing_while_a_release_is_open() {
        let mut script = Script::new();
        script.lock(1, true, 1_000).ok(1);
        script.unlock(1).unknown();
        script.lock(2, true, 1_000).ok(2);
        script.is_correct();

        let mut reordered = Script::new();
        reordered.unlock(1).unknown();
        reordered.lock(1, true, 1_000).ok(1);
        reordered.lock(2, true, 1_000).ok(2);
        reordered.is_correct();
    }

    #[test]
    fn m1_wants_a_held_lock_called_held() {
        let mut script = Script::new();
        script.locked(2, false);
        script.lock(1, false, 1_000).ok(1);
        script.locked(2, true);
        script.is_correct();
        script.locked(2, false);
        script.breaks(Rule::M1);
    }

    #[test]
    fn m2_wants_tokens_to_rise_with_the_holder() {
        let mut script = Script::new();
        script.lock(1, true, 1_000).ok(1);
        script.lock(1, true, 1_000).ok(1);
        script.unlock(1).released();
        let mut risen = script.clone();
        risen.lock(2, true, 1_000).ok(2);
        risen.is_correct();
        let mut same = script.clone();
        same.lock(2, true, 1_000).ok(1);
        same.breaks(Rule::M2);
    }

    #[test]
    fn m2_wants_no_holder_to_fall_back() {
        let mut script = Script::new();
        script.lock(1, true, 1_000).ok(2);
        script.unlock(1).released();
        script.lock(1, true, 1_000).ok(1);
        script.breaks(Rule::M2);
    }

    #[test]
    fn m2_lets_shared_holders_renew_side_by_side() {
        let mut script = Script::new();
        script.lock(1, false, 1_000).ok(1);
        script.lock(2, false, 1_000).ok(2);
        script.lock(1, false, 1_000).ok(1);
        script.is_correct();
    }

    #[test]
    fn m2_wants_tokens_of_different_locks_to_differ() {
        let mut script = Script::new();
        script.lock(1, true, 1_000).ok(1);
        script.lock(1, true, 1_000).named("other").ok(1);
        script.breaks(Rule::M2);
    }

    #[test]
    fn m3_wants_a_holder_behind_each_refusal() {
        let mut script = Script::new();
        script.lock(1, true, 1_000).ok(1);
        script.lock(2, true, 1_000).held();
        script.lock(2, false, 1_000).held();
        script.is_correct();
        script.wait(1_000);
        script.lock(2, true, 1_000).held();
        script.breaks(Rule::M3);
    }

    #[test]
    fn m3_wants_a_released_lock_free() {
        let mut script = Script::new();
        script.lock(1, true, 1_000).ok(1);
        script.unlock(1).released();
        let mut refused = script.clone();
        refused.lock(2, true, 1_000).held();
        refused.breaks(Rule::M3);
        script.locked(2, true);
        script.breaks(Rule::M3);
    }

    #[test]
    fn m3_takes_an_open_call_for_a_holder_as_long_as_it_may_be_one() {
        let mut script = Script::new();
        script.lock(1, true, 1_000).unknown();
        script.lock(2, true, 1_000).held();
        script.is_correct();
        script.wait(1_600);
        script.lock(2, true, 1_000).held();
        script.breaks(Rule::M3);
    }

    #[test]
    fn m3_wants_no_refusal_between_shared_holders() {
        let mut script = Script::new();
        script.lock(1, false, 1_000).ok(1);
        script.lock(2, false, 1_000).held();
        script.breaks(Rule::M3);
    }

    #[test]
    fn m4_wants_a_release_by_another_to_change_nothing() {
        let mut script = Script::new();
        script.lock(1, true, 1_000).ok(1);
        script.unlock(2).released();
        script.locked(2, true);
        script.is_correct();
        let mut said = script.clone();
        said.locked(2, false);
        said.breaks(Rule::M4);
        script.lock(2, true, 1_000).ok(2);
        script.breaks(Rule::M4);
    }

    #[test]
    fn a_call_between_other_times_is_judged_by_them() {
        let mut script = Script::new();
        script.lock(1, true, 100).between(0, 50).ok(1);
        script.lock(2, true, 100).between(60, 200).ok(2);
        script.is_correct();
    }
}
