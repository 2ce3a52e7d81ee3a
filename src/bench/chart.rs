//! Charts of reports, as SVG.

use std::{collections::BTreeMap, fmt, ops::Range};

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use thiserror::Error;

use super::{
    report::{Report, SideReport, approximate},
    table::number,
};

/// Colours that the colour-blind tell apart, on white.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];
const INK: RGBColor = RGBColor(40, 40, 40);
const FONT: &str = "sans-serif";
const WIDTH: u32 = 860;
const LINE_CHART_HEIGHT: u32 = 440;
const LABEL_WIDTH: i32 = 280;
const VALUE_WIDTH: i32 = 90;
const TITLE_HEIGHT: i32 = 44;
const PANEL_TITLE_HEIGHT: i32 = 30;
const BAR_HEIGHT: i32 = 18;
const BAR_STEP: i32 = 24;
const MARGIN: i32 = 16;
/// Room for the half of the last label that lies beyond the axis.
const LAST_LABEL_ROOM: u32 = 36;

/// A figure of a report that a chart shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Successful calls a second.
    Rate,
    /// Median latency.
    P50,
    /// Latency that 99 % stay below.
    P99,
    /// The server's CPU time for a successful call.
    ServerCpu,
    /// The database's CPU time for a successful call.
    DatabaseCpu,
    /// The server's memory after the run.
    Memory,
    /// The server's memory for an open stream.
    StreamMemory,
    /// The server's CPU time for a delivered notification.
    DeliveryCpu,
    /// Time from sending a write to its notification that 99 % stay below.
    DeliveryP99,
    /// Share of calls that failed; conflicts are no failures.
    Errors,
}

impl Measure {
    /// Every measure.
    pub const ALL: [Self; 10] = [
        Self::Rate,
        Self::P50,
        Self::P99,
        Self::ServerCpu,
        Self::DatabaseCpu,
        Self::Memory,
        Self::StreamMemory,
        Self::DeliveryCpu,
        Self::DeliveryP99,
        Self::Errors,
    ];

    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::ServerCpu => "server-cpu",
            Self::DatabaseCpu => "database-cpu",
            Self::Memory => "memory",
            Self::StreamMemory => "stream-memory",
            Self::DeliveryCpu => "delivery-cpu",
            Self::DeliveryP99 => "delivery-p99",
            Self::Errors => "errors",
        }
    }

    /// What an axis says.
    const fn title(self) -> &'static str {
        match self {
            Self::Rate => "successful calls a second (more is better)",
            Self::P50 => "median latency, ms (less is better)",
            Self::P99 => "99th percentile of latency, ms (less is better)",
            Self::ServerCpu => "server CPU a success, µs (less is better)",
            Self::DatabaseCpu => "database CPU a success, µs (less is better)",
            Self::Memory => "server memory after the run, MiB (less is better)",
            Self::StreamMemory => "server memory a stream, KiB (less is better)",
            Self::DeliveryCpu => "server CPU a notification, µs (less is better)",
            Self::DeliveryP99 => "write to notification, 99th percentile, ms (less is better)",
            Self::Errors => "calls that failed, % (less is better)",
        }
    }

    fn of(self, side: &SideReport) -> Option<f64> {
        let (server, total) = (side.server.as_ref(), &side.total);
        let latency = Some(&total.latency).filter(|latency| latency.count > 0);
        let called = total.calls > 0;
        match self {
            Self::Rate => called.then_some(total.ok_per_second),
            Self::P50 => latency.map(|latency| latency.p50_ms),
            Self::P99 => latency.map(|latency| latency.p99_ms),
            Self::ServerCpu => server?.cpu_us_per_ok,
            Self::DatabaseCpu => side.database.as_ref()?.cpu_us_per_ok,
            Self::Memory => Some(approximate(server?.resident_bytes_after) / (1024.0 * 1024.0)),
            Self::StreamMemory => Some(server?.bytes_per_stream? / 1024.0),
            Self::DeliveryCpu => server?.cpu_us_per_delivery,
            Self::DeliveryP99 => {
                let times = &side.listen.as_ref()?.after_send;
                (times.count > 0).then_some(times.p99_ms)
            }
            Self::Errors => {
                called.then(|| 100.0 * approximate(total.errors) / approximate(total.calls))
            }
        }
    }
}

/// A setting that differs between runs, along which costs may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Users.
    Users,
    /// Users whom the store was given before.
    StoredUsers,
    /// Records of each user.
    Records,
    /// Open streams.
    Streams,
    /// Replicas of the server.
    Replicas,
    /// Callers at once.
    Concurrency,
    /// Calls or writes a second.
    Rate,
    /// Bytes of data in a record.
    RecordBytes,
}

impl Axis {
    /// Every axis.
    pub const ALL: [Self; 8] = [
        Self::Users,
        Self::StoredUsers,
        Self::Records,
        Self::Streams,
        Self::Replicas,
        Self::Concurrency,
        Self::Rate,
        Self::RecordBytes,
    ];

    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::StoredUsers => "stored-users",
            Self::Records => "records",
            Self::Streams => "streams",
            Self::Replicas => "replicas",
            Self::Concurrency => "concurrency",
            Self::Rate => "rate",
            Self::RecordBytes => "record-bytes",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::StoredUsers => "users stored",
            Self::Records => "records a user",
            Self::Streams => "open streams",
            Self::Replicas => "replicas",
            Self::Concurrency => "callers at once",
            Self::Rate => "calls a second",
            Self::RecordBytes => "bytes of a record's data",
        }
    }

    fn of(self, report: &Report, side: &SideReport) -> Option<f64> {
        let settings = &report.settings;
        let count = |count: usize| Some(approximate(count as u64));
        match self {
            Self::Users => count(settings.users),
            Self::StoredUsers => count(settings.stored_users?),
            Self::Records => count(settings.records),
            Self::Streams => count(settings.streams?),
            Self::Replicas => count(side.targets.len()),
            Self::Concurrency => count(settings.concurrency?),
            Self::Rate => settings.rate,
            Self::RecordBytes => count(settings.record_bytes),
        }
    }
}

/// What to draw.
#[derive(Debug, Clone, PartialEq)]
pub enum Chart {
    /// One panel of bars a measure; the measures that no report holds are left out.
    Bars(Vec<Measure>),
    /// A measure along a setting, one line a server.
    Growth {
        /// The setting.
        along: Axis,
        /// The measure.
        measure: Measure,
    },
    /// The latency that a share of the calls does not exceed, one line a run and server.
    Latency,
}

/// Why there is no chart.
#[derive(Debug, Error)]
pub enum ChartError {
    /// No report holds what was asked for.
    #[error("the reports hold nothing to draw: {0}")]
    Empty(&'static str),
    /// The drawing itself failed.
    #[error("cannot draw: {0}")]
    Drawing(String),
}

impl<E: std::error::Error + Send + Sync> From<DrawingAreaErrorKind<E>> for ChartError {
    fn from(error: DrawingAreaErrorKind<E>) -> Self {
        Self::Drawing(error.to_string())
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// The points of each line, by its name.
type Lines = BTreeMap<String, Vec<(f64, f64)>>;

/// Draws reports, each with its label, as an SVG picture.
///
/// # Errors
/// If the reports hold nothing to draw.
pub fn svg(title: &str, reports: &[Report], chart: &Chart) -> Result<String, ChartError> {
    match chart {
        Chart::Bars(measures) => bars(title, reports, measures),
        Chart::Growth { along, measure } => {
            let lines = growth(reports, *along, *measure);
            curves(title, &lines, along.title(), measure.title())
        }
        Chart::Latency => {
            let title_y = "latency, ms";
            curves(title, &latencies(reports), "slower than this share of the calls, 1 in", title_y)
        }
    }
}

fn named(report: &Report, side: &SideReport) -> String {
    let run = if report.title.is_empty() { &report.settings.op } else { &report.title };
    format!("{run}, {}", side.name)
}

/// One bar: its label, its server's place among its run's, its length.
type Bar = (String, usize, f64);

fn bars(title: &str, reports: &[Report], measures: &[Measure]) -> Result<String, ChartError> {
    let panels: Vec<(Measure, Vec<Bar>)> = measures
        .iter()
        .map(|&measure| (measure, bars_of(reports, measure)))
        .filter(|(_, bars)| !bars.is_empty())
        .collect();
    if panels.is_empty() {
        return Err(ChartError::Empty("no report has these measures"));
    }
    let height = |bars: &[Bar]| PANEL_TITLE_HEIGHT + BAR_STEP * pixels(bars.len()) + MARGIN;
    let total = TITLE_HEIGHT + panels.iter().map(|(_, bars)| height(bars)).sum::<i32>();
    let mut picture = String::new();
    {
        let area = SVGBackend::with_string(&mut picture, (WIDTH, total.unsigned_abs()))
            .into_drawing_area();
        area.fill(&WHITE)?;
        text(&area, title, (MARGIN, MARGIN), 20.0, HPos::Left)?;
        let mut top = TITLE_HEIGHT;
        for (measure, bars) in &panels {
            panel(&area, top, measure.title(), bars)?;
            top += height(bars);
        }
        area.present()?;
    }
    Ok(picture)
}

fn bars_of(reports: &[Report], measure: Measure) -> Vec<Bar> {
    let of_report = |report: &Report| -> Vec<Bar> {
        let sides = report.sides.iter().enumerate();
        sides
            .filter_map(|(place, side)| Some((named(report, side), place, measure.of(side)?)))
            .collect()
    };
    reports.iter().flat_map(of_report).collect()
}

fn panel(area: &Area<'_>, top: i32, title: &str, bars: &[Bar]) -> Result<(), ChartError> {
    text(area, title, (MARGIN, top + 8), 14.0, HPos::Left)?;
    let longest = bars.iter().map(|(_, _, value)| *value).fold(0.0, f64::max);
    let room = f64::from(pixels(WIDTH as usize) - LABEL_WIDTH - VALUE_WIDTH - MARGIN);
    for (index, (label, place, value)) in bars.iter().enumerate() {
        let y = top + PANEL_TITLE_HEIGHT + BAR_STEP * pixels(index);
        let share = if longest > 0.0 { value / longest } else { 0.0 };
        #[allow(clippy::cast_possible_truncation, reason = "at most the picture's width")]
        let end = LABEL_WIDTH + (room * share) as i32;
        let colour = COLOURS[place % COLOURS.len()];
        area.draw(&Rectangle::new(
            [(LABEL_WIDTH, y), (end.max(LABEL_WIDTH + 1), y + BAR_HEIGHT)],
            colour.filled(),
        ))?;
        let middle = y + 3;
        text(area, label, (LABEL_WIDTH - 8, middle), 12.0, HPos::Right)?;
        text(area, &number(*value), (end + 6, middle), 12.0, HPos::Left)?;
    }
    Ok(())
}

fn pixels(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn text(
    area: &Area<'_>,
    text: &str,
    at: (i32, i32),
    size: f64,
    from: HPos,
) -> Result<(), ChartError> {
    let style =
        TextStyle::from((FONT, size).into_font()).color(&INK).pos(Pos::new(from, VPos::Top));
    Ok(area.draw(&Text::new(text.to_owned(), at, style))?)
}

fn growth(reports: &[Report], along: Axis, measure: Measure) -> Lines {
    let mut lines = Lines::new();
    for report in reports {
        for side in &report.sides {
            if let (Some(x), Some(y)) = (along.of(report, side), measure.of(side)) {
                lines.entry(side.name.clone()).or_default().push((x, y));
            }
        }
    }
    for points in lines.values_mut() {
        points.sort_by(|first, second| first.0.total_cmp(&second.0));
    }
    lines
}

/// The curve's far end is what matters, so its axis counts 1 in 1, 1 in 10, 1 in 100 …
fn latencies(reports: &[Report]) -> Lines {
    let mut lines = Lines::new();
    for report in reports {
        for side in report.sides.iter().filter(|side| side.total.latency.count > 0) {
            let curve = side.total.latency.curve.iter().filter(|(share, _)| *share < 1.0);
            let points = curve.map(|(share, latency)| (1.0 / (1.0 - share), *latency));
            lines.insert(named(report, side), points.collect());
        }
    }
    lines
}

fn curves(title: &str, lines: &Lines, title_x: &str, title_y: &str) -> Result<String, ChartError> {
    let points = || lines.values().flatten().filter(|(x, _)| *x > 0.0);
    let xs = extent(points().map(|(x, _)| *x)).ok_or(ChartError::Empty("no points"))?;
    let tallest = points().map(|(_, y)| *y).fold(0.0, f64::max);
    let ys = 0.0..(tallest * 1.1).max(f64::MIN_POSITIVE);
    let mut picture = String::new();
    {
        let area =
            SVGBackend::with_string(&mut picture, (WIDTH, LINE_CHART_HEIGHT)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, (FONT, 20).into_font().color(&INK))
            .margin(MARGIN)
            .margin_right(LAST_LABEL_ROOM)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(xs.log_scale(), ys)?;
        chart
            .configure_mesh()
            .x_desc(title_x)
            .y_desc(title_y)
            .x_label_formatter(&|x| tick(*x))
            .y_label_formatter(&|y| tick(*y))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (index, (name, points)) in lines.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let points = || points.iter().copied().filter(|(x, _)| *x > 0.0);
            chart
                .draw_series(LineSeries::new(points(), colour.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour));
            chart.draw_series(points().map(|point| Circle::new(point, 3, colour.filled())))?;
        }
        if lines.len() > 1 {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .background_style(WHITE.mix(0.85))
                .border_style(INK.mix(0.3))
                .draw()?;
        }
        area.present()?;
    }
    Ok(picture)
}

/// A number on an axis: whole ones without a point.
fn tick(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { number(value) }
}

/// From the smallest to the largest, with some room where they are one.
fn extent(values: impl Iterator<Item = f64>) -> Option<Range<f64>> {
    let (low, high) = values
        .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        None
    } else if low < high {
        Some(low..high)
    } else {
        Some(low / 2.0..high * 2.0)
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
