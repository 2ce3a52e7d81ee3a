//! Finds out what would keep the service from working, before it does.

use std::{
    io::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use clap::Args;
use serde::Serialize;
use tokio::time::Instant;

use super::{Exit, block_on, open, output};
use crate::{
    auth::api_key,
    clock::{Clock as _, SystemClock},
    config::{ApiKeyConfig, Config, EngineConfig, ServeArgs, StoreConfig},
    limits,
    store::migrate::{LegacyState, SchemaState},
};

pub(super) const AFTER_HELP: &str = "\
Takes the settings of `data-sync serve` and changes nothing. Each check is one line:
  ok     as it should be
  warn   works, but look at it
  FAIL   the service would not start, or not work

Exit status:
  0   no check failed
  1   at least one check failed
  64  invalid configuration; every problem is listed";

mod recount;

/// An authority that expires sooner is worth a warning.
const EXPIRY_WARNING: Duration = Duration::from_secs(30 * SECONDS_A_DAY);
const SECONDS_A_DAY: u64 = 24 * 3600;
/// A clock that is off by more is worth a warning.
const CLOCK_WARNING: Duration = Duration::from_secs(2);
/// Longest wait for the database.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Write one JSON object a check.
    #[arg(long)]
    json: bool,

    /// Count every user's records anew and compare with what quotas believe. Reads the whole
    /// database.
    #[arg(long)]
    recount: bool,

    #[command(flatten)]
    serve: Box<ServeArgs>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

impl Verdict {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One check and what came of it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    detail: String,
}

impl Finding {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, detail: detail.into() }
    }

    fn warn(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warn, detail: detail.into() }
    }

    fn fail(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Fail, detail: detail.into() }
    }
}

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<Exit> {
    let (findings, failed) = match args.serve.resolve() {
        Ok(config) => {
            (block_on(async { Ok(examine(&config, args.recount).await) })?, Exit::FAILURE)
        }
        Err(problems) => {
            let problems = problems.0.into_iter();
            (problems.map(|problem| Finding::fail("configuration", problem)).collect(), Exit::USAGE)
        }
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        for finding in &findings {
            writeln!(out, "{}", serde_json::to_string(finding)?)?;
        }
    } else {
        write!(out, "{}", render(&findings))?;
    }
    let any_failed = findings.iter().any(|finding| finding.verdict == Verdict::Fail);
    Ok(if any_failed { failed } else { Exit::SUCCESS })
}

fn render(findings: &[Finding]) -> String {
    let lines = findings.iter().map(|finding| {
        vec![
            finding.verdict.as_str().to_owned(),
            finding.check.to_owned(),
            output::printable(&finding.detail).into_owned(),
        ]
    });
    output::columns(&lines.collect::<Vec<_>>(), &[])
}

/// Runs every check that the configuration calls for.
async fn examine(config: &Config, recount: bool) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("configuration", "every setting is valid")];
    findings.extend(database(&config.store, recount).await);
    match &config.api_key {
        None => {
            let detail = "no CA_CERT: anybody with a key of their own may use the service";
            findings.push(Finding::ok("api keys", detail));
        }
        Some(api_key) => {
            findings.push(authority(&api_key.ca_der, SystemClock.now_seconds()));
            findings.extend(revocation_list(api_key).await);
        }
    }
    findings
}

async fn database(config: &StoreConfig, recount: bool) -> Vec<Finding> {
    if let EngineConfig::Sqlite(sqlite) = &config.engine
        && !sqlite.path.exists()
    {
        let detail = format!("{} will be made at the first start", sqlite.path.display());
        return vec![Finding::ok("database", detail)];
    }
    let reading = tokio::time::timeout(DATABASE_TIMEOUT, open::schema_state(&config.engine)).await;
    let state = match reading {
        Ok(Ok(state)) => state,
        Ok(Err(error)) => return vec![Finding::fail("database", error.to_string())],
        Err(_) => {
            let detail = format!("no answer within {DATABASE_TIMEOUT:?}");
            return vec![Finding::fail("database", detail)];
        }
    };
    let engine = open::engine_name(&config.engine);
    let mut findings = vec![Finding::ok("database", format!("{engine} answers")), schema(&state)];
    findings.extend(go_data(&config.engine, &state));
    if state.is_ready() && matches!(config.engine, EngineConfig::Postgres(_)) {
        findings.push(clock(config).await);
    }
    if state.is_ready() && recount {
        findings.push(recount::finding(config).await);
    }
    findings
}

fn schema(state: &SchemaState) -> Finding {
    let SchemaState { applied, latest, .. } = *state;
    if applied < latest {
        let missing = latest - applied;
        let detail = format!(
            "{missing} of {latest} migrations are missing; serve applies them at start unless \
             MIGRATE says otherwise, `data-sync migrate` does now"
        );
        Finding::warn("schema", detail)
    } else if applied > latest {
        let detail = format!("version {applied}, newer than this program's {latest}");
        Finding::warn("schema", detail)
    } else {
        Finding::ok("schema", format!("version {applied}"))
    }
}

fn go_data(engine: &EngineConfig, state: &SchemaState) -> Option<Finding> {
    match (state.legacy, engine) {
        (LegacyState::None, _) => None,
        (LegacyState::Adopted, _) => Some(Finding::ok("go data", "taken over")),
        (LegacyState::Unadopted, EngineConfig::Sqlite(_)) => {
            Some(Finding::warn("go data", "will be taken over at the first start; back it up"))
        }
        (LegacyState::Unadopted, EngineConfig::Postgres(_)) => Some(Finding::fail(
            "go data",
            "not taken over; stop the Go server, back up, then run `data-sync migrate --adopt`",
        )),
    }
}

/// Compares the clocks that requests and lock expiries are judged by.
async fn clock(config: &StoreConfig) -> Finding {
    let deadline = Instant::now() + DATABASE_TIMEOUT;
    let database = match open::database(config).await {
        Ok(database) => database,
        Err(error) => return Finding::fail("clock", format!("{error:#}")),
    };
    let before = SystemClock.now_ms();
    let status = database.store.status(deadline).await;
    let after = SystemClock.now_ms();
    database.close().await;
    match status {
        Ok(status) => {
            let midway = before + (after.saturating_sub(before)) / 2;
            skew(Duration::from_millis(midway.abs_diff(status.database_time_ms)))
        }
        Err(error) => Finding::fail("clock", error.to_string()),
    }
}

fn skew(off: Duration) -> Finding {
    let detail = format!("this host and the database differ by {off:?}");
    if off >= Duration::from_secs(limits::MAX_CLOCK_SKEW_SECONDS) {
        Finding::fail("clock", format!("{detail}; requests would be refused, set the clocks"))
    } else if off > CLOCK_WARNING {
        Finding::warn("clock", format!("{detail}; set the clocks"))
    } else {
        Finding::ok("clock", detail)
    }
}

fn authority(ca_der: &[u8], now_seconds: u64) -> Finding {
    const CHECK: &str = "authority";
    let (begins, ends) = match api_key::ca_validity(ca_der) {
        Ok(validity) => validity,
        Err(error) => return Finding::fail(CHECK, format!("CA_CERT: {error}")),
    };
    let now = i64::try_from(now_seconds).unwrap_or(i64::MAX);
    if now < begins {
        return Finding::fail(CHECK, format!("CA_CERT is valid only from {}", date(begins)));
    }
    match u64::try_from(ends.saturating_sub(now)) {
        Err(_) => Finding::fail(CHECK, format!("expired at {}: replace CA_CERT", date(ends))),
        Ok(left) if left < EXPIRY_WARNING.as_secs() => {
            let days = left / SECONDS_A_DAY;
            Finding::warn(CHECK, format!("expires in {days} days, at {}", date(ends)))
        }
        Ok(_) => Finding::ok(CHECK, format!("valid until {}", date(ends))),
    }
}

/// A time for people; one before 1970 or beyond the year 9999 is not worth telling exactly.
fn date(seconds: i64) -> String {
    const YEAR_10000: u64 = 253_402_300_800;
    match u64::try_from(seconds) {
        Ok(seconds) if seconds < YEAR_10000 => {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
        }
        Ok(_) => "the year 10000 or later".to_owned(),
        Err(_) => "before 1970".to_owned(),
    }
}

async fn revocation_list(api_key: &ApiKeyConfig) -> Option<Finding> {
    let revocation = api_key.revocation.as_ref()?;
    Some(match open::revocation_list(revocation).await {
        Ok(entries) => Finding::ok("revocation list", format!("{entries} serial numbers")),
        Err(error) => Finding::fail("revocation list", format!("CRL_URL: {error:#}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The start of 2026.
    const START: u64 = 1_767_225_600;

    /// An authority whose certificate is valid through the year 2026.
    fn authority_of_2026() -> Vec<u8> {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2027, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn an_authority_is_judged_by_its_dates() {
        let ca_der = authority_of_2026();
        for (now, verdict, says) in [
            (START - 1, Verdict::Fail, "only from 2026-01-01T00:00:00Z"),
            (START, Verdict::Ok, "until 2027-01-01T00:00:00Z"),
            (START + 336 * SECONDS_A_DAY, Verdict::Warn, "in 29 days"),
            (START + 366 * SECONDS_A_DAY, Verdict::Fail, "expired"),
        ] {
            let finding = authority(&ca_der, now);
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            assert!(finding.detail.contains(says), "{finding:?}");
        }
        assert_eq!(authority(&[1, 2, 3], START).verdict, Verdict::Fail);
    }

    #[test]
    fn clocks_may_differ_a_little() {
        assert_eq!(skew(Duration::from_millis(20)).verdict, Verdict::Ok);
        assert_eq!(skew(Duration::from_secs(10)).verdict, Verdict::Warn);
        assert_eq!(skew(Duration::from_secs(300)).verdict, Verdict::Fail);
    }

    #[test]
    fn a_schema_that_is_behind_is_no_failure() {
        let state = |applied| SchemaState { applied, latest: 2, legacy: LegacyState::None };
        assert_eq!(schema(&state(0)).verdict, Verdict::Warn);
        assert_eq!(schema(&state(2)).verdict, Verdict::Ok);
        assert_eq!(schema(&state(3)).verdict, Verdict::Warn);
    }

    #[test]
    fn each_check_is_one_line() {
        let findings = [Finding::ok("a", "fine"), Finding::fail("longer", "two\nlines")];
        assert_eq!(render(&findings), "ok    a       fine\nFAIL  longer  two\\nlines\n");
    }
}
