//! Measures a server over the wire, and draws what was measured.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::Exit;
use crate::bench::{self, report::Report, table};

mod args;
mod chart;
mod progress;
#[cfg(test)]
mod tests;

use args::RunArgs;
use chart::ChartArgs;
use progress::Bar;

pub(super) const AFTER_HELP: &str = "\
Operations:
  set        store records that are not there yet
  update     store new versions of the caller's own record
  list-all   list every record of a user
  list-new   list when nothing is new: what idle apps do most
  set-lock   take or release one of a user's eight locks, by their one holder
  get-lock   ask whether such a lock is held
  mixed      30 set, 50 list-new, 10 get-lock, 10 set-lock; other shares as mixed=OP:WEIGHT,…
  listen     hold streams open, write beside them, account for every notification

Closed and open loop:
  Without --rate each caller sends its next call when the last was answered: that finds the
  throughput, and hides how long calls would have waited. With --rate calls are sent on a schedule
  whatever the answers do, and latency counts from when a call was due: that finds what users feel.

How to read the result:
  Latency is of answered calls. A conflict is an answer, so it is counted apart from errors.
  CPU is that of the processes given by --pid and --db-pid while calls ran, divided by the calls.
  Compare CPU and ratios rather than rates where the load shares the server's processors.

Examples:
  data-sync bench                                  the usual mix against http://127.0.0.1:8080
  data-sync bench --op set --concurrency 64 --pid $(pgrep -o data-sync) --json set.json
  data-sync bench --op set --rate 500              latency at 500 writes a second
  data-sync bench --op mixed=set:1,list-all:9 --users 1000 --records 500
  data-sync bench --op update --users 1 --concurrency 32     many devices of one user
  data-sync bench --op listen --streams 1000 --users 100 --write-rate 200
  data-sync bench --op listen --streams 10000 --write-rate 0 --pid 4711    memory of idle streams
  data-sync bench --op set --target http://a:8080 --target http://b:8080   two replicas in turn
  data-sync bench --op set --compare http://127.0.0.1:9080 --compare-name go
  data-sync bench chart set.json list.json > bars.svg
  data-sync bench chart --along users --measure server-cpu users-*.json > growth.svg

Exit status:
  0   measured; failed calls are in the report
  1   could not measure; with --strict also when a call failed or a notification was lost
  64  a command line that cannot be used";

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BenchCommand {
    #[command(flatten)]
    run: Box<RunArgs>,

    #[command(subcommand)]
    command: Option<BenchSubcommand>,
}

#[derive(Debug, Subcommand)]
enum BenchSubcommand {
    /// Draw JSON reports as SVG, on standard output.
    Chart(ChartArgs),
}

pub(super) fn run(command: &BenchCommand) -> anyhow::Result<Exit> {
    match &command.command {
        Some(BenchSubcommand::Chart(args)) => chart::run(args),
        None => measure(&command.run),
    }
}

fn measure(args: &RunArgs) -> anyhow::Result<Exit> {
    let plan = args.plan()?;
    let bar = Arc::new(Bar::new());
    let report = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("bench")
        .build()
        .context("cannot start the runtime")?
        .block_on(bench::run(plan, bar.clone()));
    bar.clear();
    let report = report?;
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    if args.json.as_deref() != Some(Path::new(STANDARD_OUTPUT)) {
        io::stdout().write_all(table::markdown(&report).as_bytes())?;
    }
    Ok(if args.strict && failed(&report) { Exit::FAILURE } else { Exit::SUCCESS })
}

/// A path that means standard output.
const STANDARD_OUTPUT: &str = "-";

fn write_json(path: &Path, report: &Report) -> anyhow::Result<()> {
    let mut json = serde_json::to_vec_pretty(report).context("cannot write the report")?;
    json.push(b'\n');
    if path == Path::new(STANDARD_OUTPUT) {
        io::stdout().write_all(&json)?;
        return Ok(());
    }
    std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))
}

fn read_json(path: &PathBuf) -> anyhow::Result<Report> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is no report of this command", path.display()))
}

fn failed(report: &Report) -> bool {
    report.sides.iter().any(|side| {
        let listen = side.listen.as_ref();
        side.total.errors > 0 || listen.is_some_and(|l| l.lost > 0 || !l.ended.is_empty())
    })
}
