//! Real replicas over a real Postgres while everything around them fails.
//!
//! Clients of several users write, list, listen and lock against all replicas; a seeded schedule
//! kills, stops and cuts. Afterwards everything is healed, all clients must come to agree, and the
//! history goes to the checker, with what the database counts of each user. `CHAOS_SECONDS` sets how long, `CHAOS_SEED` the schedule.

use std::{sync::Arc, time::Duration};

use data_sync::store::{PageLimit, Quotas};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::support::{
    history::{Event, History, Instance, Limits, Listed, Nanos, Recorder, Settings, State, check},
    wait::within,
};

mod client;
mod site;

use client::Client;
use site::{Setting, Site};

/// How long faults go on unless the environment says otherwise.
const SECONDS: u64 = 15;
/// Users, and clients of each.
const USERS: u32 = 4;
const CLIENTS: u32 = 3;
/// Longest time until all clients agree once everything is healed.
const CONVERGENCE: Duration = Duration::from_secs(30);
const SECOND: Nanos = 1_000_000_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// What is done to the site, one after the other.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill,
    Drain,
    Stop,
    TerminateBackends,
    RestartPostgres,
    CutListen,
    CutDatabase,
    SwallowDatabase,
}

const FAULTS: [Fault; 10] = [
    Fault::Kill,
    Fault::Kill,
    Fault::Kill,
    Fault::Drain,
    Fault::Stop,
    Fault::TerminateBackends,
    Fault::RestartPostgres,
    Fault::CutListen,
    Fault::CutDatabase,
    Fault::SwallowDatabase,
];

impl Fault {
    /// Nothing can be told while it lasts.
    const fn excuses_delay(self) -> bool {
        matches!(self, Self::Stop | Self::RestartPostgres | Self::SwallowDatabase)
    }

    async fn make(self, site: &mut Site<'_>, rng: &mut StdRng) {
        let replica = rng.random_range(0..site.replicas());
        let length = Duration::from_millis(rng.random_range(100..1_500));
        match self {
            Self::Kill => {
                site.kill(replica);
                sleep(length).await;
                site.start_replica(replica);
            }
            Self::Drain => {
                site.drain(replica);
                sleep(length).await;
                site.start_replica(replica);
            }
            Self::Stop => {
                site.signal(replica, "STOP");
                sleep(length).await;
                site.signal(replica, "CONT");
            }
            Self::TerminateBackends => site.terminate_backends().await,
            Self::RestartPostgres => site.restart_postgres(),
            Self::CutListen => site.listen.cut(),
            Self::CutDatabase => site.database.cut(),
            Self::SwallowDatabase => {
                site.database.swallow();
                sleep(length).await;
                site.database.heal();
                site.database.cut();
            }
        }
    }
}

async fn disturb(site: &mut Site<'_>, recorder: &Recorder, rng: &mut StdRng, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        sleep(Duration::from_millis(rng.random_range(200..1_500))).await;
        let fault = FAULTS[rng.random_range(0..FAULTS.len())];
        let from = recorder.now();
        fault.make(site, rng).await;
        recorder.fault(&format!("{fault:?}"), from, fault.excuses_delay());
    }
}

/// Waits until every client of a user holds the same, and what the server holds.
async fn converge(clients: &[Arc<Client>], auditors: &[Client]) {
    let end = Instant::now() + CONVERGENCE;
    for (user, auditor) in auditors.iter().enumerate() {
        loop {
            let wanted = auditor.all().await;
            let own = clients.iter().filter(|client| client.by.user as usize == user);
            let wanted = by_id(wanted.records);
            if own.map(|client| client.state().records).all(|held| held == wanted) {
                break;
            }
            // Whoever still differs in the end is a finding of the checker's.
            if Instant::now() > end {
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}

fn by_id(mut records: Vec<Listed>) -> Vec<Listed> {
    records.sort();
    records
}

/// Quotas that the clients run into all the time.
const TIGHT: Quotas = Quotas { max_records: Some(6), max_bytes: Some(1_200), max_locks: Some(2) };

async fn run(setting: Setting) {
    let seed = number("CHAOS_SEED").unwrap_or_else(rand::random);
    let time = Duration::from_secs(number("CHAOS_SECONDS").unwrap_or(SECONDS));
    eprintln!("CHAOS_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let postgres = site::postgres();
    let mut site = Site::start(&postgres, setting).await;
    let recorder = Recorder::new();
    let key = site::fresh_keys(USERS);
    let client = |user: u32, client: u32| {
        let by = Instance { user, client };
        Client::new(by, key[user as usize], &recorder, site.way())
    };
    let clients: Vec<Arc<Client>> =
        (0..USERS * CLIENTS).map(|number| Arc::new(client(number / CLIENTS, 1 + number))).collect();
    let auditors: Vec<Client> = (0..USERS).map(|user| client(user, 900 + user)).collect();

    let stop = CancellationToken::new();
    let mut writing = tokio::task::JoinSet::new();
    let mut listening = tokio::task::JoinSet::new();
    for (number, client) in (0..).zip(&clients) {
        writing.spawn(Arc::clone(client).write(seed.wrapping_add(number), stop.clone()));
        listening.spawn(Arc::clone(client).listen());
    }
    disturb(&mut site, &recorder, &mut rng, time).await;
    site.heal().await;
    sleep(Duration::from_secs(2)).await;
    stop.cancel();
    within("the last writes", async { while writing.join_next().await.is_some() {} }).await;
    converge(&clients, &auditors).await;
    for auditor in &auditors {
        let counters = Some(site.counters(auditor.user()).await);
        recorder.add(Event::State(State { counters, ..auditor.all().await }));
    }
    tokio::task::block_in_place(|| site.recount());
    for client in &clients {
        recorder.add(Event::Client(client.state()));
    }
    listening.shutdown().await;
    drop(clients);
    let history = recorder.history(settings(seed, setting.quotas));
    judge(&history, &site);
    reached(&history, setting.quotas);
}

fn settings(seed: u64, quotas: Quotas) -> Settings {
    Settings {
        seed,
        // Five seconds are promised; a busy machine gets a second more.
        wake_bound: 6 * SECOND,
        zombie_bound: 20 * SECOND,
        lock_slack: SECOND / 200,
        exact_echo: false,
        limits: Limits {
            page_records: PageLimit::WIRE.max_records as u64,
            page_bytes: PageLimit::WIRE.max_bytes as u64,
            max_records: quotas.max_records,
            max_bytes: quotas.max_bytes,
            max_locks: quotas.max_locks,
        },
    }
}

fn judge(history: &History, site: &Site<'_>) {
    let violations = check(history);
    let seed = history.settings.seed;
    let writes = history.events.iter().filter(|event| matches!(event, Event::Set(_))).count();
    assert!(writes > 50, "only {writes} writes were made");
    if violations.is_empty() {
        return;
    }
    let path = std::env::temp_dir().join(format!("data-sync-chaos-{seed}.jsonl"));
    std::fs::write(&path, history.to_json_lines()).expect("the temporary directory is writable");
    let what: Vec<String> = violations.iter().map(ToString::to_string).collect();
    panic!(
        "CHAOS_SEED={seed} fails; its history is in {}\n{}\nnetwork: {:?}",
        path.display(),
        what.join("\n"),
        site.database.log()
    );
}

/// Where there are quotas the clients ran into each of them, or nothing was shown of it.
fn reached(history: &History, quotas: Quotas) {
    if quotas == Quotas::default() {
        return;
    }
    let text = history.to_json_lines();
    for mark in
        [r#"{"over_quota":"records"}"#, r#"{"over_quota":"bytes"}"#, r#"{"ok":"over_quota"}"#]
    {
        eprintln!("{} times {mark}", text.matches(mark).count());
        assert!(text.contains(mark), "{mark} never happened");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_replica_keeps_every_rule_while_everything_fails() {
    run(Setting { replicas: 1, pooled: false, quotas: Quotas::default() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_keep_every_rule_and_quota_while_everything_fails() {
    run(Setting { replicas: 3, pooled: false, quotas: TIGHT }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_behind_a_pooler_keep_every_rule_and_quota_while_everything_fails() {
    run(Setting { replicas: 3, pooled: true, quotas: TIGHT }).await;
}
