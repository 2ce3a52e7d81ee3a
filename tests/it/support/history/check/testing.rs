//! Writes small histories by hand.

use super::{Rule, check};
use crate::support::history::event::{
    Answer, ClientState, Ended, Event, Fault, History, Instance, Limits, List, Listed, Listen,
    Lock, LockAction, LockReply, Locked, Nanos, Notified, Page, Send, Set, SetReply, Settings,
    State,
};

/// Bytes of every record, unless a test says otherwise.
const BYTES: u64 = 10;
/// Time that a call takes, and the pause after it.
const STEP: Nanos = 10;

/// A history under construction. Client `n` is of user `n / 100`; each call follows the one before
/// unless its times are given.
#[derive(Debug, Clone)]
pub(super) struct Script {
    history: History,
    now: Nanos,
    tags: u64,
}

/// The settings of every script; the wake bound is 1,000 and a zombie lives for 500.
const fn settings() -> Settings {
    Settings {
        seed: 0,
        wake_bound: 1_000,
        zombie_bound: 500,
        lock_slack: 0,
        exact_echo: true,
        limits: Limits {
            page_records: 3,
            page_bytes: 1_000,
            max_records: Some(5),
            max_bytes: Some(1_000),
            max_locks: Some(3),
        },
    }
}

fn by(client: u32) -> Instance {
    Instance { user: client / 100, client }
}

fn listed(records: &[(&str, u64, u64)]) -> Vec<Listed> {
    let listed = |(id, revision, tag): &(&str, u64, u64)| Listed {
        id: (*id).to_owned(),
        revision: *revision,
        tag: *tag,
        bytes: BYTES,
    };
    records.iter().map(listed).collect()
}

impl Script {
    pub(super) fn new() -> Self {
        Self { history: History { settings: settings(), events: Vec::new() }, now: 0, tags: 0 }
    }

    pub(super) fn edit_settings(&mut self, edit: impl FnOnce(&mut Settings)) {
        edit(&mut self.history.settings);
    }

    #[track_caller]
    pub(super) fn is_correct(&self) {
        let violations = check(&self.history);
        assert!(violations.is_empty(), "{violations:#?}");
    }

    #[track_caller]
    pub(super) fn breaks(&self, rule: Rule) {
        let violations = check(&self.history);
        assert!(violations.iter().any(|violation| violation.rule == rule), "{violations:#?}");
    }

    fn add(&mut self, event: Event) {
        self.history.events.push(event);
    }

    /// The next call's times.
    fn step(&mut self) -> (Nanos, Nanos) {
        let invoked = self.now + STEP;
        self.now = invoked + STEP;
        (invoked, self.now)
    }

    /// Lets time pass.
    pub(super) fn wait(&mut self, time: Nanos) {
        self.now += time;
    }

    pub(super) fn set(&mut self, client: u32, id: &str, base: u64) -> SetCall<'_> {
        let times = self.step();
        self.tags += 1;
        let by = by(client);
        let set = Set {
            by,
            id: id.to_owned(),
            base,
            tag: self.tags,
            bytes: BYTES,
            client_id: Some(by.client_id()),
            sends: Vec::new(),
        };
        SetCall { script: self, set, times }
    }

    pub(super) fn list(&mut self, client: u32, since: u64) -> ListCall<'_> {
        let times = self.step();
        ListCall { script: self, client, since, times }
    }

    pub(super) fn lock(&mut self, client: u32, exclusive: bool, ttl: Nanos) -> LockCall<'_> {
        let times = self.step();
        let action = LockAction::Acquire { exclusive, ttl };
        LockCall { script: self, client, name: "lock".to_owned(), action, times }
    }

    pub(super) fn unlock(&mut self, client: u32) -> LockCall<'_> {
        let times = self.step();
        let action = LockAction::Release;
        LockCall { script: self, client, name: "lock".to_owned(), action, times }
    }

    pub(super) fn locked(&mut self, client: u32, locked: bool) {
        let (invoked, returned) = self.step();
        self.add(Event::Locked(Locked {
            by: by(client),
            name: "lock".to_owned(),
            invoked,
            returned: Some(returned),
            answer: Answer::Ok(locked),
        }));
    }

    /// Opens a stream, numbered as its client.
    pub(super) fn subscribe(&mut self, client: u32) -> u64 {
        let (invoked, _) = self.step();
        let stream = u64::from(client);
        self.add(Event::Listen(Listen { by: by(client), stream, invoked }));
        stream
    }

    /// Opens a stream and takes its first notification.
    pub(super) fn listen(&mut self, client: u32) -> u64 {
        let stream = self.subscribe(client);
        self.told(stream, None, 0);
        stream
    }

    pub(super) fn told(&mut self, stream: u64, client: Option<u32>, revision: u64) {
        let (_, at) = self.step();
        let client_id = client.map(|client| by(client).client_id());
        self.add(Event::Notified(Notified { stream, at, client_id, revision }));
    }

    pub(super) fn ended(&mut self, stream: u64, code: &str) {
        let (_, at) = self.step();
        self.add(Event::Ended(Ended { stream, at, code: code.to_owned() }));
    }

    pub(super) fn fault(&mut self, from: Nanos, until: Nanos) {
        let what = "a fault".to_owned();
        self.add(Event::Fault(Fault { what, from, until, excuses_delay: true }));
    }

    /// The last state of user 0.
    pub(super) fn state(&mut self, records: &[(&str, u64, u64)], head: u64) {
        self.state_with_counters(records, head, None);
    }

    pub(super) fn state_with_counters(
        &mut self,
        records: &[(&str, u64, u64)],
        head: u64,
        counters: Option<(u64, u64)>,
    ) {
        let (_, at) = self.step();
        self.add(Event::State(State { user: 0, at, head, records: listed(records), counters }));
    }

    pub(super) fn client(&mut self, client: u32, cursor: u64, records: &[(&str, u64, u64)]) {
        let records = listed(records);
        let by = by(client);
        self.add(Event::Client(ClientState { by, cursor, records, complete: true }));
    }
}

/// A SetRecord without its answer.
pub(super) struct SetCall<'s> {
    script: &'s mut Script,
    set: Set,
    times: (Nanos, Nanos),
}

impl SetCall<'_> {
    pub(super) fn between(mut self, invoked: Nanos, returned: Nanos) -> Self {
        self.times = (invoked, returned);
        self
    }

    pub(super) fn bytes(mut self, bytes: u64) -> Self {
        self.set.bytes = bytes;
        self
    }

    fn answered(mut self, answer: Answer<SetReply>) -> u64 {
        let (invoked, returned) = self.times;
        self.set.sends.push(Send { invoked, returned: Some(returned), answer });
        let tag = self.set.tag;
        self.script.add(Event::Set(self.set));
        tag
    }

    /// The first send, without an answer; the next one begins and ends with the call's times.
    pub(super) fn unknown_then(mut self, code: &str) -> Self {
        let (invoked, returned) = self.times;
        let answer = Answer::Unknown(code.to_owned());
        let half = invoked + (returned - invoked) / 2;
        self.set.sends.push(Send { invoked, returned: Some(half), answer });
        self.times = (half, returned);
        self
    }

    pub(super) fn ok(self, revision: u64) -> u64 {
        self.answered(Answer::Ok(SetReply::Written(revision)))
    }

    pub(super) fn conflict(self) -> u64 {
        self.answered(Answer::Ok(SetReply::Conflict(None)))
    }

    pub(super) fn over_quota(self, quota: &str) -> u64 {
        self.answered(Answer::Ok(SetReply::OverQuota(quota.to_owned())))
    }

    pub(super) fn unknown(self, code: &str) -> u64 {
        self.answered(Answer::Unknown(code.to_owned()))
    }
}

/// A ListChanges without its answer.
pub(super) struct ListCall<'s> {
    script: &'s mut Script,
    client: u32,
    since: u64,
    times: (Nanos, Nanos),
}

impl ListCall<'_> {
    pub(super) fn between(mut self, invoked: Nanos, returned: Nanos) -> Self {
        self.times = (invoked, returned);
        self
    }

    fn answered(self, records: &[(&str, u64, u64)], head: u64, has_more: bool) {
        let (invoked, returned) = self.times;
        let page = Page { records: listed(records), head, has_more };
        self.script.add(Event::List(List {
            by: by(self.client),
            since: self.since,
            invoked,
            returned: Some(returned),
            answer: Answer::Ok(page),
        }));
    }

    pub(super) fn shows(self, records: &[(&str, u64, u64)], head: u64) {
        self.answered(records, head, false);
    }

    pub(super) fn cut(self, records: &[(&str, u64, u64)], head: u64) {
        self.answered(records, head, true);
    }
}

/// A SetLock without its answer.
pub(super) struct LockCall<'s> {
    script: &'s mut Script,
    client: u32,
    name: String,
    action: LockAction,
    times: (Nanos, Nanos),
}

impl LockCall<'_> {
    pub(super) fn between(mut self, invoked: Nanos, returned: Nanos) -> Self {
        self.times = (invoked, returned);
        self
    }

    pub(super) fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    fn answered(self, answer: Answer<LockReply>) {
        let (invoked, returned) = self.times;
        let by = by(self.client);
        self.script.add(Event::Lock(Lock {
            by,
            name: self.name,
            holder: by.client_id(),
            action: self.action,
            invoked,
            returned: Some(returned),
            answer,
        }));
    }

    pub(super) fn ok(self, token: u64) {
        self.answered(Answer::Ok(LockReply::Acquired(token)));
    }

    pub(super) fn released(self) {
        self.answered(Answer::Ok(LockReply::Released));
    }

    pub(super) fn held(self) {
        self.answered(Answer::Ok(LockReply::Held));
    }

    pub(super) fn over_quota(self) {
        self.answered(Answer::Ok(LockReply::OverQuota));
    }

    pub(super) fn unknown(self) {
        self.answered(Answer::Unknown("UNAVAILABLE".to_owned()));
    }
}
