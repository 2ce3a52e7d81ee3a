//! What the client commands print: columns for people, one JSON object a line for programs.

use data_encoding::BASE64;
use serde::Serialize;

use crate::{
    cli::output,
    client::{Notification, Record, WatchEvent},
};

/// Characters of data shown in a column, unless all are asked for.
const SHOWN_DATA_CHARACTERS: usize = 60;

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    /// One JSON object a line.
    pub(super) json: bool,
    /// All of the data, however long.
    pub(super) full: bool,
}

#[derive(Serialize)]
struct JsonRecord<'a> {
    event: &'static str,
    id: &'a str,
    revision: u64,
    schema_version: &'a str,
    /// Base 64, as protobuf's own JSON has it.
    data: String,
}

fn json_record(record: &Record) -> serde_json::Result<String> {
    serde_json::to_string(&JsonRecord {
        event: "record",
        id: &record.id,
        revision: record.revision,
        schema_version: &record.schema_version,
        data: BASE64.encode(&record.data),
    })
}

/// Records, a line each; `heading` puts the names of the columns first.
pub(super) fn records(
    records: &[Record],
    style: Style,
    heading: bool,
) -> serde_json::Result<String> {
    if style.json {
        return records.iter().map(|record| Ok(json_record(record)? + "\n")).collect();
    }
    let mut lines = Vec::with_capacity(records.len() + 1);
    if heading {
        lines.push(["REVISION", "ID", "SCHEMA", "BYTES", "DATA"].map(str::to_owned).to_vec());
    }
    lines.extend(records.iter().map(|record| {
        vec![
            record.revision.to_string(),
            output::printable(&record.id).into_owned(),
            output::printable(&record.schema_version).into_owned(),
            record.data.len().to_string(),
            output::data(&record.data, (!style.full).then_some(SHOWN_DATA_CHARACTERS)),
        ]
    }));
    Ok(output::columns(&lines, &[0, 3]))
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum JsonEvent<'a> {
    Live,
    Changed { client_id: Option<&'a str>, revision: u64 },
    Lost { error: String, retry_in_ms: u128 },
}

/// One event of a watch, as a line.
pub(super) fn event(event: &WatchEvent, style: Style) -> serde_json::Result<String> {
    let line = match (event, style.json) {
        (WatchEvent::Live, true) => serde_json::to_string(&JsonEvent::Live)?,
        (WatchEvent::Live, false) => "live".to_owned(),
        (WatchEvent::Changed(notification), true) => serde_json::to_string(&JsonEvent::Changed {
            client_id: notification.client_id.as_deref(),
            revision: notification.revision,
        })?,
        (WatchEvent::Changed(notification), false) => changed(notification),
        (WatchEvent::Lost { error, retry_in }, true) => serde_json::to_string(&JsonEvent::Lost {
            error: error.to_string(),
            retry_in_ms: retry_in.as_millis(),
        })?,
        (WatchEvent::Lost { error, retry_in }, false) => {
            let error = error.to_string();
            let error = output::printable(&error);
            format!("lost: {error}; again in {:.1} s", retry_in.as_secs_f64())
        }
    };
    Ok(line + "\n")
}

fn changed(notification: &Notification) -> String {
    let revision = match notification.revision {
        0 => String::new(),
        revision => format!(" up to revision {revision}"),
    };
    let client = notification.client_id.as_deref().map(output::printable);
    let client = client.map(|name| format!(" by {name}")).unwrap_or_default();
    format!("changed{revision}{client}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::Error;

    const PLAIN: Style = Style { json: false, full: false };
    const JSON: Style = Style { json: true, full: false };

    fn record(id: &str, revision: u64, data: &'static [u8]) -> Record {
        let schema_version = "1.0.0".to_owned();
        Record { id: id.to_owned(), revision, schema_version, data: data.into() }
    }

    #[test]
    fn records_stand_in_columns() {
        let two = [record("note-1", 7, b"hello"), record("n\x07", 12, &[0xff])];
        let text = records(&two, PLAIN, true).unwrap();
        assert_eq!(
            text,
            "REVISION  ID      SCHEMA  BYTES  DATA\n       \
             7  note-1  1.0.0       5  hello\n      \
             12  n\\u{7}  1.0.0       1  0xff (1 bytes)\n"
        );
    }

    #[test]
    fn records_are_json_lines_for_programs() {
        let text = records(&[record("a\"b", 7, b"hello")], JSON, true).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["id"], "a\"b");
        assert_eq!(value["revision"], 7);
        assert_eq!(value["data"], "aGVsbG8=");
    }

    #[test]
    fn events_are_lines() {
        let changed = Notification { client_id: Some("phone".to_owned()), revision: 9 };
        let changed = WatchEvent::Changed(changed);
        assert_eq!(event(&changed, PLAIN).unwrap(), "changed up to revision 9 by phone\n");
        let merged = WatchEvent::Changed(Notification::default());
        assert_eq!(event(&merged, PLAIN).unwrap(), "changed\n");
        let error = Error::from(tonic::Status::unavailable("drain"));
        let lost = WatchEvent::Lost { error, retry_in: Duration::from_millis(1_500) };
        assert_eq!(event(&lost, PLAIN).unwrap(), "lost: Unavailable: drain; again in 1.5 s\n");
        let value: serde_json::Value = serde_json::from_str(&event(&lost, JSON).unwrap()).unwrap();
        assert_eq!(value["event"], "lost");
        assert_eq!(value["retry_in_ms"], 1_500);
        assert_eq!(event(&WatchEvent::Live, JSON).unwrap(), "{\"event\":\"live\"}\n");
    }
}
