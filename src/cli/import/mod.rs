//! Moves all data from one database to another.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::{Exit, block_on, open};
use crate::{
    config::{ConfigErrors, EngineConfig, Secret, SqliteConfig, StoreArgs, StoreConfig},
    store::{
        Quotas,
        migrate::LegacyState,
        transfer::{Totals, Transfer},
    },
};

mod mover;

use mover::{Moved, Mover};

pub(super) const AFTER_HELP: &str = "\
Examples:
  data-sync import --from sqlite:db/db.sqlite --to postgres://data_sync@db/data_sync
  IMPORT_TO=postgres://user:password@db/name data-sync import --from sqlite:db/db.sqlite

Stop the service on both databases first and back them up. The target gets its schema if it has
none. It must be empty, or hold an interrupted import of the same source: then users that have
arrived are skipped, so run the same command again after any failure. Nothing in the target is
ever lowered, neither a user's revision nor the fencing tokens. At the end both are compared.

Exit status:
  0   everything has arrived
  1   failure, or the databases differ; the reason is on standard error
  64  a command line or settings that cannot be used; every problem is listed";

/// Time between two lines about progress where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two pictures of the bar on a terminal.
const BAR_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// Database to read: sqlite:PATH or postgres://….
    #[arg(long, env = "IMPORT_FROM", value_name = "DATABASE", hide_env_values = true)]
    from: Option<Secret>,

    /// Database to write: sqlite:PATH or postgres://….
    #[arg(long, env = "IMPORT_TO", value_name = "DATABASE", hide_env_values = true)]
    to: Option<Secret>,

    /// PEM file of the authorities that sign the Postgres server's certificate
    /// [default: the public ones].
    #[arg(long, env = "DATABASE_CA_FILE", value_name = "PATH")]
    database_ca_file: Option<String>,
}

impl ImportArgs {
    /// Checks both places; all problems are reported together.
    fn resolve(&self) -> Result<(StoreConfig, StoreConfig), ConfigErrors> {
        let from = self.locate("--from (IMPORT_FROM)", self.from.as_ref());
        let to = self.locate("--to (IMPORT_TO)", self.to.as_ref());
        match (from, to) {
            (Ok(from), Ok(to)) if from == to => {
                Err(ConfigErrors(vec!["--from and --to name the same database".to_owned()]))
            }
            (Ok(from), Ok(to)) => Ok((from, to)),
            (from, to) => {
                let problems = [from.err(), to.err()].into_iter().flatten();
                Err(ConfigErrors(problems.flat_map(|errors| errors.0).collect()))
            }
        }
    }

    fn locate(&self, name: &str, place: Option<&Secret>) -> Result<StoreConfig, ConfigErrors> {
        let place = place.map(|place| place.expose().trim()).unwrap_or_default();
        if let Some(path) = place.strip_prefix("sqlite:").filter(|path| !path.is_empty()) {
            let path = PathBuf::from(path);
            let path = if path.is_dir() { path.join("db.sqlite") } else { path };
            let engine = EngineConfig::Sqlite(SqliteConfig { path });
            return Ok(StoreConfig { engine, quotas: Quotas::default() });
        }
        if place.starts_with("postgres://") || place.starts_with("postgresql://") {
            let args = StoreArgs {
                database_url: Some(Secret::new(place)),
                database_ca_file: self.database_ca_file.clone(),
                ..StoreArgs::default()
            };
            return Ok(StoreConfig { quotas: Quotas::default(), ..args.resolve()? });
        }
        Err(ConfigErrors(vec![format!("{name}: write sqlite:PATH or postgres://…")]))
    }
}

pub(super) fn run(args: &ImportArgs) -> anyhow::Result<Exit> {
    let (from, to) = args.resolve()?;
    block_on(async {
        open::log_warnings()?;
        prepare(&from, &to).await?;
        let source = open::database(&from).await.context("cannot open the source")?;
        let target = open::database(&to).await.context("cannot open the target")?;
        let moved = move_all(source.transfer.as_ref(), target.transfer.as_ref()).await;
        source.close().await;
        target.close().await;
        let moved = moved?;
        let mut out = io::stdout();
        writeln!(
            out,
            "moved {} users ({} had arrived before), {} records, {} bytes, {} locks",
            moved.users, moved.skipped_users, moved.records, moved.bytes, moved.locks
        )?;
        writeln!(out, "source and target hold the same")?;
        Ok(Exit::SUCCESS)
    })
}

async fn move_all(source: &dyn Transfer, target: &dyn Transfer) -> anyhow::Result<Moved> {
    let expected = source.totals().await.context("cannot count the source")?;
    let mut progress = Progress::start(expected)?;
    let moved = Mover { source, target }.run(&mut |moved| progress.show(moved)).await;
    progress.end();
    moved
}

/// Makes sure that the source can be read and the target has its schema.
async fn prepare(from: &StoreConfig, to: &StoreConfig) -> anyhow::Result<()> {
    if let EngineConfig::Sqlite(sqlite) = &from.engine
        && !sqlite.path.exists()
    {
        bail!("the source {} does not exist", sqlite.path.display());
    }
    let state = open::schema_state(&from.engine).await.context("cannot read the source")?;
    if !state.is_ready() {
        bail!(
            "the source does not have this program's schema; run `data-sync migrate` on it first"
        );
    }
    let state = open::schema_state(&to.engine).await.context("cannot read the target")?;
    if state.legacy == LegacyState::Unadopted {
        bail!("the target holds data of the Go server; databases are not merged");
    }
    open::migrate(&to.engine, false).await.context("cannot prepare the target")?;
    Ok(())
}

/// Shows how far an import is: a bar on a terminal, a line now and then elsewhere.
struct Progress {
    expected: Totals,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Progress {
    fn start(expected: Totals) -> anyhow::Result<Self> {
        let bar = if io::stderr().is_terminal() {
            let bar = ProgressBar::new(expected.users);
            let template = "{bar:30} {pos}/{len} users, {msg} [{elapsed}, {eta} left]";
            bar.set_style(ProgressStyle::with_template(template)?);
            bar.enable_steady_tick(BAR_INTERVAL);
            Some(bar)
        } else {
            let Totals { users, records, bytes, locks } = expected;
            writeln!(
                io::stderr(),
                "the source holds {users} users, {records} records, {bytes} bytes, {locks} locks"
            )?;
            None
        };
        Ok(Self { expected, bar, last_line: Instant::now() })
    }

    fn show(&mut self, moved: &Moved) {
        let done = moved.users + moved.skipped_users;
        let records = format!("{} records", moved.records);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(records);
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            // Progress is a courtesy: losing a line must not end the import.
            let _ = writeln!(io::stderr(), "{done} of {} users, {records}", self.expected.users);
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(from: &str, to: &str) -> ImportArgs {
        let place = |text: &str| (!text.is_empty()).then(|| Secret::new(text));
        ImportArgs { from: place(from), to: place(to), database_ca_file: None }
    }

    #[test]
    fn both_places_are_checked_at_once() {
        assert_eq!(args("", "mysql://x").resolve().unwrap_err().0.len(), 2);
        assert_eq!(args("sqlite:", "sqlite:x").resolve().unwrap_err().0.len(), 1);
    }

    #[test]
    fn a_database_is_not_moved_onto_itself() {
        assert!(args("sqlite:db.sqlite", "sqlite:db.sqlite").resolve().is_err());
    }

    #[test]
    fn sqlite_and_postgres_are_told_apart() {
        let (from, to) = args("sqlite:db.sqlite", "postgres://u:p@h/d").resolve().unwrap();
        assert_eq!(open::engine_name(&from.engine), "sqlite");
        assert_eq!(open::engine_name(&to.engine), "postgres");
    }
}
