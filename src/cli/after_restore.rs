//! Puts a restored database ahead of everything that devices have seen.

use std::io::Write as _;

use anyhow::{Context as _, bail};
use clap::Args;

use super::{Exit, block_on, open};
use crate::{
    config::{ConfigErrors, EngineConfig, PostgresConfig, StoreArgs, StoreConfig},
    limits::{DEFAULT_LIFT_REVISIONS, MAX_LIFT_REVISIONS},
    store::transfer::Lifted,
};

pub(super) const AFTER_HELP: &str = "\
Examples:
  data-sync after-restore                 after any restore, before apps reach the service
  data-sync after-restore --by 50000000   where one user may have written more since the backup
  data-sync after-restore --dry-run       show what would be done

Devices remember the newest revision they have seen and ask only for what is newer. A backup is
older than that: without this command every write after the restore would hide below what devices
remember, and a device could never again change a record that it knows at a lost revision. The
command gives all records new revisions above all lost ones, in one transaction, and lets new
users and fencing tokens go on higher too. Every device then lists everything once and goes on.

The same is due after a failover to a standby that lagged behind. Doing it once too often is safe:
devices list everything once more. With SQLite stop the service first.

Exit status:
  0   done
  1   failure, and nothing was changed; the reason is on standard error
  64  a command line or configuration that cannot be used; every problem is listed";

#[derive(Debug, Args)]
pub(super) struct AfterRestoreArgs {
    /// Revisions to skip for each user: at least as many as one user may have written after the
    /// backup was made.
    #[arg(long, value_name = "REVISIONS", default_value_t = DEFAULT_LIFT_REVISIONS)]
    by: u64,

    /// Show what would be done and change nothing.
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    store: StoreArgs,
}

impl AfterRestoreArgs {
    /// Checks the settings; all problems are reported together.
    fn resolve(&self) -> Result<StoreConfig, ConfigErrors> {
        let store = self.store.resolve();
        let by = match self.by {
            1..=MAX_LIFT_REVISIONS => None,
            _ => Some(format!("--by: from 1 to {MAX_LIFT_REVISIONS}")),
        };
        match (store, by) {
            (Ok(store), None) => Ok(store),
            (store, by) => {
                let problems = store.err().map_or_else(Vec::new, |errors| errors.0);
                Err(ConfigErrors(problems.into_iter().chain(by).collect()))
            }
        }
    }
}

pub(super) fn run(args: &AfterRestoreArgs) -> anyhow::Result<Exit> {
    let config = args.resolve()?;
    block_on(async {
        open::log_warnings()?;
        check_schema(&config.engine).await?;
        let database = open::database(&over_direct_url(config)).await?;
        let done = if args.dry_run {
            database.transfer.totals().await.map(|totals| {
                format!(
                    "would lift {} users and {} records by {}\n",
                    totals.users, totals.records, args.by
                )
            })
        } else {
            database.transfer.lift(args.by).await.map(|lifted| describe(args.by, lifted))
        };
        database.close().await;
        write!(std::io::stdout(), "{}", done.context("nothing was lifted")?)?;
        Ok(Exit::SUCCESS)
    })
}

fn describe(by: u64, lifted: Lifted) -> String {
    format!(
        "lifted {} users and {} records by {by}\n\
         new users begin above revision {}, fencing tokens go on above {}\n\
         every device lists everything once more\n",
        lifted.users, lifted.records, lifted.head_floor, lifted.fencing_token
    )
}

/// A database that was never ours, or not yet brought to this schema, is no restored one.
async fn check_schema(engine: &EngineConfig) -> anyhow::Result<()> {
    if let EngineConfig::Sqlite(sqlite) = engine
        && !sqlite.path.exists()
    {
        bail!("{} does not exist", sqlite.path.display());
    }
    let state = open::schema_state(engine).await.context("cannot read the schema")?;
    if !state.is_ready() {
        bail!("the database does not have this program's schema: run `data-sync migrate` first");
    }
    Ok(())
}

/// Changes a table as migrations do, so it goes the same way: past any transaction pooler, with
/// the rights of whoever migrates.
fn over_direct_url(config: StoreConfig) -> StoreConfig {
    let engine = match config.engine {
        EngineConfig::Postgres(postgres) => {
            let url = postgres.direct_url.clone();
            EngineConfig::Postgres(PostgresConfig { url, ..postgres })
        }
        sqlite @ EngineConfig::Sqlite(_) => sqlite,
    };
    StoreConfig { engine, ..config }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn args(by: u64, url: Option<&str>) -> AfterRestoreArgs {
        let database_url = url.map(Secret::new);
        let store = StoreArgs { database_url, ..StoreArgs::default() };
        AfterRestoreArgs { by, dry_run: false, store }
    }

    #[test]
    fn a_lift_that_would_do_nothing_sensible_is_refused_with_all_else() {
        assert!(args(1, None).resolve().is_ok());
        assert!(args(MAX_LIFT_REVISIONS, None).resolve().is_ok());
        assert_eq!(args(0, None).resolve().unwrap_err().0.len(), 1);
        assert_eq!(
            args(MAX_LIFT_REVISIONS + 1, Some("mysql://x")).resolve().unwrap_err().0.len(),
            2
        );
    }

    #[test]
    fn the_lift_goes_past_a_pooler() {
        let mut args = args(1, Some("postgres://pooler/d"));
        args.store.listen_database_url = Some(Secret::new("postgres://direct/d"));
        let config = over_direct_url(args.resolve().unwrap());
        let EngineConfig::Postgres(postgres) = config.engine else { panic!("no postgres") };
        assert_eq!(postgres.url.expose(), "postgres://direct/d");
    }
}
