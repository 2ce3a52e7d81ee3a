//! Judges a history, rule by rule.
//!
//! Every rule is sound: what it reports, no correct service can have answered. It errs only
//! towards silence, where unanswered requests leave open what happened. The cost is near-linear in
//! the events of one user (`n log n`, and for lists in what they show).

use std::{collections::BTreeMap, fmt};

use super::event::{
    Answer, ClientState, Ended, Event, Fault, History, List, Listen, Lock, Locked, Nanos, Notified,
    Set, Settings, State,
};

mod convergence;
mod holds;
mod locks;
mod pages;
mod quotas;
mod streams;
#[cfg(test)]
mod testing;
mod timeline;
mod writes;

/// What every correct service keeps. The numbers are those of the design's reliability notes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Rule {
    /// Revisions of accepted writes are unique per user, from 1, without holes.
    L1,
    /// A write that was answered before another was sent has the lower revision.
    L2,
    /// A write replaces the revision it names, or creates the record.
    L3,
    /// A conflict is answered only if the record was at another revision at some instant meanwhile.
    L4,
    /// A page is a prefix of one state that is neither stale nor from the future.
    L5,
    /// What was acknowledged is there in the end, or superseded.
    L6,
    /// A write happens at most once, and never when it was refused.
    L7,
    /// Every stream is told of every later write of others in time, or ends.
    N1,
    /// A stream begins empty, its revisions rise, it names a client only if all it covers is that
    /// client's, and it never ends with OK.
    N2,
    /// Nothing about one user reaches another.
    N3,
    /// In the end every client holds what the server holds.
    N4,
    /// A client's own writes alone do not make it list.
    N5,
    /// Two instances never hold a lock together if one of them holds it alone.
    M1,
    /// Fencing tokens rise with each change of holder.
    M2,
    /// A lock is refused only while somebody may hold it.
    M3,
    /// A release by somebody else changes nothing.
    M4,
    /// No user ever holds more than allowed, and none is refused with less.
    Q1,
    /// No error is the service's own fault (INTERNAL, UNKNOWN).
    E1,
}

/// One rule broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// The rule.
    pub(crate) rule: Rule,
    /// For whom.
    pub(crate) user: u32,
    /// How, with the revisions and times that show it.
    pub(crate) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} broken for user {}: {}", self.rule, self.user, self.what)
    }
}

/// One stream with all it was told.
#[derive(Debug)]
struct Stream<'h> {
    listen: &'h Listen,
    told: Vec<&'h Notified>,
    ended: Option<&'h Ended>,
}

/// What one user's clients did and saw.
#[derive(Debug, Default)]
struct UserEvents<'h> {
    sets: Vec<&'h Set>,
    lists: Vec<&'h List>,
    locks: Vec<&'h Lock>,
    locked: Vec<&'h Locked>,
    streams: Vec<Stream<'h>>,
    clients: Vec<&'h ClientState>,
    state: Option<&'h State>,
}

/// What rules look at beside one user's events.
#[derive(Debug)]
struct Context<'h> {
    settings: Settings,
    /// Faults that excuse late notifications, by their begin.
    excuses: Vec<&'h Fault>,
    /// Which write made a tag.
    by_tag: BTreeMap<u64, &'h Set>,
    /// Which user a client id belongs to.
    client_ids: BTreeMap<String, u32>,
    /// When the history ends.
    end: Nanos,
}

/// Collects what is broken for one user.
#[derive(Debug)]
struct Report {
    user: u32,
    violations: Vec<Violation>,
}

impl Report {
    fn add(&mut self, rule: Rule, what: String) {
        self.violations.push(Violation { rule, user: self.user, what });
    }
}

/// Everything in `history` that no correct service could have answered.
pub(crate) fn check(history: &History) -> Vec<Violation> {
    let (users, context) = partition(history);
    let mut violations = Vec::new();
    for (user, events) in &users {
        let mut report = Report { user: *user, violations: Vec::new() };
        let timeline = writes::check(events, &context, &mut report);
        pages::check(events, &timeline, &context, &mut report);
        streams::check(events, &timeline, &context, &mut report);
        convergence::check(events, &timeline, &mut report);
        locks::check(events, &context, &mut report);
        quotas::check(events, &timeline, &context, &mut report);
        own_faults(events, &mut report);
        violations.append(&mut report.violations);
    }
    violations
}

fn partition(history: &History) -> (BTreeMap<u32, UserEvents<'_>>, Context<'_>) {
    let mut users = BTreeMap::<u32, UserEvents<'_>>::new();
    let mut streams = BTreeMap::<u64, Stream<'_>>::new();
    let mut context = Context {
        settings: history.settings,
        excuses: Vec::new(),
        by_tag: BTreeMap::new(),
        client_ids: BTreeMap::new(),
        end: 0,
    };
    for event in &history.events {
        context.end = context.end.max(latest(event));
        match event {
            Event::Settings(_) => {}
            Event::Set(set) => {
                context.by_tag.insert(set.tag, set);
                context.client_ids.insert(set.by.client_id(), set.by.user);
                users.entry(set.by.user).or_default().sets.push(set);
            }
            Event::List(list) => users.entry(list.by.user).or_default().lists.push(list),
            Event::Lock(lock) => users.entry(lock.by.user).or_default().locks.push(lock),
            Event::Locked(locked) => users.entry(locked.by.user).or_default().locked.push(locked),
            Event::Listen(listen) => {
                streams.insert(listen.stream, Stream { listen, told: Vec::new(), ended: None });
            }
            Event::Notified(notified) => {
                if let Some(stream) = streams.get_mut(&notified.stream) {
                    stream.told.push(notified);
                }
            }
            Event::Ended(ended) => {
                if let Some(stream) = streams.get_mut(&ended.stream) {
                    stream.ended = Some(ended);
                }
            }
            Event::Fault(fault) if fault.excuses_delay => context.excuses.push(fault),
            Event::Fault(_) => {}
            Event::State(state) => users.entry(state.user).or_default().state = Some(state),
            Event::Client(client) => users.entry(client.by.user).or_default().clients.push(client),
        }
    }
    context.excuses.sort_by_key(|fault| fault.from);
    for stream in streams.into_values() {
        users.entry(stream.listen.by.user).or_default().streams.push(stream);
    }
    (users, context)
}

/// The latest time an event names.
fn latest(event: &Event) -> Nanos {
    match event {
        Event::Settings(_) | Event::Client(_) => 0,
        Event::Set(set) => {
            let times = set.sends.iter().map(|send| send.returned.unwrap_or(send.invoked));
            times.max().unwrap_or_default()
        }
        Event::List(list) => list.returned.unwrap_or(list.invoked),
        Event::Lock(lock) => lock.returned.unwrap_or(lock.invoked),
        Event::Locked(locked) => locked.returned.unwrap_or(locked.invoked),
        Event::Listen(listen) => listen.invoked,
        Event::Notified(notified) => notified.at,
        Event::Ended(ended) => ended.at,
        Event::Fault(fault) => fault.until,
        Event::State(state) => state.at,
    }
}

/// E1.
fn own_faults(events: &UserEvents<'_>, report: &mut Report) {
    fn code<T>(answer: &Answer<T>) -> Option<&str> {
        match answer {
            Answer::Ok(_) => None,
            Answer::Refused(code) | Answer::Unknown(code) => Some(code),
        }
    }
    let sends = events.sets.iter().flat_map(|set| &set.sends);
    let codes = sends.map(|send| ("SetRecord", code(&send.answer)));
    let codes = codes.chain(events.lists.iter().map(|list| ("ListChanges", code(&list.answer))));
    let codes = codes.chain(events.locks.iter().map(|lock| ("SetLock", code(&lock.answer))));
    let codes = codes.chain(events.locked.iter().map(|lock| ("GetLock", code(&lock.answer))));
    let ended = events.streams.iter().filter_map(|stream| stream.ended);
    let codes = codes.chain(ended.map(|ended| ("ListenChanges", Some(ended.code.as_str()))));
    for (call, code) in codes {
        if let Some(code @ ("INTERNAL" | "UNKNOWN" | "DATA_LOSS" | "UNIMPLEMENTED")) = code {
            report.add(Rule::E1, format!("{call} was answered {code}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Rule, testing::Script};

    #[test]
    fn an_empty_history_is_correct() {
        Script::new().is_correct();
    }

    #[test]
    fn e1_wants_no_internal_error() {
        let mut script = Script::new();
        script.set(1, "a", 0).unknown("UNAVAILABLE");
        script.is_correct();
        script.set(1, "b", 0).unknown("INTERNAL");
        script.breaks(Rule::E1);
    }
}
