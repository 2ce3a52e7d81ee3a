//! Compares the counters that quotas are checked against with what users do hold.

use super::Finding;
use crate::{
    cli::open,
    config::StoreConfig,
    store::{
        StoreError,
        transfer::{Transfer, UserCounters},
    },
};

const CHECK: &str = "quota counters";
/// Users counted by one statement.
const PAGE_USERS: usize = 500;
/// Users named whose counters are wrong.
const MAX_NAMED: usize = 5;

/// Counts everything anew. Other processes may go on writing.
pub(super) async fn finding(config: &StoreConfig) -> Finding {
    let database = match open::database(config).await {
        Ok(database) => database,
        Err(error) => return Finding::fail(CHECK, format!("{error:#}")),
    };
    let counted = count(database.transfer.as_ref()).await;
    database.close().await;
    match counted {
        Ok(count) => count.finding(),
        Err(error) => Finding::fail(CHECK, error.to_string()),
    }
}

#[derive(Debug, Default)]
struct Count {
    users: u64,
    wrong: u64,
    named: Vec<UserCounters>,
}

async fn count(store: &dyn Transfer) -> Result<Count, StoreError> {
    let mut count = Count::default();
    let mut last = None;
    loop {
        let page = store.counters(last, PAGE_USERS).await?;
        let Some(end) = page.last() else { return Ok(count) };
        last = Some(end.user);
        for counters in page {
            count.users += 1;
            if counters.kept != counters.real {
                count.wrong += 1;
                if count.named.len() < MAX_NAMED {
                    count.named.push(counters);
                }
            }
        }
    }
}

impl Count {
    fn finding(&self) -> Finding {
        let Self { users, wrong, named } = self;
        if *wrong == 0 {
            return Finding::ok(CHECK, format!("right for all {users} users"));
        }
        let named = named.iter().map(|UserCounters { user, kept, real }| {
            format!(
                "{user} is counted with {} records of {} bytes and holds {} of {}",
                kept.records, kept.bytes, real.records, real.bytes
            )
        });
        let named = named.collect::<Vec<_>>().join("; ");
        Finding::fail(CHECK, format!("wrong for {wrong} of {users} users: {named}"))
    }
}
