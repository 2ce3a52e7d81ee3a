//! One simulated run: starts everything, makes faults, heals, waits until all agree.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::RngExt as _;
use secp256k1::{PublicKey, SecretKey};
use tokio::time::{Instant, sleep};

use data_sync::store::UserId;

use super::{
    client::{Client, Shared},
    database::{Database, SimClock},
    link::Link,
    mutant::Mutant,
    plan::{Plan, rng},
    replica::{Network, Replica},
};
use crate::support::history::{
    ClientState, Event, History, Instance, Listed, Nanos, Recorder, Settings, State,
};

const SECOND: Nanos = 1_000_000_000;
/// Longest simulated time until all clients agree: pauses between nudges of a client that seems
/// stuck double up to ten minutes.
const CONVERGENCE: Duration = Duration::from_secs(1_300);
/// Time in which nothing may change any more for all to be settled: two comparisons of heads.
const QUIET: Duration = Duration::from_secs(9);

/// What the run is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Clients write while things fail.
    Faulty,
    /// Clients write and only announcements are late.
    Calm,
    /// Nobody begins anything; what is pending is finished.
    Quiet,
}

impl Phase {
    pub(super) const fn writes(self) -> bool {
        !matches!(self, Self::Quiet)
    }
}

/// What all parts of a run share.
#[derive(Debug)]
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) recorder: Recorder,
    database: Arc<Database>,
    network: Arc<Network>,
    start: Instant,
    phase: Mutex<Phase>,
    replicas: Mutex<Vec<Option<Arc<Replica>>>>,
    lives: Mutex<usize>,
    idle: Mutex<BTreeMap<u32, bool>>,
}

/// A key of its own for each user.
fn key(user: usize) -> SecretKey {
    let mut bytes = [0x33; 32];
    bytes[31] = u8::try_from(user).expect("few users");
    SecretKey::from_secret_bytes(bytes).expect("below the order")
}

fn user_id(user: usize) -> UserId {
    UserId::new(PublicKey::from_secret_key(&key(user)).serialize())
}

impl World {
    fn new(plan: Plan) -> Arc<Self> {
        let start = Instant::now();
        let users = (0..plan.users.len()).map(user_id).collect();
        let database = Database::new(&plan, start);
        let network = Network::new(&plan, users);
        let world = Arc::new(Self {
            recorder: Recorder::new(),
            database,
            network,
            start,
            phase: Mutex::new(Phase::Faulty),
            replicas: Mutex::new(vec![None; plan.replicas]),
            lives: Mutex::new(0),
            idle: Mutex::default(),
            plan,
        });
        for index in 0..world.plan.replicas {
            world.boot(index);
        }
        world
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.lock().expect("not poisoned")
    }

    fn enter(&self, phase: Phase) {
        *self.phase.lock().expect("not poisoned") = phase;
    }

    /// How likely a message between client and replica is lost now.
    pub(super) fn call_lost(&self) -> f64 {
        if self.phase() == Phase::Faulty { self.plan.odds.call_lost } else { 0.0 }
    }

    pub(super) fn set_idle(&self, client: u32, idle: bool) {
        self.idle.lock().expect("not poisoned").insert(client, idle);
    }

    /// The replica at `index`, if it takes connections.
    pub(super) fn replica(&self, index: usize) -> Option<Arc<Replica>> {
        let replica = self.replicas.lock().expect("not poisoned")[index].clone();
        replica.filter(|replica| replica.is_alive())
    }

    fn boot(&self, index: usize) {
        // Lives of one replica keep its clock: their numbers differ by the number of replicas.
        let mut lives = self.lives.lock().expect("not poisoned");
        let life = *lives * self.plan.replicas + index;
        *lives += 1;
        let replica = Replica::start(&self.plan, life, self.start, &self.database, &self.network);
        self.replicas.lock().expect("not poisoned")[index] = Some(replica);
    }

    fn stop(&self, index: usize) {
        if let Some(replica) = self.replicas.lock().expect("not poisoned")[index].take() {
            replica.kill();
        }
    }

    /// Kills, pauses and drains replicas and takes the database away, one after the other.
    async fn make_outages(&self) {
        let mut rng = rng(self.plan.seed, 4);
        loop {
            let pause = rng.random_range(300..2_500);
            sleep(Duration::from_millis(pause)).await;
            let index = rng.random_range(0..self.plan.replicas);
            let length = Duration::from_millis(rng.random_range(50..1_500));
            let from = self.recorder.now();
            match rng.random_range(0..4) {
                0 => {
                    self.stop(index);
                    sleep(length).await;
                    self.boot(index);
                    self.recorder.fault(&format!("killed replica {index}"), from, true);
                }
                1 => {
                    let replica = self.replica(index).expect("all are up");
                    replica.pause(true);
                    sleep(length).await;
                    replica.pause(false);
                    self.recorder.fault(&format!("paused replica {index}"), from, true);
                }
                2 => {
                    self.drain(index).await;
                    self.recorder.fault(&format!("drained replica {index}"), from, false);
                }
                _ => {
                    self.database.set_down(true);
                    sleep(length).await;
                    self.database.set_down(false);
                    self.recorder.fault("took the database away", from, true);
                }
            }
        }
    }

    async fn drain(&self, index: usize) {
        let replica = self.replica(index);
        if let Some(replica) = &replica {
            replica.drain();
        }
        sleep(Duration::from_millis(200)).await;
        if let Some(replica) = &replica {
            replica.finish();
        }
        sleep(Duration::from_millis(1)).await;
        self.stop(index);
        self.boot(index);
    }

    /// Waits until every client that can holds what the server holds, and nothing moves.
    async fn settle(&self, clients: &[Shared]) {
        let end = Instant::now() + CONVERGENCE;
        let mut quiet_since = Instant::now();
        let mut seen = Vec::new();
        while Instant::now() < end && quiet_since.elapsed() < QUIET {
            sleep(Duration::from_millis(500)).await;
            let states: Vec<ClientState> = states(clients);
            let idle = self.idle.lock().expect("not poisoned").values().all(|idle| *idle);
            if !idle || !self.agree(&states).await || states != seen {
                quiet_since = Instant::now();
            }
            seen = states;
        }
    }

    async fn agree(&self, states: &[ClientState]) -> bool {
        let summaries = self.database.summaries().await;
        states.iter().filter(|state| state.complete).all(|state| {
            let user = user_id(state.by.user as usize);
            let records = summaries.iter().find(|summary| summary.user == user);
            let newest = state.records.iter().map(|record| record.revision).max();
            records.map_or(0, |summary| summary.records) == state.records.len() as u64
                && newest.unwrap_or_default() == records.map_or(0, |summary| summary.head)
        })
    }

    /// Lists everything of one user, as a client that nobody knew before.
    async fn audit(self: &Arc<Self>, user: usize) {
        let by = Instance { user: u32::try_from(user).expect("few"), client: 900 + user as u32 };
        let clock = SimClock::new(self.start, 0);
        let mut link = Link::new(by, key(user), self, clock, rng(self.plan.seed, 5));
        let mut records: Vec<Listed> = Vec::new();
        let head = loop {
            let since = records.last().map_or(0, |record| record.revision);
            let page = link.list(since).await.expect("the service is healed");
            records.extend(page.changes.iter().map(Listed::from));
            if !page.has_more || page.changes.is_empty() {
                break page.head_revision;
            }
        };
        let summaries = self.database.summaries().await;
        let summary = summaries.iter().find(|summary| summary.user == user_id(user));
        let counters = summary.map(|summary| (summary.records, summary.bytes));
        let at = self.recorder.now();
        self.recorder.add(Event::State(State { user: by.user, at, head, records, counters }));
    }
}

fn states(clients: &[Shared]) -> Vec<ClientState> {
    clients.iter().map(|client| client.lock().expect("not poisoned").clone()).collect()
}

/// Runs the whole of one seed. Needs a paused clock.
pub(super) async fn run(seed: u64, mutant: Option<Mutant>) -> History {
    let plan = Plan::new(seed, mutant);
    let world = World::new(plan.clone());
    let mut clients = Vec::new();
    let mut running = tokio::task::JoinSet::new();
    let mut number = 0_u32;
    for (user, kinds) in plan.users.iter().enumerate() {
        for kind in kinds {
            number += 1;
            let by = Instance { user: u32::try_from(user).expect("few"), client: number };
            let part = 100 + u64::from(number);
            let clock = SimClock::new(world.start, 0);
            let link = Link::new(by, key(user), &world, clock, rng(seed, part));
            let (client, shared) = Client::new(*kind, link, &world, rng(seed, 1_000 + part));
            clients.push(shared);
            running.spawn(client.run());
        }
    }

    if plan.outages {
        // Cut off in the middle of anything.
        let outages = tokio::time::timeout(plan.faulty, world.make_outages());
        let from = world.recorder.now();
        let _ = outages.await;
        world.recorder.fault("a time of faults", from, true);
    } else {
        sleep(plan.faulty).await;
    }
    world.enter(Phase::Calm);
    world.database.heal();
    if plan.outages {
        for index in 0..plan.replicas {
            world.drain(index).await;
        }
    }
    sleep(plan.calm).await;
    world.enter(Phase::Quiet);
    world.settle(&clients).await;
    world.network.heal();
    for user in 0..plan.users.len() {
        world.audit(user).await;
    }
    for state in states(&clients) {
        world.recorder.add(Event::Client(state));
    }
    running.shutdown().await;

    world.recorder.history(Settings {
        seed,
        wake_bound: 5 * SECOND,
        // A request is dead once it reached a replica and its deadline passed.
        zombie_bound: 12 * SECOND,
        lock_slack: 2_000_000,
        exact_echo: plan.is_exact(),
        limits: plan.limits(),
    })
}
