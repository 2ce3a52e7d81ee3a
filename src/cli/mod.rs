//! The command line: what it understands, and which command runs.

use std::{ffi::OsString, future::Future, process::ExitCode};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};

use crate::config::ServeArgs;

mod after_restore;
#[cfg(feature = "bench")]
mod bench;
mod check;
mod client;
mod completions;
mod docs;
mod exit;
mod import;
mod migrate;
mod open;
mod output;
mod probe;
mod serve;
#[cfg(test)]
mod tests;

use exit::Exit;

/// What is running: version, source revision, platform.
pub const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("DATA_SYNC_REVISION"),
    ", ",
    env!("DATA_SYNC_TARGET"),
    ")"
);

const ABOUT: &str = "Keeps small encrypted records of one person in step across devices";

const LONG_ABOUT: &str = "\
Keeps small encrypted records of one person in step across devices.

Apps call it over gRPC (port 8080) or gRPC-Web (port 8081). A user is the key that signs the \
requests; the server stores opaque bytes, numbers each accepted write, refuses writes made on a \
stale revision, tells the user's other devices at once, and lends named locks. Without any \
setting it serves from an SQLite file in ./db; with DATABASE_URL any number of replicas serve \
from one Postgres.

Every setting below is a flag or an environment variable; the flag wins, and an empty variable \
counts as unset. Without a command, `serve` runs.";

const AFTER_HELP: &str = "\
Examples:
  data-sync                                    serve from ./db/db.sqlite
  DATABASE_URL=postgres://… data-sync          serve from Postgres
  data-sync check                              find out what would go wrong, before it does
  data-sync migrate status                     show where the database stands
  data-sync probe                              ask a running server whether it is ready
  data-sync client keygen                      make a user to try the service with
  data-sync client set note-1 'hello'          store a record
  data-sync client watch                       see changes as they happen
  data-sync bench --op set                     measure a server
  data-sync import --from sqlite:db/db.sqlite --to postgres://…
  data-sync after-restore                      lift revisions once a backup is restored

Exit status:
  0   success
  1   failure while running; the reason is on standard error
  64  a command line or configuration that cannot be used; every problem is listed
See `data-sync COMMAND --help` for the statuses of single commands.";

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "data-sync",
    version = VERSION,
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_long_help = AFTER_HELP,
    args_conflicts_with_subcommands = true,
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    serve: Box<ServeArgs>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service (the default).
    #[command(after_long_help = serve::AFTER_HELP)]
    Serve(Box<ServeArgs>),
    /// Bring the database to this program's schema, or show where it stands.
    #[command(after_long_help = migrate::AFTER_HELP)]
    Migrate(migrate::MigrateArgs),
    /// Check configuration, database, certificates and clocks without serving.
    #[command(after_long_help = check::AFTER_HELP)]
    Check(check::CheckArgs),
    /// Ask a running server for its health, for containers and scripts.
    #[command(after_long_help = probe::AFTER_HELP)]
    Probe(probe::ProbeArgs),
    /// Use the service as an app does: set, list, watch, lock.
    #[command(after_long_help = client::AFTER_HELP)]
    Client(client::ClientCommand),
    /// Measure a server over the wire: throughput, latency, CPU, notifications.
    #[cfg(feature = "bench")]
    #[command(after_long_help = bench::AFTER_HELP)]
    Bench(bench::BenchCommand),
    /// Move all data from one database to another.
    #[command(after_long_help = import::AFTER_HELP)]
    Import(import::ImportArgs),
    /// Put a restored database ahead of everything that devices have seen.
    #[command(after_long_help = after_restore::AFTER_HELP)]
    AfterRestore(after_restore::AfterRestoreArgs),
    /// Print completions for a shell.
    #[command(after_long_help = completions::AFTER_HELP)]
    Completions(completions::CompletionsArgs),
    /// Print reference pages in Markdown.
    Docs(docs::DocsArgs),
}

/// Runs the command that this process was started with.
#[must_use]
pub fn main() -> ExitCode {
    run(std::env::args_os()).into()
}

fn run(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    match Cli::try_parse_from(arguments) {
        Ok(cli) => cli.run().unwrap_or_else(|error| exit::report(&error)),
        Err(answer) => {
            // Nobody is left to tell when the terminal is gone.
            let _ = answer.print();
            exit_of(&answer)
        }
    }
}

/// Help and the version are answers like any other; all else is a fault of the command line.
fn exit_of(answer: &clap::Error) -> Exit {
    match answer.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::SUCCESS,
        _ => Exit::USAGE,
    }
}

impl Cli {
    fn run(self) -> anyhow::Result<Exit> {
        match self.command {
            None => serve::run(&self.serve),
            Some(Command::Serve(args)) => serve::run(&args),
            Some(Command::Migrate(args)) => migrate::run(&args),
            Some(Command::Check(args)) => check::run(&args),
            Some(Command::Probe(args)) => probe::run(&args),
            Some(Command::Client(command)) => client::run(&command),
            #[cfg(feature = "bench")]
            Some(Command::Bench(command)) => bench::run(&command),
            Some(Command::Import(args)) => import::run(&args),
            Some(Command::AfterRestore(args)) => after_restore::run(&args),
            Some(Command::Completions(args)) => completions::run(&args, &mut Self::command()),
            Some(Command::Docs(args)) => docs::run(&args),
        }
    }
}

/// Runs a small command on this thread alone.
fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(command)
}
