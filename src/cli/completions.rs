//! Completions for shells.

use std::io::Write as _;

use clap::Args;
use clap_complete::Shell;

use super::Exit;

pub(super) const AFTER_HELP: &str = "\
Examples:
  source <(data-sync completions bash)
  data-sync completions zsh > \"${fpath[1]}/_data-sync\"
  data-sync completions fish > ~/.config/fish/completions/data-sync.fish";

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs, command: &mut clap::Command) -> anyhow::Result<Exit> {
    // Generated into memory first: the generator panics when its output is closed.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "data-sync", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(Exit::SUCCESS)
}
