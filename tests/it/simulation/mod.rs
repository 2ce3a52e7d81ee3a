//! Seeded simulation: the real service core, many replicas, one thread, simulated time.
//!
//! Everything that happens follows from the seed: who the clients are, when they call, what is
//! lost, who is killed. What they saw goes to the history checker. A failing seed is printed;
//! `SIM_SEED=<seed> cargo test --test it simulation` runs it alone, and `SIM_SEEDS=<count>` runs
//! another number of seeds. Only traits are faked (store, feed, clock); the RPCs, their checks and
//! signatures, the hub and the streams are the product's own.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use crate::support::history::{History, Violation, check};

mod client;
mod database;
mod link;
mod mutant;
mod plan;
mod replica;
mod world;

use mutant::Mutant;

/// Seeds that a plain run of the tests goes through.
const SEEDS: u64 = 1_500;
/// Seeds that a mutant may survive.
const MUTANT_SEEDS: u64 = 400;

fn simulate(seed: u64, mutant: Option<Mutant>) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(world::run(seed, mutant))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Says how to see it again, and keeps the history.
fn fail(seed: u64, history: &History, violations: &[Violation]) -> ! {
    let path = std::env::temp_dir().join(format!("data-sync-history-{seed}.jsonl"));
    std::fs::write(&path, history.to_json_lines()).expect("the temporary directory is writable");
    let what: Vec<String> = violations.iter().map(ToString::to_string).collect();
    panic!("SIM_SEED={seed} fails; its history is in {}\n{}", path.display(), what.join("\n"));
}

#[test]
fn every_seed_keeps_every_rule() {
    let (first, count) = match number("SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("SIM_SEEDS").unwrap_or(SEEDS)),
    };
    let next = AtomicU64::new(first);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let run = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + count {
                    return;
                }
                let history = simulate(seed, None);
                let violations = check(&history);
                if !violations.is_empty() {
                    fail(seed, &history, &violations);
                }
            }
        };
        for _ in 0..threads {
            scope.spawn(run);
        }
    });
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [1, 2, 3, 5] {
        let (one, other) = (simulate(seed, None), simulate(seed, None));
        assert!(one.events.len() > 20, "seed {seed} has only {} events", one.events.len());
        assert_eq!(one.to_json_lines(), other.to_json_lines(), "seed {seed}");
    }
}

#[test]
fn every_mutant_is_caught_by_its_rule() {
    let mut survivors = Vec::new();
    for (mutant, rule) in Mutant::ALL {
        let caught = (0..MUTANT_SEEDS).find(|seed| {
            check(&simulate(*seed, Some(mutant))).iter().any(|violation| violation.rule == rule)
        });
        match caught {
            Some(seed) => eprintln!("{mutant:?} is caught by {rule:?} with seed {seed}"),
            None => survivors.push(mutant),
        }
    }
    assert!(survivors.is_empty(), "not caught in {MUTANT_SEEDS} seeds: {survivors:?}");
}

#[test]
fn simulations_reach_what_the_rules_judge() {
    let mut seen = BTreeSet::new();
    for event in (0..60).flat_map(|seed| simulate(seed, None).events) {
        let text = serde_json::to_string(&event).expect("an event has a JSON form");
        let marks = [
            ("a conflict", "{\"conflict\":null}"),
            ("a conflict with its record", "{\"conflict\":{"),
            ("a resend", "}},{\"invoked\""),
            ("a write without an answer", "{\"unknown\":\"UNAVAILABLE\"}"),
            ("the quota of records", "{\"over_quota\":\"records\"}"),
            ("the quota of bytes", "{\"over_quota\":\"bytes\"}"),
            ("the quota of locks", "{\"ok\":\"over_quota\"}"),
            ("a held lock", "{\"ok\":\"held\"}"),
            ("a released lock", "{\"ok\":\"released\"}"),
            ("a cut page", "\"has_more\":true"),
            ("a merged notification", "\"client_id\":null,\"revision\":1"),
            ("an ended stream", "\"code\":\"UNAVAILABLE\""),
            ("a killed replica", "killed replica"),
            ("a lost database", "took the database away"),
        ];
        seen.extend(marks.iter().filter(|(_, mark)| text.contains(mark)).map(|(name, _)| *name));
    }
    assert_eq!(seen.len(), 14, "only {seen:?}");
}
