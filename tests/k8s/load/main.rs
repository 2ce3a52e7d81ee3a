//! A steady load of many users that remembers every acknowledged write and every change told.
//!
//! Each user writes from one device and watches from another, over connections of their own.
//! `phase NAME` in the same container tells a running load what happens to the service now, so
//! that it counts apart; `phase stop` ends it. At the end each user's second device must have
//! caught up by what it was told alone, and a fresh one must find every acknowledged write.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tokio::task::JoinSet;

mod board;
mod user;

use board::Board;
use user::{User, Verdict};

/// Time between two looks at what `phase` wrote.
const CONTROL_PERIOD: Duration = Duration::from_millis(200);
/// The phase that ends the load.
const STOP: &str = "stop";

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Where `phase` tells a running load its phase.
    #[arg(long, global = true, default_value = "/tmp/phase")]
    control: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write, watch, and judge at the end.
    Run {
        /// Address of the service.
        #[arg(long)]
        url: String,
        /// Users, each with two devices.
        #[arg(long, default_value_t = 20)]
        users: usize,
        /// Pause of a user between two writes, in milliseconds.
        #[arg(long, default_value_t = 100)]
        pause_ms: u64,
        /// Longest run, in seconds, should nobody stop it.
        #[arg(long, default_value_t = 900)]
        at_most: u64,
    },
    /// Tell a running load what happens now.
    Phase {
        /// Its name; `stop` ends the load.
        name: String,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Phase { name } => fs::write(&cli.control, name)
            .map(|()| true)
            .with_context(|| format!("cannot write {}", cli.control.display())),
        Command::Run { url, users, pause_ms, at_most } => {
            let load = Load {
                url,
                users,
                pause: Duration::from_millis(pause_ms),
                at_most: Duration::from_secs(at_most),
                control: cli.control,
            };
            load.run()
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(io::stderr(), "k8s-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Load {
    url: String,
    users: usize,
    pause: Duration,
    at_most: Duration,
    control: PathBuf,
}

impl Load {
    fn run(&self) -> anyhow::Result<bool> {
        let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
        runtime.block_on(self.load())
    }

    async fn load(&self) -> anyhow::Result<bool> {
        let board = Arc::new(Board::default());
        let mut users = JoinSet::new();
        for _ in 0..self.users {
            let user = User::new(&self.url, self.pause, Arc::clone(&board))?;
            users.spawn(user.run());
        }
        tokio::select! {
            () = follow(&self.control, &board) => {}
            () = tokio::time::sleep(self.at_most) => {}
        }
        board.stop();

        let mut total = Verdict::default();
        while let Some(verdict) = users.join_next().await {
            total.add(&verdict.context("a user's task failed")??);
        }
        let mut out = io::stdout().lock();
        for line in board.lines() {
            writeln!(out, "{line}")?;
        }
        writeln!(out, "{total}")?;
        Ok(total.is_good())
    }
}

/// Follows what `phase` writes until it says stop.
async fn follow(control: &Path, board: &Board) {
    loop {
        // There is no file before the first phase is told.
        let phase = fs::read_to_string(control).unwrap_or_default();
        match phase.trim() {
            STOP => return,
            "" => {}
            name => board.enter(name),
        }
        tokio::time::sleep(CONTROL_PERIOD).await;
    }
}
