use clap::Parser;

use super::{args::RunArgs, chart::ChartArgs};
use crate::bench::plan::{Load, Workload};

#[derive(Debug, Parser)]
struct Run {
    #[command(flatten)]
    args: RunArgs,
}

#[derive(Debug, Parser)]
struct Draw {
    #[command(flatten)]
    args: ChartArgs,
}

fn parse(line: &str) -> Result<RunArgs, String> {
    let words = std::iter::once("bench").chain(line.split_whitespace());
    Run::try_parse_from(words).map(|run| run.args).map_err(|error| error.to_string())
}

#[test]
fn without_options_the_usual_mix_runs_in_a_closed_loop() {
    let plan = parse("").unwrap().plan().unwrap();
    assert_eq!(plan.load, Load::Closed { concurrency: 64 });
    let Workload::Calls(mix) = plan.workload else { panic!("not calls") };
    assert_eq!(mix.to_string(), "mixed=set:30,list-new:50,get-lock:10,set-lock:10");
    assert_eq!(plan.sides.len(), 1);
    assert_eq!(plan.sides[0].targets, ["http://127.0.0.1:8080"]);
}

#[test]
fn a_rate_makes_an_open_loop() {
    let plan = parse("--rate 500 --op set").unwrap().plan().unwrap();
    assert_eq!(plan.load, Load::Open { per_second: 500.0, in_flight: 1_024 });
}

#[test]
fn a_comparison_is_a_second_side() {
    let line = "--target http://a --target http://b --pid 7 --compare http://c --compare-pid 9";
    let plan = parse(line).unwrap().plan().unwrap();
    assert_eq!(plan.sides[0].targets, ["http://a", "http://b"]);
    assert_eq!(plan.sides[0].server_pids, [7]);
    assert_eq!(plan.sides[1].targets, ["http://c"]);
    assert_eq!(plan.sides[1].server_pids, [9]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    for line in [
        "--op nonsense",
        "--rate 0",
        "--users 0",
        "--concurrency 0",
        "--record-bytes 65537",
        "--duration 0s",
        "--compare-pid 1",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn a_chart_needs_reports_and_known_measures() {
    let parse = |line: &str| Draw::try_parse_from(line.split(' '));
    assert!(parse("chart").is_err());
    assert!(parse("chart --measure nonsense a.json").is_err());
    assert!(parse("chart --latency --along users a.json").is_err());
    assert!(parse("chart --measure rate,p99 a.json b.json").is_ok());
}
