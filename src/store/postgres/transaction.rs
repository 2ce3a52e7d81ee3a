//! One transaction in one round trip: its opening, one call and its COMMIT are sent together.
//!
//! A function cannot set its own isolation, and a transaction pooler rules out named statements
//! and settings of the session; so every call travels as `BEGIN …; SET LOCAL …`, an unnamed
//! statement, `COMMIT`. All three are handed to the driver before the first answer is awaited: a
//! caller that goes away leaves no transaction open. After a failed call the COMMIT is a ROLLBACK.

use std::time::Duration;

use futures_util::future::join3;
use tokio_postgres::{
    Client, Row,
    types::{ToSql, Type},
};

use super::error::{Fault, ends_connection, is_follow_up};

/// A parameter and its type: given the type, the server is not asked for it.
pub(crate) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// How a transaction ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Committed.
    Committed(Vec<Row>),
    /// Certainly rolled back; the connection is clean.
    RolledBack(Fault),
    /// Committed or not: nobody can tell. The connection must not be used again.
    Unknown(String),
}

/// Runs one call in a transaction of its own. `begin` opens it and sets its limits.
pub(super) async fn run(
    client: &Client,
    begin: &str,
    call: &str,
    parameters: &[Parameter<'_>],
    limit: Duration,
) -> Ended {
    // Sent in this order: `join3` polls its futures once in order, and each sends at that poll.
    let all = join3(
        client.batch_execute(begin),
        client.query_typed(call, parameters),
        client.batch_execute("COMMIT"),
    );
    match tokio::time::timeout(limit, all).await {
        Ok((begun, rows, committed)) => judge(begun, rows, committed),
        Err(_elapsed) => Ended::Unknown("postgres did not answer in time".to_owned()),
    }
}

type Answer<T> = Result<T, tokio_postgres::Error>;

fn judge(begun: Answer<()>, rows: Answer<Vec<Row>>, committed: Answer<()>) -> Ended {
    match rows {
        Err(error) => {
            // An error of the statement alone ends the transaction without effect; a lost
            // connection may have taken the answer of a commit with it.
            let definite = error.as_db_error().is_some_and(|error| !ends_connection(error));
            if !definite {
                return Ended::Unknown(Fault::of(&error).into_store_error().to_string());
            }
            match begun {
                Err(cause) if is_follow_up(&error) => Ended::RolledBack(Fault::of(&cause)),
                _ => Ended::RolledBack(Fault::of(&error)),
            }
        }
        Ok(rows) => match (begun, committed) {
            (Ok(()), Ok(())) => Ended::Committed(rows),
            (_, Err(error)) => match Fault::of(&error) {
                fault @ Fault::Contended(_) => Ended::RolledBack(fault),
                fault @ Fault::Other(_) => Ended::Unknown(fault.into_store_error().to_string()),
            },
            // The call ran outside the transaction that was meant for it.
            (Err(error), Ok(())) => {
                Ended::Unknown(Fault::of(&error).into_store_error().to_string())
            }
        },
    }
}

/// The opening of a transaction at `isolation` with the given limits.
pub(super) fn begin(isolation: &str, statement: Duration, lock: Duration) -> String {
    format!(
        "BEGIN ISOLATION LEVEL {isolation}; SET LOCAL statement_timeout = {statement}; \
         SET LOCAL lock_timeout = {lock}; \
         SET LOCAL idle_in_transaction_session_timeout = {statement}",
        statement = statement.as_millis(),
        lock = lock.as_millis(),
    )
}
