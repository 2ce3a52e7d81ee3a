//! The command line of a run.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;
use humantime::parse_duration;

use crate::{
    bench::plan::{ListenPlan, Load, Mix, Plan, Side, Workload},
    limits::{BENCH_MAX_IN_FLIGHT, MAX_RECORD_DATA_BYTES},
};

/// Callers of a closed loop.
const DEFAULT_CONCURRENCY: usize = 64;
/// Calls of an open loop that may run at once.
const DEFAULT_IN_FLIGHT: usize = 1_024;

/// What is measured: unary calls, or streams.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    Calls(Mix),
    Listen,
}

fn parse_op(text: &str) -> Result<Op, String> {
    if text == "listen" { Ok(Op::Listen) } else { text.parse().map(Op::Calls) }
}

fn parse_count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=BENCH_MAX_IN_FLIGHT).contains(count));
    count.ok_or_else(|| format!("not a number from 1 to {BENCH_MAX_IN_FLIGHT}"))
}

fn parse_users(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|users| *users > 0).ok_or_else(|| "not a number from 1".to_owned())
}

fn parse_record_bytes(text: &str) -> Result<usize, String> {
    let bytes = text.parse().ok().filter(|bytes| *bytes <= MAX_RECORD_DATA_BYTES);
    bytes.ok_or_else(|| format!("not a number from 0 to {MAX_RECORD_DATA_BYTES}"))
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate >= 0.0);
    rate.ok_or_else(|| "not a rate".to_owned())
}

fn parse_positive_rate(text: &str) -> Result<f64, String> {
    let rate = parse_rate(text)?;
    if rate > 0.0 { Ok(rate) } else { Err("the rate must be above 0".to_owned()) }
}

fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|error| error.to_string())?;
    if duration.is_zero() { Err("the time must be above 0".to_owned()) } else { Ok(duration) }
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// URL of a server; give it again for each further replica, they are used in turn.
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:8080",
        help_heading = "Servers"
    )]
    target: Vec<String>,

    /// URL of a replica that the writes beside streams go to, so that streams on other replicas
    /// are measured alone; again for each [default: the targets].
    #[arg(long, value_name = "URL", conflicts_with = "compare", help_heading = "Servers")]
    write_target: Vec<String>,

    /// The server's name in tables and charts.
    #[arg(long, value_name = "NAME", default_value = "data-sync", help_heading = "Servers")]
    name: String,

    /// Process of the server, for its CPU time and memory; again for each replica.
    #[arg(long, value_name = "PID", help_heading = "Servers")]
    pid: Vec<i32>,

    /// Main process of the server's database; its children are counted with it.
    #[arg(long, value_name = "PID", help_heading = "Servers")]
    db_pid: Option<i32>,

    /// Calls and streams that share one connection. The Go server allows five.
    #[arg(
        long,
        value_name = "N",
        default_value = "5",
        value_parser = parse_count,
        help_heading = "Servers"
    )]
    streams_per_connection: usize,

    /// File that holds the API key: base 64 of a DER certificate.
    #[arg(long, value_name = "FILE", help_heading = "Servers")]
    api_key_file: Option<PathBuf>,

    /// URL of a second server, measured in alternating rounds; again for each replica of it.
    #[arg(long, value_name = "URL", help_heading = "Comparison")]
    compare: Vec<String>,

    /// The second server's name.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "compared",
        requires = "compare",
        help_heading = "Comparison"
    )]
    compare_name: String,

    /// Process of the second server; again for each replica.
    #[arg(long, value_name = "PID", requires = "compare", help_heading = "Comparison")]
    compare_pid: Vec<i32>,

    /// Main process of the second server's database.
    #[arg(long, value_name = "PID", requires = "compare", help_heading = "Comparison")]
    compare_db_pid: Option<i32>,

    /// Calls and streams that share one connection to the second server [default: as the first].
    #[arg(
        long,
        value_name = "N",
        requires = "compare",
        value_parser = parse_count,
        help_heading = "Comparison"
    )]
    compare_streams_per_connection: Option<usize>,

    /// What is measured: an operation, mixed, mixed=OP:WEIGHT,… or listen.
    #[arg(
        long,
        value_name = "OP",
        default_value = "mixed",
        value_parser = parse_op,
        help_heading = "Load"
    )]
    op: Op,

    /// Callers at once [default: 64; with --rate at most 1024].
    #[arg(long, value_name = "N", value_parser = parse_count, help_heading = "Load")]
    concurrency: Option<usize>,

    /// Calls a second, on a schedule; without it each caller waits for its answers.
    #[arg(long, value_name = "N", value_parser = parse_positive_rate, help_heading = "Load")]
    rate: Option<f64>,

    /// Users who call; they are made from the seed.
    #[arg(
        long,
        value_name = "N",
        default_value = "100",
        value_parser = parse_users,
        help_heading = "Load"
    )]
    users: usize,

    /// Users whom the store was given before; only noted in the report, for charts along it.
    #[arg(long, value_name = "N", help_heading = "Load")]
    stored_users: Option<usize>,

    /// Records that each user has before list-all or list-new are measured.
    #[arg(long, value_name = "N", default_value = "100", help_heading = "Load")]
    records: usize,

    /// Bytes of data of each record.
    #[arg(
        long,
        value_name = "N",
        default_value = "1024",
        value_parser = parse_record_bytes,
        help_heading = "Load"
    )]
    record_bytes: usize,

    /// Streams held open by listen.
    #[arg(
        long,
        value_name = "N",
        default_value = "1000",
        value_parser = parse_count,
        help_heading = "Streams"
    )]
    streams: usize,

    /// Writes a second beside the streams; 0 measures idle streams.
    #[arg(
        long,
        value_name = "N",
        default_value = "200",
        value_parser = parse_rate,
        help_heading = "Streams"
    )]
    write_rate: f64,

    /// Streams are closed and opened again after about this long.
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_positive_duration,
        help_heading = "Streams"
    )]
    stream_life: Option<Duration>,

    /// Wait after the last write before what is missing counts as lost.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "6s",
        value_parser = parse_duration,
        help_heading = "Streams"
    )]
    grace: Duration,

    /// Time that is measured.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "10s",
        value_parser = parse_positive_duration,
        help_heading = "Run"
    )]
    duration: Duration,

    /// Time before anything counts.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "2s",
        value_parser = parse_duration,
        help_heading = "Run"
    )]
    warm_up: Duration,

    /// Time of one round; requests are signed between rounds, and compared servers take turns.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "2s",
        value_parser = parse_positive_duration,
        help_heading = "Run"
    )]
    slice: Duration,

    /// Longest wait for one answer.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "10s",
        value_parser = parse_positive_duration,
        help_heading = "Run"
    )]
    timeout: Duration,

    /// Makes users and order: the same seed calls as the same users [default: random].
    #[arg(long, value_name = "N", help_heading = "Run")]
    seed: Option<u64>,

    /// Title of the run in tables and charts [default: the operation].
    #[arg(long, value_name = "TEXT", help_heading = "Result")]
    title: Option<String>,

    /// Write the report as JSON to this file; - writes it to standard output, without the table.
    #[arg(long, value_name = "FILE", help_heading = "Result")]
    pub(super) json: Option<PathBuf>,

    /// Fail when a call failed, a stream was ended or a notification was lost.
    #[arg(long, help_heading = "Result")]
    pub(super) strict: bool,
}

impl RunArgs {
    /// What the command line asks for.
    pub(super) fn plan(&self) -> anyhow::Result<Plan> {
        Ok(Plan {
            sides: self.sides()?,
            workload: match &self.op {
                Op::Calls(mix) => Workload::Calls(mix.clone()),
                Op::Listen => Workload::Listen(ListenPlan {
                    streams: self.streams,
                    writes_per_second: self.write_rate,
                    stream_life: self.stream_life,
                    grace: self.grace,
                }),
            },
            load: match self.rate {
                None => {
                    Load::Closed { concurrency: self.concurrency.unwrap_or(DEFAULT_CONCURRENCY) }
                }
                Some(per_second) => Load::Open {
                    per_second,
                    in_flight: self.concurrency.unwrap_or(DEFAULT_IN_FLIGHT),
                },
            },
            users: self.users,
            stored_users: self.stored_users,
            records_per_user: self.records,
            record_bytes: self.record_bytes,
            warm_up: self.warm_up,
            duration: self.duration,
            slice: self.slice,
            timeout: self.timeout,
            seed: self.seed.unwrap_or_else(rand::random),
            title: self.title.clone().unwrap_or_default(),
        })
    }

    fn sides(&self) -> anyhow::Result<Vec<Side>> {
        let api_key = match &self.api_key_file {
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?,
            ),
            None => None,
        };
        let mut sides = vec![Side {
            name: self.name.clone(),
            targets: self.target.clone(),
            write_targets: self.write_target.clone(),
            streams_per_connection: self.streams_per_connection,
            server_pids: self.pid.clone(),
            database_pid: self.db_pid,
            api_key: api_key.clone(),
        }];
        if !self.compare.is_empty() {
            sides.push(Side {
                name: self.compare_name.clone(),
                targets: self.compare.clone(),
                write_targets: Vec::new(),
                streams_per_connection: self
                    .compare_streams_per_connection
                    .unwrap_or(self.streams_per_connection),
                server_pids: self.compare_pid.clone(),
                database_pid: self.compare_db_pid,
                api_key,
            });
        }
        Ok(sides)
    }
}
