//! The load generator: it speaks only the wire, so it measures any server with this contract.
//!
//! ```text
//! plan         what to run, against whom
//!   users        the keys that sign, the same for every server of a run
//!   jobs         requests, made and signed ahead of each round
//!   connections  one HTTP/2 connection a few callers, as phones have
//!   calls        rounds of unary calls: closed loop, or open loop by pace
//!   listen       streams, writes beside them, and what became of each notification
//!     ledger       pure accounting of a listen run
//!   tally        outcomes and latencies
//!   usage        CPU and memory of the processes under test
//!   report       the result as JSON; table and chart make it readable
//! ```

use std::{fmt, sync::Arc};

mod calls;
pub mod chart;
mod connections;
mod jobs;
mod ledger;
mod listen;
mod pace;
pub mod plan;
pub mod report;
pub mod table;
mod tally;
#[cfg(test)]
mod tests;
mod usage;
mod users;

use plan::{Plan, Workload};
use report::Report;

/// Is told how a run goes on.
pub trait Progress: fmt::Debug + Send + Sync {
    /// A phase begins; it lasts about `seconds`, where that is known.
    fn phase(&self, name: &str, seconds: Option<f64>);

    /// The phase has come to `seconds`; `summary` tells what the last moments were like.
    fn advance(&self, seconds: f64, summary: &str);
}

/// Runs a plan to its end.
///
/// # Errors
/// If a server cannot be reached, records that the run needs cannot be stored, or a process named
/// for its usage is not there. Failed calls are no error: they are counted in the report.
pub async fn run(plan: Plan, progress: Arc<dyn Progress>) -> anyhow::Result<Report> {
    let outcome = match &plan.workload {
        Workload::Calls(mix) => calls::run(&plan, mix, progress.as_ref()).await?,
        Workload::Listen(listen) => listen::run(&plan, listen, progress.as_ref()).await?,
    };
    Ok(Report::new(&plan, outcome))
}
