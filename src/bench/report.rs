//! The result of a run, as JSON keeps it.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    ledger::ListenTally,
    plan::{Load, Operation, Plan, Side, Workload},
    tally::{Tallies, Tally, Times},
    usage::{Snapshot, Usage},
};
use crate::clock::{Clock as _, SystemClock};

/// Raised when a field changes its meaning; added fields do not raise it.
pub const FORMAT: u32 = 1;
/// The shares of calls whose latency a report holds, for drawing the curve.
const CURVE_QUANTILES: [f64; 12] =
    [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0];

/// What was found about all servers of a run.
pub(super) struct Outcomes {
    pub(super) sides: Vec<SideOutcome>,
}

/// What was found about one server.
pub(super) struct SideOutcome {
    pub(super) side: Side,
    pub(super) active: Duration,
    pub(super) tallies: Tallies,
    pub(super) cost: Cost,
    pub(super) listen: Option<ListenTally>,
}

/// What the processes used while calls were running.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    first: Snapshot,
    last: Snapshot,
    peak_bytes: u64,
    server: Option<Duration>,
    database: Option<Duration>,
    generator: Option<Duration>,
}

impl Cost {
    pub(super) fn starting_at(first: &Snapshot) -> Self {
        Self { first: *first, last: *first, ..Self::default() }
    }

    /// Adds what was used between two looks.
    pub(super) fn add(&mut self, before: &Snapshot, after: &Snapshot) {
        add_cpu(&mut self.server, before.server, after.server);
        add_cpu(&mut self.database, before.database, after.database);
        add_cpu(&mut self.generator, before.generator, after.generator);
        let resident = after.server.map_or(0, |usage| usage.resident_bytes);
        self.peak_bytes = self.peak_bytes.max(resident);
        self.last = *after;
    }
}

fn add_cpu(sum: &mut Option<Duration>, before: Option<Usage>, after: Option<Usage>) {
    if let (Some(before), Some(after)) = (before, after) {
        *sum = Some(sum.unwrap_or_default() + after.cpu.saturating_sub(before.cpu));
    }
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// Title of the run.
    pub title: String,
    /// Version of the load generator.
    pub version: String,
    /// Source revision of the load generator.
    pub revision: String,
    /// When the run ended, in seconds since 1970-01-01 UTC.
    pub ended_at: u64,
    /// The machine of the load generator.
    pub machine: Machine,
    /// What was asked for.
    pub settings: Settings,
    /// One entry a server.
    pub sides: Vec<SideReport>,
    /// The first server's figures divided by the second's, by name; only with two servers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ratios: BTreeMap<String, f64>,
}

/// Where a run was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Processors that the load generator may use.
    pub cpus: usize,
    /// Operating system.
    pub os: String,
    /// Processor architecture.
    pub architecture: String,
}

impl Machine {
    fn this() -> Self {
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            os: std::env::consts::OS.to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
        }
    }
}

/// What a run was asked to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The operation, mix, or `listen`.
    pub op: String,
    /// Callers, in a closed loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// Calls a second in an open loop, writes a second in a listen run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Streams of a listen run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<usize>,
    /// Users.
    pub users: usize,
    /// Users whom the store was given before, where that was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_users: Option<usize>,
    /// Records of each user before the run.
    pub records: usize,
    /// Bytes of data in a record.
    pub record_bytes: usize,
    /// Seconds before anything counted.
    pub warm_up_seconds: f64,
    /// Seconds that counted.
    pub duration_seconds: f64,
    /// Seconds of one round.
    pub slice_seconds: f64,
    /// What keys and order came from.
    pub seed: u64,
}

impl Settings {
    fn of(plan: &Plan) -> Self {
        let (op, streams, listen_rate) = match &plan.workload {
            Workload::Calls(mix) => (mix.to_string(), None, None),
            Workload::Listen(listen) => {
                ("listen".to_owned(), Some(listen.streams), Some(listen.writes_per_second))
            }
        };
        let (concurrency, rate) = match plan.load {
            _ if streams.is_some() => (None, listen_rate),
            Load::Closed { concurrency } => (Some(concurrency), None),
            Load::Open { per_second, .. } => (None, Some(per_second)),
        };
        Self {
            op,
            concurrency,
            rate,
            streams,
            users: plan.users,
            stored_users: plan.stored_users,
            records: plan.records_per_user,
            record_bytes: plan.record_bytes,
            warm_up_seconds: plan.warm_up.as_secs_f64(),
            duration_seconds: plan.duration.as_secs_f64(),
            slice_seconds: plan.slice.as_secs_f64(),
            seed: plan.seed,
        }
    }
}

/// What was found about one server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SideReport {
    /// The server's name in tables and charts.
    pub name: String,
    /// Its replicas.
    pub targets: Vec<String>,
    /// Calls and streams that shared a connection.
    pub streams_per_connection: usize,
    /// Seconds in which calls were running.
    pub seconds: f64,
    /// All unary calls together.
    pub total: CallsReport,
    /// The calls of each operation.
    pub operations: BTreeMap<Operation, CallsReport>,
    /// Streams and notifications of a listen run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<ListenReport>,
    /// The server's processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<UsageReport>,
    /// The database's processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<UsageReport>,
    /// The load generator itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<UsageReport>,
}

/// Outcomes of calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallsReport {
    /// Calls that ended.
    pub calls: u64,
    /// … with success.
    pub ok: u64,
    /// … with the answer CONFLICT.
    pub conflicts: u64,
    /// … with an error or without an answer.
    pub errors: u64,
    /// Errors by kind.
    pub error_kinds: BTreeMap<String, u64>,
    /// Successes a second.
    pub ok_per_second: f64,
    /// Latency of the calls that were answered: in an open loop from when a call was due.
    pub latency: TimesReport,
}

/// Latencies in milliseconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TimesReport {
    /// How many were measured.
    pub count: u64,
    /// Mean.
    pub mean_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 90 % are faster.
    pub p90_ms: f64,
    /// 99 % are faster.
    pub p99_ms: f64,
    /// 99.9 % are faster.
    pub p999_ms: f64,
    /// The slowest.
    pub max_ms: f64,
    /// Pairs of a share (0 to 1) and the latency it does not exceed.
    pub curve: Vec<(f64, f64)>,
}

impl TimesReport {
    fn of(times: &Times) -> Self {
        Self {
            count: times.count(),
            mean_ms: times.mean_ms(),
            p50_ms: times.quantile_ms(0.5),
            p90_ms: times.quantile_ms(0.9),
            p99_ms: times.quantile_ms(0.99),
            p999_ms: times.quantile_ms(0.999),
            max_ms: times.max_ms(),
            curve: CURVE_QUANTILES.map(|share| (share, times.quantile_ms(share))).to_vec(),
        }
    }
}

/// Streams and what became of notifications.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ListenReport {
    /// Streams asked for.
    pub streams: u64,
    /// Milliseconds until the first notification of each stream.
    pub open: TimesReport,
    /// Times a stream was opened again, by the client's or the server's doing.
    pub reopened: u64,
    /// How streams ended that their client did not close.
    pub ended: BTreeMap<String, u64>,
    /// Acknowledged writes times the streams that should hear of each.
    pub expected: u64,
    /// Of these, told by a notification.
    pub delivered: u64,
    /// Of these, told together with others in one notification.
    pub merged: u64,
    /// Written while a stream was away, and covered by its first notification afterwards.
    pub caught_up: u64,
    /// Never told.
    pub lost: u64,
    /// Notifications that told nothing new.
    pub spare: u64,
    /// From the acknowledgement of a write to its notification; one that came before the
    /// acknowledgement counts as 0.
    pub after_ack: TimesReport,
    /// From sending a write to its notification.
    pub after_send: TimesReport,
}

/// What processes used.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct UsageReport {
    /// CPU seconds while calls were running.
    pub cpu_seconds: f64,
    /// CPU microseconds a call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_call: Option<f64>,
    /// CPU microseconds a success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_ok: Option<f64>,
    /// CPU microseconds a delivered notification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_delivery: Option<f64>,
    /// Resident memory before, in bytes.
    pub resident_bytes_before: u64,
    /// Resident memory after, in bytes.
    pub resident_bytes_after: u64,
    /// Largest resident memory seen between rounds, in bytes.
    pub resident_bytes_peak: u64,
    /// Memory gained with the streams opened, divided by their number, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_stream: Option<f64>,
}

impl Report {
    pub(super) fn new(plan: &Plan, outcomes: Outcomes) -> Self {
        let sides: Vec<_> = outcomes.sides.into_iter().map(SideReport::new).collect();
        let ratios = match sides.as_slice() {
            [first, second] => ratios(first, second),
            _ => BTreeMap::new(),
        };
        Self {
            format: FORMAT,
            title: plan.title.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: env!("DATA_SYNC_REVISION").to_owned(),
            ended_at: SystemClock.now_seconds(),
            machine: Machine::this(),
            settings: Settings::of(plan),
            sides,
            ratios,
        }
    }
}

impl SideReport {
    fn new(outcome: SideOutcome) -> Self {
        let seconds = outcome.active.as_secs_f64();
        let total = outcome.tallies.total();
        let listen = outcome.listen.as_ref().map(ListenReport::of);
        let usage = |cpu: Option<Duration>, first: Option<Usage>, last: Option<Usage>| {
            let (cpu, first, last) = (cpu?, first?, last?);
            Some(UsageReport::new(cpu, first, last, &total, listen.as_ref()))
        };
        let cost = outcome.cost;
        let mut server = usage(cost.server, cost.first.server, cost.last.server);
        if let Some(server) = &mut server {
            server.resident_bytes_peak = cost.peak_bytes.max(server.resident_bytes_before);
            server.bytes_per_stream = outcome.listen.as_ref().and_then(ListenTally::bytes_each);
        }
        Self {
            name: outcome.side.name,
            targets: outcome.side.targets,
            streams_per_connection: outcome.side.streams_per_connection,
            seconds,
            server,
            database: usage(cost.database, cost.first.database, cost.last.database),
            generator: usage(cost.generator, cost.first.generator, cost.last.generator),
            operations: outcome
                .tallies
                .0
                .iter()
                .map(|(operation, tally)| (*operation, CallsReport::new(tally, seconds)))
                .collect(),
            total: CallsReport::new(&total, seconds),
            listen,
        }
    }
}

impl CallsReport {
    fn new(tally: &Tally, seconds: f64) -> Self {
        Self {
            calls: tally.calls(),
            ok: tally.ok,
            conflicts: tally.conflicts,
            errors: tally.errors,
            error_kinds: tally.error_kinds.clone(),
            ok_per_second: quotient(tally.ok, seconds).unwrap_or(0.0),
            latency: TimesReport::of(&tally.latency),
        }
    }
}

impl ListenReport {
    fn of(tally: &ListenTally) -> Self {
        Self {
            streams: tally.streams,
            open: TimesReport::of(&tally.open),
            reopened: tally.reopened,
            ended: tally.ended.clone(),
            expected: tally.expected,
            delivered: tally.delivered,
            merged: tally.merged,
            caught_up: tally.caught_up,
            lost: tally.lost,
            spare: tally.spare,
            after_ack: TimesReport::of(&tally.after_ack),
            after_send: TimesReport::of(&tally.after_send),
        }
    }
}

impl UsageReport {
    fn new(
        cpu: Duration,
        first: Usage,
        last: Usage,
        total: &Tally,
        listen: Option<&ListenReport>,
    ) -> Self {
        let microseconds = cpu.as_secs_f64() * 1e6;
        let per = |count: u64| (count > 0).then(|| microseconds / approximate(count));
        Self {
            cpu_seconds: cpu.as_secs_f64(),
            cpu_us_per_call: per(total.calls()),
            cpu_us_per_ok: per(total.ok),
            cpu_us_per_delivery: listen.and_then(|listen| per(listen.delivered)),
            resident_bytes_before: first.resident_bytes,
            resident_bytes_after: last.resident_bytes,
            resident_bytes_peak: first.resident_bytes.max(last.resident_bytes),
            bytes_per_stream: None,
        }
    }
}

pub(super) const fn approximate(count: u64) -> f64 {
    count as f64
}

fn quotient(count: u64, by: f64) -> Option<f64> {
    (by > 0.0).then(|| approximate(count) / by)
}

/// What two servers are compared by.
pub(super) fn measures(side: &SideReport) -> Vec<(&'static str, Option<f64>)> {
    let server = side.server.as_ref();
    let database = side.database.as_ref();
    let answered = side.total.latency.count > 0;
    let listen = side.listen.as_ref().filter(|listen| listen.after_send.count > 0);
    vec![
        ("ok per second", Some(side.total.ok_per_second)),
        ("p50", answered.then_some(side.total.latency.p50_ms)),
        ("p99", answered.then_some(side.total.latency.p99_ms)),
        ("server CPU per call", server.and_then(|usage| usage.cpu_us_per_call)),
        ("server CPU per success", server.and_then(|usage| usage.cpu_us_per_ok)),
        ("database CPU per success", database.and_then(|usage| usage.cpu_us_per_ok)),
        ("server memory after", server.map(|usage| approximate(usage.resident_bytes_after))),
        ("server CPU per delivery", server.and_then(|usage| usage.cpu_us_per_delivery)),
        ("server memory per stream", server.and_then(|usage| usage.bytes_per_stream)),
        ("delivery after send p99", listen.map(|listen| listen.after_send.p99_ms)),
    ]
}

fn ratios(first: &SideReport, second: &SideReport) -> BTreeMap<String, f64> {
    let pairs = measures(first).into_iter().zip(measures(second));
    pairs
        .filter_map(|((name, first), (_, second))| {
            let (first, second) = (first?, second?);
            (first > 0.0 && second > 0.0).then(|| (name.to_owned(), first / second))
        })
        .collect()
}
