//! Asks a running server for its health, quickly and with little memory.

use std::{io::Write as _, time::Duration};

use anyhow::Context as _;
use clap::Args;
use tonic::{Code, Request, Status, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{Exit, block_on};

pub(super) const AFTER_HELP: &str = "\
Services: readiness, liveness, sync.Syncer, or \"\" for the server as a whole.

Exit status:
  0   serving
  1   not serving, or no such service
  2   no answer
  64  a command line that cannot be used";

/// No answer: nobody listens there, or not in time.
const UNREACHABLE: Exit = Exit(2);
const DEFAULT_ADDRESS: &str = "127.0.0.1:8080";

#[derive(Debug, Args)]
pub(super) struct ProbeArgs {
    /// Address of the server's gRPC port; an address that means every interface is asked at
    /// the loopback one.
    #[arg(
        long,
        env = "GRPC_LISTEN_ADDRESS",
        value_name = "ADDRESS",
        default_value = DEFAULT_ADDRESS
    )]
    address: String,

    /// Which service to ask for.
    #[arg(long, value_name = "NAME", default_value = "readiness")]
    service: String,

    /// Longest wait for the answer.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "2s",
        value_parser = humantime::parse_duration
    )]
    timeout: Duration,
}

pub(super) fn run(args: &ProbeArgs) -> anyhow::Result<Exit> {
    block_on(async {
        let address = reachable(&args.address);
        let answer = tokio::time::timeout(args.timeout, ask(&address, &args.service)).await;
        let no_answer = || Err(Status::unavailable(format!("no answer in {:?}", args.timeout)));
        let (exit, text) = judge(answer.unwrap_or_else(|_| no_answer()));
        writeln!(std::io::stdout(), "{address} {}: {text}", args.service)?;
        Ok(exit)
    })
}

async fn ask(address: &str, service: &str) -> Result<i32, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .with_context(|| format!("{address:?} is no address"))
        .map_err(|error| Status::unavailable(format!("{error:#}")))?;
    let channel = endpoint.connect().await.map_err(|error| {
        let error = anyhow::Error::from(error);
        Status::unavailable(format!("{error:#}"))
    })?;
    let request = Request::new(HealthCheckRequest { service: service.to_owned() });
    Ok(HealthClient::new(channel).check(request).await?.into_inner().status)
}

fn judge(answer: Result<i32, Status>) -> (Exit, String) {
    match answer.map(ServingStatus::try_from) {
        Ok(Ok(ServingStatus::Serving)) => (Exit::SUCCESS, "SERVING".to_owned()),
        Ok(Ok(status)) => (Exit::FAILURE, status.as_str_name().to_owned()),
        Ok(Err(unknown)) => (Exit::FAILURE, unknown.to_string()),
        Err(status) if status.code() == Code::NotFound => {
            (Exit::FAILURE, "the server knows no such service".to_owned())
        }
        Err(status) => (UNREACHABLE, status.message().to_owned()),
    }
}

/// Where a listening address can be called from the same host.
fn reachable(address: &str) -> String {
    let address = address.trim();
    if address.is_empty() {
        return DEFAULT_ADDRESS.to_owned();
    }
    for (everywhere, loopback) in [("0.0.0.0:", "127.0.0.1:"), ("[::]:", "[::1]:")] {
        if let Some(port) = address.strip_prefix(everywhere) {
            return format!("{loopback}{port}");
        }
    }
    if address.starts_with(':') { format!("127.0.0.1{address}") } else { address.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_addresses_become_callable_ones() {
        for (given, called) in [
            ("", DEFAULT_ADDRESS),
            (":9000", "127.0.0.1:9000"),
            ("0.0.0.0:9000", "127.0.0.1:9000"),
            ("[::]:9000", "[::1]:9000"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("replica:8080", "replica:8080"),
        ] {
            assert_eq!(reachable(given), called, "{given:?}");
        }
    }

    #[test]
    fn each_answer_has_its_status() {
        assert_eq!(judge(Ok(ServingStatus::Serving.into())).0, Exit::SUCCESS);
        assert_eq!(judge(Ok(ServingStatus::NotServing.into())).0, Exit::FAILURE);
        assert_eq!(judge(Ok(99)).0, Exit::FAILURE);
        assert_eq!(judge(Err(Status::not_found(""))).0, Exit::FAILURE);
        assert_eq!(judge(Err(Status::unavailable("refused"))).0, UNREACHABLE);
    }
}
