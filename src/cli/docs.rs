//! Reference pages, made from the program itself so that they cannot be wrong.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
};

use clap::{Arg, Args, Command, ValueEnum};

use super::Exit;
use crate::{
    config::{ClientArgs, ServeArgs},
    telemetry::metrics::Metrics,
};

#[derive(Debug, Args)]
pub(super) struct DocsArgs {
    /// Which page.
    #[arg(value_enum)]
    page: Page,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Page {
    /// Every setting with flag, environment variable and default.
    Settings,
    /// Every metric with its labels and meaning.
    Metrics,
}

pub(super) fn run(args: &DocsArgs) -> anyhow::Result<Exit> {
    let page = match args.page {
        Page::Settings => settings()?,
        Page::Metrics => Metrics::new().inventory_markdown(),
    };
    std::io::stdout().write_all(page.as_bytes())?;
    Ok(Exit::SUCCESS)
}

fn settings() -> Result<String, fmt::Error> {
    let mut page = String::from(
        "<!-- Made by `data-sync docs settings`; edit the doc comments in src/config instead. -->\n\
         # Settings\n\n\
         A flag wins over its environment variable, the variable over the default. An empty value\n\
         counts as unset. Durations are written as `250ms`, `5s` or `2m`. All problems are reported\n\
         together, with exit status 64.\n",
    );
    let serve = ServeArgs::augment_args(Command::new("serve"));
    let client = ClientArgs::augment_args(Command::new("client"));
    let mut heading = None;
    for argument in serve.get_arguments().chain(client.get_arguments()) {
        if heading != argument.get_help_heading() {
            heading = argument.get_help_heading();
            let title = heading.unwrap_or("Other");
            write!(
                page,
                "\n## {title}\n\n| Variable | Flag | Default | Meaning |\n|---|---|---|---|\n"
            )?;
        }
        row(&mut page, argument)?;
    }
    Ok(page)
}

fn row(page: &mut String, argument: &Arg) -> fmt::Result {
    let variable = argument.get_env().map(|name| format!("`{}`", name.to_string_lossy()));
    let flag = argument.get_long().map(|flag| format!("`--{flag}`"));
    let defaults = argument.get_default_values().iter().map(|value| value.to_string_lossy());
    let default = defaults.map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
    let (meaning, stated) = split_default(argument);
    let default = if default.is_empty() { stated } else { default };
    writeln!(
        page,
        "| {} | {} | {} | {meaning} |",
        variable.unwrap_or_default(),
        flag.unwrap_or_default(),
        default.replace('|', "\\|"),
    )
}

/// A setting's help without the `[default: …]` that some state in words, and that default.
fn split_default(argument: &Arg) -> (String, String) {
    let help = argument.get_long_help().or_else(|| argument.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    match help.split_once(" [default: ") {
        Some((meaning, default)) => {
            let default = default.trim_end_matches(['.', ']']).to_owned();
            (meaning.to_owned(), default)
        }
        None => (help, String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_row_with_a_meaning() {
        let page = settings().unwrap();
        let serve = ServeArgs::augment_args(Command::new("serve"));
        for argument in serve.get_arguments() {
            let name = argument.get_env().unwrap().to_string_lossy();
            let row = page.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
            let row = row.unwrap_or_else(|| panic!("{name} is missing"));
            let meaning = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
            assert!(meaning.len() > 10, "{row}");
            assert!(row.contains(&format!("`--{}`", argument.get_long().unwrap())), "{row}");
        }
    }

    #[test]
    fn each_group_has_one_table() {
        let page = settings().unwrap();
        let mut titles: Vec<&str> = page.lines().filter(|line| line.starts_with("## ")).collect();
        let count = titles.len();
        titles.sort_unstable();
        titles.dedup();
        assert_eq!(titles.len(), count, "{titles:?}");
    }
}
