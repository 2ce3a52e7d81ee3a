//! What a run does: the operations, how fast, for whom and against whom.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// A unary call whose cost is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// SetRecord of a record that was not there.
    Set,
    /// SetRecord of the caller's own record, at its current revision.
    Update,
    /// ListChanges from the beginning.
    ListAll,
    /// ListChanges when nothing is new, the most frequent call of an idle app.
    ListNew,
    /// SetLock: each caller takes and releases a lock of its own in turn.
    SetLock,
    /// GetLock.
    GetLock,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 6] =
        [Self::Set, Self::Update, Self::ListAll, Self::ListNew, Self::SetLock, Self::GetLock];

    /// The name on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Update => "update",
            Self::ListAll => "list-all",
            Self::ListNew => "list-new",
            Self::SetLock => "set-lock",
            Self::GetLock => "get-lock",
        }
    }

    /// Whether the call reads records, so that there should be some.
    #[must_use]
    pub const fn reads_records(self) -> bool {
        matches!(self, Self::ListAll | Self::ListNew)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Operation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|operation| operation.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{text:?} is no operation; there are {names}, mixed and listen")
        })
    }
}

/// Operations and how often each comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mix(Vec<(Operation, u32)>);

impl Mix {
    /// What an app does in a day, roughly: it mostly asks whether anything is new.
    #[must_use]
    pub fn usual() -> Self {
        Self(vec![
            (Operation::Set, 30),
            (Operation::ListNew, 50),
            (Operation::GetLock, 10),
            (Operation::SetLock, 10),
        ])
    }

    /// The operations with their weights.
    #[must_use]
    pub fn weights(&self) -> &[(Operation, u32)] {
        &self.0
    }

    /// The sum of all weights, at least 1.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.0.iter().map(|(_, weight)| weight).sum()
    }

    /// The operation at `point`, which counts up to [`Self::total`].
    #[must_use]
    pub fn at(&self, point: u32) -> Operation {
        let mut passed = 0;
        for &(operation, weight) in &self.0 {
            passed += weight;
            if point < passed {
                return operation;
            }
        }
        // A mix has at least one operation; beyond the last weight the last one holds on.
        self.0.last().map_or(Operation::Set, |&(operation, _)| operation)
    }

    /// The share of `operation` in all calls, from 0 to 1.
    #[must_use]
    pub fn share(&self, operation: Operation) -> f64 {
        let weight: u32 =
            self.0.iter().filter(|(other, _)| *other == operation).map(|(_, weight)| weight).sum();
        f64::from(weight) / f64::from(self.total())
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [(operation, _)] = self.0.as_slice() {
            return operation.fmt(f);
        }
        f.write_str("mixed=")?;
        for (index, (operation, weight)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{operation}:{weight}")?;
        }
        Ok(())
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "mixed" {
            return Ok(Self::usual());
        }
        let Some(list) = text.strip_prefix("mixed=") else {
            return Ok(Self(vec![(text.parse()?, 1)]));
        };
        let mut weights = Vec::new();
        for part in list.split(',') {
            let (name, weight) =
                part.split_once(':').ok_or_else(|| format!("{part:?} is not OPERATION:WEIGHT"))?;
            let operation: Operation = name.trim().parse()?;
            let weight: u16 = weight
                .trim()
                .parse()
                .ok()
                .filter(|weight| *weight > 0)
                .ok_or_else(|| format!("{weight:?} is no weight; it counts from 1 to 65535"))?;
            if weights.iter().any(|(other, _)| *other == operation) {
                return Err(format!("{operation} comes twice"));
            }
            weights.push((operation, u32::from(weight)));
        }
        Ok(Self(weights))
    }
}

/// What is measured.
#[derive(Debug, Clone, PartialEq)]
pub enum Workload {
    /// Unary calls.
    Calls(Mix),
    /// Streams that hear of writes.
    Listen(ListenPlan),
}

/// A run of streams with writes beside them.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenPlan {
    /// Open streams, spread evenly over the users.
    pub streams: usize,
    /// Writes a second, spread evenly over the users; 0 measures idle streams.
    pub writes_per_second: f64,
    /// A stream is closed and opened again by its client after about this long.
    pub stream_life: Option<Duration>,
    /// How long to wait after the last write for what is still on its way.
    pub grace: Duration,
}

/// How calls follow each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// So many callers, each with one call at a time: finds the throughput.
    Closed {
        /// Callers.
        concurrency: usize,
    },
    /// So many calls a second whatever the answers do; latency counts from the moment a call was
    /// due, so a server that stalls cannot hide it.
    Open {
        /// Calls a second.
        per_second: f64,
        /// Calls that may run at once before further ones wait, counted as latency.
        in_flight: usize,
    },
}

impl Load {
    /// Calls that may run at once.
    #[must_use]
    pub const fn in_flight(self) -> usize {
        match self {
            Self::Closed { concurrency } => concurrency,
            Self::Open { in_flight, .. } => in_flight,
        }
    }
}

/// One server of a run: one or more replicas that share their data.
#[derive(Clone, PartialEq)]
pub struct Side {
    /// How reports name it.
    pub name: String,
    /// URLs of its replicas, used in turn.
    pub targets: Vec<String>,
    /// URLs of the replicas that the writes beside streams go to; empty for the same as streams.
    pub write_targets: Vec<String>,
    /// Calls and streams that share one connection.
    pub streams_per_connection: usize,
    /// Processes of the server, for their CPU time and memory.
    pub server_pids: Vec<i32>,
    /// The database's main process; its children count with it.
    pub database_pid: Option<i32>,
    /// Sent as bearer token with each call.
    pub api_key: Option<String>,
}

impl fmt::Debug for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Side")
            .field("name", &self.name)
            .field("targets", &self.targets)
            .finish_non_exhaustive()
    }
}

/// Everything about a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The servers, measured in turn.
    pub sides: Vec<Side>,
    /// What is measured.
    pub workload: Workload,
    /// How calls follow each other; a listen run has its own rate.
    pub load: Load,
    /// Users who call.
    pub users: usize,
    /// Users whom the store was given before, where that was counted; noted in the report.
    pub stored_users: Option<usize>,
    /// Records each user has before the run begins.
    pub records_per_user: usize,
    /// Bytes of data of each record.
    pub record_bytes: usize,
    /// Time before anything is counted, for each server.
    pub warm_up: Duration,
    /// Time that is counted, for each server.
    pub duration: Duration,
    /// Time of one round; between rounds the next requests are signed and the servers take turns.
    pub slice: Duration,
    /// Longest wait for one answer.
    pub timeout: Duration,
    /// Makes the users' keys and the order of calls; the same seed calls as the same users.
    pub seed: u64,
    /// The run's title in tables and charts.
    pub title: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_reads_back_as_it_was_written() {
        for text in ["set", "list-new", "mixed=set:30,list-new:50,get-lock:20"] {
            assert_eq!(text.parse::<Mix>().unwrap().to_string(), text);
        }
        assert_eq!("mixed".parse::<Mix>().unwrap(), Mix::usual());
    }

    #[test]
    fn a_mix_gives_each_operation_its_share() {
        let mix: Mix = "mixed=set:3,list-new:5".parse().unwrap();
        let sets = (0..mix.total()).filter(|&point| mix.at(point) == Operation::Set).count();
        assert_eq!((mix.total(), sets), (8, 3));
        assert!((mix.share(Operation::ListNew) - 0.625).abs() < 1e-9);
        assert!(mix.share(Operation::GetLock).abs() < 1e-9);
    }

    #[test]
    fn a_mix_that_makes_no_sense_is_refused_with_a_reason() {
        for (text, reason) in [
            ("sett", "is no operation"),
            ("mixed=", "is not OPERATION:WEIGHT"),
            ("mixed=set", "is not OPERATION:WEIGHT"),
            ("mixed=set:0", "is no weight"),
            ("mixed=set:1,set:2", "comes twice"),
        ] {
            let error = text.parse::<Mix>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
