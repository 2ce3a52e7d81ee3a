//! What the command line understands.

use super::*;

fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("data-sync").chain(arguments.iter().copied()))
}

fn exit(line: &str) -> Option<Exit> {
    parse(&line.split(' ').collect::<Vec<_>>()).err().map(|answer| exit_of(&answer))
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn no_command_is_serve() {
    let cli = parse(&["--grpc-listen-address", "127.0.0.1:1"]).unwrap();
    assert!(cli.command.is_none());
    assert_eq!(cli.serve.grpc_listen_address, "127.0.0.1:1");
    let cli = parse(&["serve", "--grpc-listen-address", "127.0.0.1:1"]).unwrap();
    let Some(Command::Serve(args)) = cli.command else { panic!("no serve") };
    assert_eq!(args.grpc_listen_address, "127.0.0.1:1");
}

#[test]
fn settings_of_serve_do_not_go_before_another_command() {
    assert!(parse(&["--grpc-reflection", "true", "probe"]).is_err());
}

#[test]
fn every_command_is_understood() {
    for line in [
        "migrate",
        "migrate up --dry-run",
        "migrate status --json --database-url postgres://h/d",
        "migrate --adopt",
        "check --json --crl-policy open",
        "probe --address 127.0.0.1:1 --service liveness --timeout 500ms",
        "client keygen --key-file k",
        "client set id data --revision 3 --schema-version 2.0.0",
        "client set id --file -",
        "client --json list --since 4 --full",
        "client list --url https://h --json",
        "client watch --since 3",
        "client lock name --shared --ttl 1m",
        "client unlock name --instance 7f2c1b9e-37a4-4a1b-9a57-3a2b1c0d9e8f",
        "client locked name",
        "import --from sqlite:a --to sqlite:b",
        "after-restore",
        "after-restore --by 5 --dry-run --database-url postgres://h/d",
        "completions bash",
        "docs settings",
        "docs metrics",
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        assert!(parse(&arguments).is_ok(), "{line}");
    }
}

#[test]
fn what_is_not_understood_is_a_usage_error() {
    for line in [
        "nonsense",
        "--nonsense",
        "client",
        "client set",
        "client set id",
        "client set id data --file x",
        "client unlock name",
        "client lock name --ttl soon",
        "client watch --since 3 --no-list",
        "migrate down",
        "probe --timeout soon",
        "completions tcl",
    ] {
        assert_eq!(exit(line), Some(Exit::USAGE), "{line}");
    }
}

#[test]
fn empty_settings_count_as_unset() {
    let cli = parse(&["--grpc-listen-address", "", "--database-url", "", "--migrate", ""]).unwrap();
    let given = cli.serve.resolve().unwrap();
    let unset = parse(&[]).unwrap().serve.resolve().unwrap();
    assert_eq!(given, unset);
}

#[test]
fn every_problem_of_a_configuration_is_found_at_once() {
    let arguments =
        ["--grpc-listen-address", "x", "--migrate", "maybe", "--shutdown-delay", "soon"];
    let problems = parse(&arguments).unwrap().serve.resolve().unwrap_err().0;
    assert_eq!(problems.len(), 3, "{problems:?}");
}

#[test]
fn help_and_version_are_no_errors() {
    for line in ["--help", "-h", "--version", "client --help", "migrate --help", "help import"] {
        assert_eq!(exit(line), Some(Exit::SUCCESS), "{line}");
    }
}

#[test]
fn help_names_every_setting_with_its_variable() {
    let help = Cli::command().render_long_help().to_string();
    for argument in Cli::command().get_arguments().filter(|argument| argument.get_env().is_some()) {
        let variable = argument.get_env().unwrap().to_string_lossy().into_owned();
        assert!(help.contains(&format!("[env: {variable}")), "{variable}");
    }
    assert!(help.contains("Exit status:") && help.contains("Examples:"));
}
