//! One record, one lock, one quota, wanted through all replicas at the same moment: as many win as
//! there is room for, and nobody meets an error.

use data_sync::proto::SetRecordStatus;
use futures_util::future::join_all;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::Replicas;
use crate::support::{client::Wallet, postgres::migrated_database, server::ServerOptions};

const CALLERS_PER_REPLICA: usize = 8;
const CALLERS: usize = 3 * CALLERS_PER_REPLICA;
const ROUNDS: usize = 10;

/// Instances of one user, the same number at each replica.
async fn callers(replicas: &Replicas) -> Vec<Wallet> {
    let first = replicas.wallet(0).await;
    let mut callers = Vec::new();
    for number in 0..replicas.servers.len() {
        let at_replica = replicas.at(number, &first).await;
        callers.extend((0..CALLERS_PER_REPLICA).map(|_| at_replica.sibling()));
    }
    callers
}

async fn with_quota(variable: &str, quota: usize) -> Replicas {
    let database = migrated_database().await;
    let options = ServerOptions::postgres(&database.url()).env(variable, &quota.to_string());
    Replicas::start_each(database, &[options.clone(), options.clone(), options])
}

/// How many were let in; every other one was told that its quota is used up.
fn let_in<T: std::fmt::Debug>(answers: Vec<Result<T, Status>>, quota: &str) -> usize {
    let asked = answers.len();
    let refused = answers.into_iter().filter_map(Result::err).inspect(|status| {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let details = status.get_error_details();
        let violations = &details.quota_failure().expect("a quota").violations;
        assert_eq!(violations[0].subject, quota);
    });
    asked - refused.count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_writer_of_a_record_wins_each_round() {
    let replicas = Replicas::start().await;
    let callers = callers(&replicas).await;
    for round in 0..ROUNDS as u64 {
        let writes = callers.iter().map(|caller| async move {
            let data = caller.instance.as_bytes();
            caller.set("shared", round, data).await.expect("an answer, never an error")
        });
        let replies = join_all(writes).await;
        let winners: Vec<_> =
            replies.iter().filter(|reply| reply.status() == SetRecordStatus::Success).collect();
        assert_eq!(winners.len(), 1, "round {round}: {replies:?}");
        assert_eq!(winners[0].new_revision, round + 1);
    }
    assert_eq!(callers[0].list(0).await.expect("lists").head_revision, ROUNDS as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_instance_takes_an_exclusive_lock_each_round() {
    let replicas = Replicas::start().await;
    let callers = callers(&replicas).await;
    let mut last_token = 0;
    for round in 0..ROUNDS {
        let takes = callers.iter().map(|caller| caller.lock("shared", true, Some(60)));
        let answers = join_all(takes).await;
        let mut winners = Vec::new();
        for (caller, answer) in callers.iter().zip(answers) {
            match answer {
                Ok(reply) => winners.push((caller, reply.fencing_token)),
                Err(status) => {
                    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
                    assert_eq!(status.message(), "lock held by another instance");
                }
            }
        }
        let [(winner, token)] = winners[..] else { panic!("round {round}: {winners:?}") };
        assert!(token > last_token, "token {token} after {last_token}");
        last_token = token;
        // Who does not hold it frees nothing.
        let others = callers.iter().filter(|caller| caller.instance != winner.instance);
        for answer in join_all(others.map(|caller| caller.unlock("shared"))).await {
            answer.expect("releasing is idempotent");
        }
        assert!(callers[round % CALLERS].locked("shared").await.expect("looks"));
        winner.unlock("shared").await.expect("releases");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_writers_never_pass_the_quota_of_records() {
    const QUOTA: usize = 10;
    let replicas = with_quota("MAX_USER_RECORDS", QUOTA).await;
    let callers = callers(&replicas).await;
    let writes = callers
        .iter()
        .enumerate()
        .map(|(number, caller)| async move { caller.set(&format!("{number}"), 0, b"x").await });
    assert_eq!(let_in(join_all(writes).await, "records"), QUOTA);
    let page = callers[0].list(0).await.expect("lists");
    assert_eq!((page.changes.len(), page.head_revision), (QUOTA, QUOTA as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_writers_never_pass_the_quota_of_bytes() {
    let replicas = with_quota("MAX_USER_BYTES", 105).await;
    let callers = callers(&replicas).await;
    let writes = callers
        .iter()
        .enumerate()
        .map(|(number, caller)| async move { caller.set(&format!("{number}"), 0, &[7; 10]).await });
    assert_eq!(let_in(join_all(writes).await, "bytes"), 10);
    callers[CALLERS - 1].must_set("the rest", 0, &[7; 5]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_instances_never_pass_the_quota_of_locks() {
    const QUOTA: usize = 10;
    let replicas = with_quota("MAX_USER_LOCKS", QUOTA).await;
    let callers = callers(&replicas).await;
    let takes = callers.iter().enumerate().map(|(number, caller)| async move {
        caller.lock(&format!("{}", number % 5), false, Some(60)).await
    });
    assert_eq!(let_in(join_all(takes).await, "locks"), QUOTA);
}
