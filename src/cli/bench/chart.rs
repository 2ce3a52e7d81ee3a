//! The command line of a chart.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use clap::Args;

use super::{Exit, read_json};
use crate::bench::chart::{self, Axis, Chart, Measure};

/// Measures that bars show where nobody chose.
const USUAL: [Measure; 6] = [
    Measure::Rate,
    Measure::P99,
    Measure::ServerCpu,
    Measure::DeliveryP99,
    Measure::DeliveryCpu,
    Measure::StreamMemory,
];

fn parse_measure(text: &str) -> Result<Measure, String> {
    let found = Measure::ALL.into_iter().find(|measure| measure.name() == text);
    found.ok_or_else(|| {
        format!("no measure; there are {}", Measure::ALL.map(Measure::name).join(", "))
    })
}

fn parse_axis(text: &str) -> Result<Axis, String> {
    let found = Axis::ALL.into_iter().find(|axis| axis.name() == text);
    found.ok_or_else(|| format!("no setting; there are {}", Axis::ALL.map(Axis::name).join(", ")))
}

#[derive(Debug, Args)]
pub(super) struct ChartArgs {
    /// Reports made with --json.
    #[arg(required = true, value_name = "FILE")]
    reports: Vec<PathBuf>,

    /// What to show: rate, p50, p99, server-cpu, database-cpu, memory, stream-memory,
    /// delivery-cpu, delivery-p99, errors; several for bars.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = parse_measure)]
    measure: Vec<Measure>,

    /// Draw one measure as a line along a setting that differs between the reports: users,
    /// stored-users, records, streams, replicas, concurrency, rate or record-bytes.
    #[arg(long, value_name = "NAME", value_parser = parse_axis, conflicts_with = "latency")]
    along: Option<Axis>,

    /// Draw the latency of every share of the calls, from the median to the slowest.
    #[arg(long)]
    latency: bool,

    /// Title of the chart.
    #[arg(long, value_name = "TEXT", default_value = "data-sync bench")]
    title: String,
}

pub(super) fn run(args: &ChartArgs) -> anyhow::Result<Exit> {
    let reports = args.reports.iter().map(read_json).collect::<anyhow::Result<Vec<_>>>()?;
    let picture = chart::svg(&args.title, &reports, &args.chart())?;
    io::stdout().write_all(picture.as_bytes())?;
    Ok(Exit::SUCCESS)
}

impl ChartArgs {
    fn chart(&self) -> Chart {
        match self.along {
            _ if self.latency => Chart::Latency,
            Some(along) => {
                let measure = self.measure.first().copied().unwrap_or(Measure::ServerCpu);
                Chart::Growth { along, measure }
            }
            None if self.measure.is_empty() => Chart::Bars(USUAL.to_vec()),
            None => Chart::Bars(self.measure.clone()),
        }
    }
}
