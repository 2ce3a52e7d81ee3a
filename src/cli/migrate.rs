//! Brings a database to this program's schema, or shows where it stands.

use std::io::Write as _;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{Exit, block_on, open};
use crate::{
    config::{EngineConfig, StoreArgs},
    store::migrate::{LegacyState, SchemaState},
};

pub(super) const AFTER_HELP: &str = "\
Examples:
  data-sync migrate                    apply what is missing
  data-sync migrate up --dry-run       show what would be applied
  data-sync migrate status --json      where the database stands, for scripts
  data-sync migrate --adopt            also take over the data of the Go server

Any number of processes may migrate at once: one does, the others wait. A release before this one
keeps serving the new schema. Before --adopt stop the Go server and back up its database; its
tables are kept under other names. The Go server's SQLite file needs no --adopt: a copy of it is
kept beside it.

Exit status:
  0   the database serves this program (status), or does now (up)
  1   it does not (status), or could not be brought to (up)
  64  a command line or configuration that cannot be used; every problem is listed";

#[derive(Debug, Args)]
pub(super) struct MigrateArgs {
    /// What to do.
    #[arg(value_enum, default_value = "up")]
    action: Action,

    /// Take over the data of the Go server, if the database is one of its.
    #[arg(long)]
    adopt: bool,

    /// Show what would be done and change nothing.
    #[arg(long)]
    dry_run: bool,

    /// Write the state as JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Apply missing migrations.
    Up,
    /// Show where the database stands.
    Status,
}

pub(super) fn run(args: &MigrateArgs) -> anyhow::Result<Exit> {
    let engine = args.store.resolve()?.engine;
    block_on(async {
        open::log_warnings()?;
        let state = open::schema_state(&engine).await.context("cannot read the schema")?;
        match args.action {
            Action::Status => {
                show(&engine, &state, args.json)?;
                Ok(if state.is_ready() { Exit::SUCCESS } else { Exit::FAILURE })
            }
            Action::Up if args.dry_run => {
                write!(std::io::stdout(), "{}", plan(&engine, &state, args.adopt))?;
                Ok(Exit::SUCCESS)
            }
            Action::Up => up(&engine, args).await,
        }
    })
}

async fn up(engine: &EngineConfig, args: &MigrateArgs) -> anyhow::Result<Exit> {
    let adopted = open::migrate(engine, args.adopt).await?;
    if let Some(report) = adopted
        && !args.json
    {
        writeln!(std::io::stdout(), "{report}")?;
    }
    let state = open::schema_state(engine).await.context("cannot read the schema afterwards")?;
    show(engine, &state, args.json)?;
    Ok(Exit::SUCCESS)
}

/// What `up` would do.
fn plan(engine: &EngineConfig, state: &SchemaState, adopt: bool) -> String {
    let mut text = match state.latest.saturating_sub(state.applied) {
        0 => "no migration is missing\n".to_owned(),
        1 => format!("would apply migration {}\n", state.latest),
        _ => format!("would apply migrations {} to {}\n", state.applied + 1, state.latest),
    };
    // In SQLite a copy of the file is made first, so nobody is asked.
    let adopts = adopt || matches!(engine, EngineConfig::Sqlite(_));
    text.push_str(match (state.legacy, adopts) {
        (LegacyState::Unadopted, true) => "would take over the data of the Go server\n",
        (LegacyState::Unadopted, false) => {
            "would refuse: the data of the Go server is not taken over; add --adopt\n"
        }
        (LegacyState::None | LegacyState::Adopted, _) => "",
    });
    text
}

fn show(engine: &EngineConfig, state: &SchemaState, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    if json {
        let status = Status {
            engine: open::engine_name(engine),
            applied: state.applied,
            latest: state.latest,
            ready: state.is_ready(),
            go_data: go_data(state.legacy),
        };
        writeln!(out, "{}", serde_json::to_string(&status)?)?;
    } else {
        write!(out, "{}", describe(engine, state))?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Status {
    engine: &'static str,
    applied: u32,
    latest: u32,
    ready: bool,
    go_data: &'static str,
}

const fn go_data(legacy: LegacyState) -> &'static str {
    match legacy {
        LegacyState::None => "none",
        LegacyState::Unadopted => "unadopted",
        LegacyState::Adopted => "adopted",
    }
}

fn describe(engine: &EngineConfig, state: &SchemaState) -> String {
    let schema = if state.applied > state.latest {
        format!("{}, newer than this program's {}", state.applied, state.latest)
    } else {
        format!("{} of {} migrations applied", state.applied, state.latest)
    };
    let next = match (state.legacy, engine) {
        (LegacyState::Unadopted, EngineConfig::Postgres(_)) => {
            "not taken over; stop the Go server, back up, then run `data-sync migrate --adopt`"
        }
        (LegacyState::Unadopted, EngineConfig::Sqlite(_)) => {
            "not taken over; stop the Go server, then run `data-sync migrate` or serve"
        }
        (LegacyState::Adopted, _) => "taken over",
        (LegacyState::None, _) => "none",
    };
    let engine = open::engine_name(engine);
    let ready = if state.is_ready() { "ready" } else { "not ready" };
    format!("database   {engine}, {ready}\nschema     {schema}\ngo data    {next}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    const fn state(applied: u32, legacy: LegacyState) -> SchemaState {
        SchemaState { applied, latest: 3, legacy }
    }

    fn sqlite() -> EngineConfig {
        StoreArgs::default().resolve().unwrap().engine
    }

    fn postgres() -> EngineConfig {
        let database_url = Some(Secret::new("postgres://host/name"));
        StoreArgs { database_url, ..StoreArgs::default() }.resolve().unwrap().engine
    }

    #[test]
    fn the_plan_says_what_up_would_do() {
        let plan_for = |applied| plan(&postgres(), &state(applied, LegacyState::None), false);
        assert_eq!(plan_for(0), "would apply migrations 1 to 3\n");
        assert_eq!(plan_for(2), "would apply migration 3\n");
        assert_eq!(plan_for(4), "no migration is missing\n");
    }

    #[test]
    fn only_postgres_is_asked_before_the_go_servers_data_is_taken_over() {
        let state = state(0, LegacyState::Unadopted);
        assert!(plan(&postgres(), &state, false).contains("would refuse"));
        assert!(plan(&postgres(), &state, true).contains("would take over"));
        assert!(plan(&sqlite(), &state, false).contains("would take over"));
    }

    #[test]
    fn the_state_names_the_remedy() {
        let text = describe(&postgres(), &state(0, LegacyState::Unadopted));
        assert!(text.contains("not ready") && text.contains("migrate --adopt"), "{text}");
        let text = describe(&sqlite(), &state(5, LegacyState::Adopted));
        assert!(text.contains("ready") && text.contains("newer"), "{text}");
    }
}
