//! Simulated clients: the two shipped ones as far as a server can tell, and a freer one.

use std::{
    collections::{BTreeMap, VecDeque},
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use data_sync::proto::{Notification, SetRecordStatus};
use rand::{RngExt as _, rngs::StdRng};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tonic::Code;

use super::{link::Link, plan::Kind, replica::Item, world::World};
use crate::support::history::{ClientState, Listed, LockAction, SetOp, Told};

/// A write is given up after this many tries.
const MAX_TRIES: u32 = 6;
/// Records that all clients of a user share.
const SHARED_IDS: u32 = 6;
/// Locks that all clients of a user share.
const LOCKS: u32 = 3;

/// What a client holds; the world looks at it to see whether all have the same.
pub(super) type Shared = Arc<Mutex<ClientState>>;

/// A local change that the server does not have yet.
#[derive(Debug)]
struct Change {
    id: String,
    bytes: usize,
    tries: u32,
    due: Instant,
}

/// One client instance.
pub(super) struct Client {
    kind: Kind,
    link: Link,
    world: Arc<World>,
    rng: StdRng,
    records: BTreeMap<String, Listed>,
    cursor: u64,
    pending: VecDeque<Change>,
    stream: Option<(mpsc::UnboundedReceiver<Item>, Told)>,
    /// When to listen again; never after an end that the client takes for good.
    listen_at: Option<Instant>,
    pull_at: Option<Instant>,
    act_at: Instant,
    shared: Shared,
}

impl Client {
    pub(super) fn new(kind: Kind, link: Link, world: &Arc<World>, rng: StdRng) -> (Self, Shared) {
        let now = Instant::now();
        let shared = Arc::new(Mutex::new(ClientState {
            by: link.by,
            cursor: 0,
            records: Vec::new(),
            complete: kind != Kind::Spark,
        }));
        let client = Self {
            kind,
            link,
            world: Arc::clone(world),
            rng,
            records: BTreeMap::new(),
            cursor: 0,
            pending: VecDeque::new(),
            stream: None,
            listen_at: Some(now),
            // One SDK lists at its start, the other only because of the first notification.
            pull_at: (kind == Kind::Spark).then_some(now),
            act_at: now,
            shared: Arc::clone(&shared),
        };
        (client, shared)
    }

    /// Lives until the world ends.
    pub(super) async fn run(mut self) {
        self.rest();
        loop {
            let due = self.pending.front().map(|change| change.due);
            tokio::select! {
                biased;
                item = next(&mut self.stream) => self.hear(item),
                () = at(self.listen_at) => self.listen().await,
                () = at(self.pull_at) => self.pull().await,
                () = at(due) => self.push().await,
                () = sleep_until(self.act_at) => self.act().await,
            }
            self.publish();
        }
    }

    fn publish(&self) {
        let mut state = self.shared.lock().expect("not poisoned");
        state.cursor = self.cursor;
        state.records = self.records.values().cloned().collect();
        let idle = self.pending.is_empty() && self.pull_at.is_none();
        self.world.set_idle(self.link.by.client, idle);
    }

    fn rest(&mut self) {
        let most = self.world.plan.pause_ms;
        self.act_at = Instant::now() + Duration::from_millis(self.rng.random_range(1..=most));
    }

    fn hear(&mut self, item: Option<Item>) {
        match item {
            Some(Item::Told(told)) => self.told(&told),
            Some(Item::Over(code)) => self.over(code),
            None => self.over(Code::Unavailable),
        }
    }

    fn told(&mut self, notification: &Notification) {
        let (_, told) = self.stream.as_ref().expect("it came from there");
        told.notified(notification);
        if notification.client_id != Some(self.link.by.client_id()) {
            self.pull_at = Some(Instant::now());
        }
    }

    fn over(&mut self, code: Code) {
        if let Some((_, told)) = self.stream.take() {
            told.ended(code);
        }
        let now = Instant::now();
        self.listen_at = match (self.kind, code) {
            (Kind::Liquid, Code::Ok) => None,
            (Kind::Liquid, _) => Some(now),
            (Kind::Spark, _) => Some(now + Duration::from_secs(1)),
            (Kind::Free, _) => Some(now + Duration::from_millis(300)),
        };
    }

    async fn listen(&mut self) {
        self.listen_at = None;
        let told = self.link.recorder.listen(self.link.by);
        match self.link.listen().await {
            Ok(stream) => self.stream = Some((stream, told)),
            Err(status) => {
                told.ended(status.code());
                self.listen_at = Some(Instant::now() + Duration::from_secs(3));
            }
        }
    }

    /// One trigger's worth of listing.
    async fn pull(&mut self) {
        self.pull_at = None;
        loop {
            let page = match self.link.list(self.cursor).await {
                Ok(page) => page,
                Err(_) => {
                    if self.kind == Kind::Free {
                        self.pull_at = Some(Instant::now() + Duration::from_millis(300));
                    }
                    return;
                }
            };
            for record in page.changes.iter().map(Listed::from) {
                self.cursor = self.cursor.max(record.revision);
                self.hold(record);
            }
            if !(self.kind == Kind::Free && page.has_more) {
                return;
            }
        }
    }

    fn hold(&mut self, record: Listed) {
        let held = self.records.get(&record.id).map_or(0, |held| held.revision);
        if record.revision > held {
            self.records.insert(record.id.clone(), record);
        }
    }

    /// Sends the first local change.
    async fn push(&mut self) {
        let Some(mut change) = self.pending.pop_front() else { return };
        let base = self.records.get(&change.id).map_or(0, |held| held.revision);
        let mut op = self.link.recorder.set(self.link.by, &change.id, base, change.bytes);
        if self.send(&mut op).await {
            return;
        }
        change.tries += 1;
        if change.tries == MAX_TRIES {
            return;
        }
        let pause = Duration::from_millis(300 * u64::from(change.tries));
        change.due = Instant::now() + pause;
        if self.kind == Kind::Liquid {
            // It skips a failed record and comes back to it.
            self.pending.push_back(change);
        } else {
            self.pending.push_front(change);
            self.pull_at = Some(Instant::now());
        }
    }

    /// Sends a write, the free client also again; true once it needs no further try.
    async fn send(&mut self, op: &mut SetOp) -> bool {
        let request = self.link.set_request(op, self.rng.random_bool(0.3));
        let sends = if self.kind == Kind::Free { self.rng.random_range(1..=3) } else { 1 };
        for _ in 0..sends {
            let (link, request) = (&mut self.link, request.clone());
            match op.send(link.set(request)).await {
                Ok(reply) if reply.status() == SetRecordStatus::Success => {
                    self.hold(op.listed(reply.new_revision));
                    if self.kind == Kind::Spark {
                        self.cursor = self.cursor.max(reply.new_revision);
                    }
                    if self.rng.random_bool(0.8) {
                        return true;
                    }
                }
                Ok(_) => return false,
                // Over quota: the same again cannot help.
                Err(status) if status.code() == Code::ResourceExhausted => return true,
                Err(_) => self.link.reconnect(),
            }
        }
        false
    }

    /// Something of its own accord.
    async fn act(&mut self) {
        self.rest();
        if !self.world.phase().writes() {
            return;
        }
        match (self.kind, self.rng.random_range(0..100)) {
            (_, 0..50) => self.change(),
            (Kind::Free, 50..58) => self.odd_write().await,
            (Kind::Free, 58..64) => {
                let since = self.rng.random_range(0..=self.cursor + 2);
                // Failing is as good an answer as any to somebody who only looks.
                let _ = self.link.list(since).await;
            }
            (Kind::Free | Kind::Spark, 64..90) => self.lock().await,
            _ => {}
        }
    }

    fn change(&mut self) {
        let number = self.rng.random_range(0..SHARED_IDS);
        let bytes = self.rng.random_range(8..120);
        let id = format!("record-{number}");
        self.pending.push_back(Change { id, bytes, tries: 0, due: Instant::now() });
    }

    /// A write on a revision that is old, or on a guess where there is no record.
    async fn odd_write(&mut self) {
        let (id, base) = if self.rng.random_bool(0.5) {
            let number = self.rng.random_range(0..SHARED_IDS);
            (format!("record-{number}"), self.rng.random_range(0..=self.cursor))
        } else {
            let fresh = format!("own-{}-{}", self.link.by.client, self.rng.random_range(0..3));
            let held = self.records.get(&fresh).map(|held| held.revision);
            // The guess may be the very revision that the write gets.
            (fresh, held.unwrap_or_else(|| self.cursor + self.rng.random_range(0..3)))
        };
        let mut op = self.link.recorder.set(self.link.by, &id, base, 8);
        self.send(&mut op).await;
    }

    async fn lock(&mut self) {
        let name = format!("lock-{}", self.rng.random_range(0..LOCKS));
        match self.rng.random_range(0..10) {
            0..5 => {
                let exclusive = self.rng.random_bool(0.7);
                let seconds = self.rng.random_range(1..=4_u64);
                let ttl = 1_000_000_000 * seconds;
                let acquire = LockAction::Acquire { exclusive, ttl };
                if self.rng.random_bool(0.3) {
                    self.link.new_holder();
                }
                let _ = self.link.lock(&name, acquire).await;
            }
            5..7 => {
                let _ = self.link.lock(&name, LockAction::Release).await;
            }
            _ => {
                let _ = self.link.locked(&name).await;
            }
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

async fn next(stream: &mut Option<(mpsc::UnboundedReceiver<Item>, Told)>) -> Option<Item> {
    match stream {
        Some((items, _)) => items.recv().await,
        None => pending().await,
    }
}
