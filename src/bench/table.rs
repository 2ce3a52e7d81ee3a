//! A report as tables that read well on a terminal and in Markdown.

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};

use super::report::{CallsReport, ListenReport, Report, SideReport, UsageReport, approximate};

const MIB: f64 = 1024.0 * 1024.0;

/// Writes a report as Markdown.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let mut sections = vec![heading(report)];
    let called: Vec<_> = report.sides.iter().filter(|side| side.total.calls > 0).collect();
    if !called.is_empty() {
        sections.push(calls(&called));
    }
    if report.sides.iter().any(|side| side.listen.is_some()) {
        sections.push(listens(&report.sides));
    }
    if report.sides.iter().any(|side| side.server.is_some() || side.generator.is_some()) {
        sections.push(usage(&report.sides));
    }
    sections.extend(report.sides.iter().filter_map(faults));
    if !report.ratios.is_empty() {
        sections.push(ratios(report));
    }
    sections.join("\n\n") + "\n"
}

fn heading(report: &Report) -> String {
    let settings = &report.settings;
    let load = match (settings.concurrency, settings.rate, settings.streams) {
        (_, Some(rate), Some(streams)) => format!("{streams} streams, {rate} writes/s"),
        (Some(concurrency), ..) => format!("closed loop, {concurrency} callers"),
        (None, Some(rate), None) => format!("open loop, {rate} calls/s"),
        (None, None, _) => "unknown load".to_owned(),
    };
    let title = if report.title.is_empty() { &settings.op } else { &report.title };
    format!(
        "## {title}\n\n{}; {load}; {} users; records of {} bytes; {} s measured; {} cores; seed {}",
        settings.op,
        settings.users,
        settings.record_bytes,
        settings.duration_seconds,
        report.machine.cpus,
        settings.seed
    )
}

fn calls(sides: &[&SideReport]) -> String {
    let mut table = table(&[
        "server",
        "calls of",
        "ok/s",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "ok",
        "conflicts",
        "errors",
    ]);
    let mut row = |side: &SideReport, name: &str, calls: &CallsReport| {
        let latency = &calls.latency;
        table.add_row([
            side.name.clone(),
            name.to_owned(),
            number(calls.ok_per_second),
            number(latency.p50_ms),
            number(latency.p90_ms),
            number(latency.p99_ms),
            number(latency.p999_ms),
            number(latency.max_ms),
            calls.ok.to_string(),
            calls.conflicts.to_string(),
            share(calls.errors, calls.calls),
        ]);
    };
    for side in sides {
        for (operation, calls) in &side.operations {
            row(side, operation.name(), calls);
        }
        if side.operations.len() > 1 {
            row(side, "all", &side.total);
        }
    }
    finished(&mut table, 2)
}

fn listens(sides: &[SideReport]) -> String {
    let mut table = table(&[
        "server",
        "streams",
        "expected",
        "delivered",
        "merged",
        "caught up",
        "lost",
        "reopened",
        "spare",
        "after ack p50 / p99 / max ms",
        "after send p50 / p99 / max ms",
        "live p50 / max ms",
    ]);
    for side in sides {
        let Some(listen) = &side.listen else { continue };
        let ListenReport { after_ack: ack, after_send: send, open, .. } = listen;
        let times = |times: [f64; 3]| times.map(number).join(" / ");
        table.add_row([
            side.name.clone(),
            listen.streams.to_string(),
            listen.expected.to_string(),
            listen.delivered.to_string(),
            listen.merged.to_string(),
            listen.caught_up.to_string(),
            listen.lost.to_string(),
            listen.reopened.to_string(),
            listen.spare.to_string(),
            times([ack.p50_ms, ack.p99_ms, ack.max_ms]),
            times([send.p50_ms, send.p99_ms, send.max_ms]),
            format!("{} / {}", number(open.p50_ms), number(open.max_ms)),
        ]);
    }
    finished(&mut table, 1)
}

fn usage(sides: &[SideReport]) -> String {
    let mut table = table(&[
        "server",
        "process",
        "CPU µs/call",
        "CPU µs/success",
        "CPU µs/delivery",
        "KiB/stream",
        "MiB before",
        "MiB after",
        "MiB peak",
    ]);
    for side in sides {
        let processes =
            [("server", &side.server), ("database", &side.database), ("load", &side.generator)];
        for (name, usage) in processes {
            if let Some(usage) = usage {
                table.add_row(usage_row(&side.name, name, usage));
            }
        }
    }
    finished(&mut table, 2)
}

fn usage_row(side: &str, process: &str, usage: &UsageReport) -> Vec<String> {
    let optional = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), number);
    let mib = |bytes: u64| number(approximate(bytes) / MIB);
    vec![
        side.to_owned(),
        process.to_owned(),
        optional(usage.cpu_us_per_call),
        optional(usage.cpu_us_per_ok),
        optional(usage.cpu_us_per_delivery),
        optional(usage.bytes_per_stream.map(|bytes| bytes / 1024.0)),
        mib(usage.resident_bytes_before),
        mib(usage.resident_bytes_after),
        mib(usage.resident_bytes_peak),
    ]
}

/// Errors and ended streams of a server, each kind with its number.
fn faults(side: &SideReport) -> Option<String> {
    let ended = side.listen.iter().flat_map(|listen| &listen.ended);
    let lines: Vec<String> = side
        .total
        .error_kinds
        .iter()
        .map(|(kind, count)| format!("- {count} × {kind}"))
        .chain(ended.map(|(kind, count)| format!("- {count} × stream ended: {kind}")))
        .collect();
    (!lines.is_empty()).then(|| format!("{} failed with:\n\n{}", side.name, lines.join("\n")))
}

fn ratios(report: &Report) -> String {
    let names: Vec<_> = report.sides.iter().map(|side| side.name.as_str()).collect();
    let mut table = table(&["measure", &names.join(" ÷ ")]);
    for (measure, ratio) in &report.ratios {
        table.add_row([measure.clone(), format!("{ratio:.3}")]);
    }
    finished(&mut table, 1)
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(header.to_vec());
    table
}

/// The table's text, with the columns from number `first_number` aligned to the right.
fn finished(table: &mut Table, first_number: usize) -> String {
    for column in table.column_iter_mut().skip(first_number) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// Three significant digits, or all before the point.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn share(count: u64, of: u64) -> String {
    if count == 0 {
        return "0".to_owned();
    }
    format!("{count} ({:.1} %)", 100.0 * approximate(count) / approximate(of))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let numbers = [0.0, 0.012_34, 1.234, 12.34, 123.4, 12_345.6].map(number);
        assert_eq!(numbers, ["0", "0.012", "1.23", "12.3", "123", "12346"]);
    }

    #[test]
    fn errors_show_their_share() {
        assert_eq!(share(0, 10), "0");
        assert_eq!(share(1, 8), "1 (12.5 %)");
    }
}
