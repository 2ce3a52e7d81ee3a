//! Writes the page that lists every metric.

use std::fmt::Write as _;

use super::registrar::Entry;

/// Groups of names: prefix, heading, remark.
const GROUPS: &[(&str, &str, &str)] = &[
    (
        "grpc_server_",
        "Calls",
        "The family that gRPC servers in other languages emit under the same names. Latencies are \
         of unary calls only: a stream lasts as long as its caller likes. Paths that name no RPC \
         of the server share the method `unknown`.",
    ),
    ("data_sync_", "Service", "No label ever holds a user, a key or a record."),
    ("process_", "Process", "On Linux only."),
    ("tokio_", "Async runtime", "Read at the moment of the scrape."),
];

/// All entries as tables, one for each group; `entries` are in order of name.
pub(super) fn markdown(entries: &[Entry]) -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         Everything that `/metrics` on the admin port shows, in the Prometheus text format. \
         Durations are in seconds.\n\n\
         <!-- generated: data-sync docs metrics > docs/metrics.md -->\n",
    );
    for (prefix, heading, remark) in GROUPS {
        let _ = write!(page, "\n## {heading}\n\n{remark}\n\n");
        page.push_str("| Name | Type | Labels | Meaning |\n|---|---|---|---|\n");
        for entry in entries.iter().filter(|entry| entry.name.starts_with(prefix)) {
            page.push_str(&row(entry));
        }
    }
    page
}

fn row(entry: &Entry) -> String {
    let labels: Vec<String> = entry.labels.iter().map(|label| format!("`{label}`")).collect();
    let Entry { name, kind, help, .. } = entry;
    format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn every_metric_belongs_to_a_group() {
        for entry in &Metrics::new().inventory {
            assert!(
                GROUPS.iter().any(|(prefix, _, _)| entry.name.starts_with(prefix)),
                "{} would not be listed",
                entry.name
            );
        }
    }
}
