//! Rounds of unary calls.
//!
//! A run is cut into rounds: sign what the round may need, look at the processes, let all callers
//! loose, look again. Signing happens while nothing is measured, and with two servers the rounds
//! alternate, so that both see the same weather.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
    vec,
};

use anyhow::Context as _;
use tokio::task::{JoinSet, spawn_blocking};
use tonic::{Response, Status};

use super::{
    Progress,
    connections::{self, Caller, get_lock, list_changes, set_lock, set_record},
    jobs::{Job, JobMaker, UpdateChain},
    pace::Pace,
    plan::{Load, Mix, Operation, Plan, Side},
    report::{Cost, Outcomes, SideOutcome},
    tally::{Outcome, Tallies},
    usage::Snapshot,
};
use crate::{
    client::unsent::until_sent,
    limits::{BENCH_MAX_ROUND_REQUESTS, BENCH_PRELOAD_ATTEMPTS, MAX_PAGE_RECORDS},
    proto::{SetRecordReply, SetRecordStatus},
};

/// Calls each caller is given in the very first round, before anything is known of the server.
const FIRST_ROUND_CALLS_EACH: u64 = 50;
/// What a round is given beyond what the last one used, so that it rarely runs dry.
const SPARE: f64 = 1.3;

/// Runs the plan's calls against each of its servers.
pub(super) async fn run(
    plan: &Plan,
    mix: &Mix,
    progress: &dyn Progress,
) -> anyhow::Result<Outcomes> {
    let maker = Arc::new(JobMaker::new(plan));
    let mut benches = Vec::with_capacity(plan.sides.len());
    for side in &plan.sides {
        let mut bench = SideBench::open(plan, side, mix, Arc::clone(&maker)).await?;
        if mix.weights().iter().any(|(operation, _)| operation.reads_records()) {
            progress.phase(&format!("storing records on {}", side.name), None);
            bench.preload(plan.users, plan.records_per_user).await?;
        }
        benches.push(bench);
    }
    let mut first = 0;
    for (phase, length) in [("warming up", plan.warm_up), ("measuring", plan.duration)] {
        progress.phase(phase, Some(length.as_secs_f64() * plan.sides.len() as f64));
        for bench in &mut benches {
            bench.forget_results()?;
        }
        while benches.iter().any(|bench| bench.active < length) {
            for bench in &mut benches {
                let slice = plan.slice.min(length.saturating_sub(bench.active));
                first += bench.round(first, slice).await?;
            }
            let active: Duration = benches.iter().map(|bench| bench.active).sum();
            progress.advance(active.as_secs_f64(), &summary(&benches));
        }
    }
    Ok(Outcomes { sides: benches.into_iter().map(SideBench::finish).collect() })
}

fn summary(benches: &[SideBench]) -> String {
    let rates = benches.iter().map(|bench| format!("{} {:.0}/s", bench.side.name, bench.rate));
    rates.collect::<Vec<_>>().join(", ")
}

/// One caller: its connection and the record that it alone updates.
#[derive(Debug)]
struct Worker {
    caller: Caller,
    chain: UpdateChain,
}

/// One server with its callers and what was found so far.
struct SideBench {
    side: Side,
    load: Load,
    timeout: Duration,
    slots: usize,
    update_share: f64,
    records_per_user: usize,
    maker: Arc<JobMaker>,
    workers: Vec<Worker>,
    tallies: Arc<Mutex<Tallies>>,
    /// Time in which calls were running, over all rounds.
    active: Duration,
    /// Calls a second in the last round.
    rate: f64,
    cost: Cost,
}

impl SideBench {
    async fn open(
        plan: &Plan,
        side: &Side,
        mix: &Mix,
        maker: Arc<JobMaker>,
    ) -> anyhow::Result<Self> {
        let callers = connections::open(side, plan.load.in_flight()).await?;
        let workers = callers.into_iter().enumerate();
        let workers =
            workers.map(|(index, caller)| Worker { caller, chain: UpdateChain::new(index) });
        Ok(Self {
            side: side.clone(),
            load: plan.load,
            timeout: plan.timeout,
            slots: plan.load.in_flight(),
            update_share: mix.share(Operation::Update),
            records_per_user: plan.records_per_user,
            maker,
            workers: workers.collect(),
            tallies: Arc::default(),
            active: Duration::ZERO,
            rate: 0.0,
            cost: Cost::default(),
        })
    }

    /// Begins counting anew.
    fn forget_results(&mut self) -> anyhow::Result<()> {
        *lock(&self.tallies) = Tallies::default();
        self.active = Duration::ZERO;
        self.cost = Cost::starting_at(&Snapshot::take(&self.side)?);
        Ok(())
    }

    fn finish(self) -> SideOutcome {
        let tallies = std::mem::take(&mut *lock(&self.tallies));
        SideOutcome { side: self.side, active: self.active, tallies, cost: self.cost, listen: None }
    }

    /// One round of at most `slice`; returns how many call numbers it used up.
    async fn round(&mut self, first: u64, slice: Duration) -> anyhow::Result<u64> {
        if slice.is_zero() {
            return Ok(0);
        }
        let count = self.round_size(slice);
        let jobs = self.sign(first, count).await?;
        let before = Snapshot::take(&self.side)?;
        let calls_before = lock(&self.tallies).total().calls();
        let start = Instant::now();
        let pace = match self.load {
            Load::Closed { .. } => None,
            Load::Open { per_second, .. } => Some(Pace::start(per_second, count)?),
        };
        let round = Arc::new(Round {
            jobs: Mutex::new(jobs.into_iter()),
            end: start + slice,
            pace,
            tallies: Arc::clone(&self.tallies),
            maker: Arc::clone(&self.maker),
            timeout: self.timeout,
            page: self.records_per_user.min(MAX_PAGE_RECORDS),
        });
        let mut running = JoinSet::new();
        for worker in self.workers.drain(..) {
            running.spawn(work(worker, Arc::clone(&round)));
        }
        while let Some(worker) = running.join_next().await {
            self.workers.push(worker.context("a caller stopped")?);
        }
        let took = start.elapsed();
        let calls = lock(&self.tallies).total().calls() - calls_before;
        self.active += took;
        self.rate = rate(calls, took);
        self.cost.add(&before, &Snapshot::take(&self.side)?);
        Ok(count)
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive number of calls, cut to the limit below"
    )]
    fn round_size(&self, slice: Duration) -> u64 {
        let count = match self.load {
            Load::Open { per_second, .. } => (per_second * slice.as_secs_f64()).ceil() as u64,
            Load::Closed { .. } => {
                let least = self.slots as u64 * FIRST_ROUND_CALLS_EACH;
                least.max((self.rate * slice.as_secs_f64() * SPARE) as u64)
            }
        };
        count.clamp(1, BENCH_MAX_ROUND_REQUESTS)
    }

    /// Makes and signs a round's calls, off the threads that serve connections.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a round's calls"
    )]
    async fn sign(&mut self, first: u64, count: u64) -> anyhow::Result<Vec<Job>> {
        let maker = Arc::clone(&self.maker);
        let each = (self.update_share * SPARE * count as f64 / self.slots as f64).ceil() as u64;
        let mut workers = std::mem::take(&mut self.workers);
        let signing = spawn_blocking(move || {
            let jobs = maker.make_all(first, count);
            for worker in &mut workers {
                worker.chain.sign_ahead(&maker, each);
            }
            (jobs, workers)
        });
        let (jobs, workers) = signing.await.context("signing stopped")?;
        self.workers = workers;
        Ok(jobs)
    }

    /// Stores records for every user, so that there is something to list.
    async fn preload(&mut self, users: usize, records: usize) -> anyhow::Result<()> {
        let next = Arc::new(Mutex::new(0..users * records));
        let mut running = JoinSet::new();
        for worker in self.workers.drain(..) {
            let (next, maker, timeout) = (Arc::clone(&next), Arc::clone(&self.maker), self.timeout);
            running.spawn(async move {
                let caller = worker.caller.clone();
                while let Some(number) = take(&next) {
                    store(&caller, &maker, number % users, number / users, timeout).await?;
                }
                anyhow::Ok(worker)
            });
        }
        while let Some(worker) = running.join_next().await {
            self.workers.push(worker.context("a caller stopped")??);
        }
        Ok(())
    }
}

fn take(numbers: &Mutex<Range<usize>>) -> Option<usize> {
    numbers.lock().unwrap_or_else(PoisonError::into_inner).next()
}

fn rate(calls: u64, took: Duration) -> f64 {
    calls as f64 / took.as_secs_f64().max(1e-9)
}

fn lock(tallies: &Mutex<Tallies>) -> MutexGuard<'_, Tallies> {
    tallies.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stores one record; that it is there already from an earlier run is as good.
async fn store(
    caller: &Caller,
    maker: &JobMaker,
    user: usize,
    record: usize,
    timeout: Duration,
) -> anyhow::Result<()> {
    let mut attempt = 1;
    loop {
        let request = maker.set_record(user, format!("record-{record}"), 0, record as u64, None);
        match answered(timeout, caller, request, set_record).await {
            Ok(_) => return Ok(()),
            Err(status) if attempt == BENCH_PRELOAD_ATTEMPTS => {
                return Err(status).context("cannot store the records to be listed");
            }
            Err(_) => attempt += 1,
        }
    }
}

/// What the callers of one round share.
struct Round {
    jobs: Mutex<vec::IntoIter<Job>>,
    end: Instant,
    pace: Option<Pace>,
    tallies: Arc<Mutex<Tallies>>,
    maker: Arc<JobMaker>,
    timeout: Duration,
    /// Records that a listing from the beginning must hold at least.
    page: usize,
}

impl Round {
    /// The next call, and when it is due where there is a schedule.
    async fn next(&self) -> Option<(Job, Option<Instant>)> {
        let due = match &self.pace {
            Some(pace) => Some(pace.due(pace.next().await?)),
            None if Instant::now() >= self.end => return None,
            None => None,
        };
        let job = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).next()?;
        Some((job, due))
    }
}

/// Makes calls until the round is over.
async fn work(mut worker: Worker, round: Arc<Round>) -> Worker {
    while let Some((job, due)) = round.next().await {
        let operation = job.operation();
        let (outcome, latency) = worker.call(job, due, &round).await;
        lock(&round.tallies).record(operation, outcome, latency);
    }
    worker
}

impl Worker {
    /// Makes one call; latency counts from when it was due, else from when it is sent.
    async fn call(&mut self, job: Job, due: Option<Instant>, round: &Round) -> (Outcome, Duration) {
        let update = matches!(job, Job::Update);
        let job = if update { Job::Set(self.chain.next(&round.maker)) } else { job };
        let since = due.unwrap_or_else(Instant::now);
        let limit = round.timeout;
        let outcome = match job {
            Job::Set(request) => {
                let answer = answered(limit, &self.caller, request, set_record).await;
                if update {
                    self.follow(&answer);
                }
                judge(answer, |reply| match reply.status() {
                    SetRecordStatus::Success => Outcome::Ok,
                    SetRecordStatus::Conflict => Outcome::Conflict,
                })
            }
            Job::List { request, all } => {
                let answer = answered(limit, &self.caller, request, list_changes).await;
                judge(answer, |reply| match (all, reply.changes.len()) {
                    (true, found) if found < round.page => wrong("fewer records than are stored"),
                    (false, found) if found > 0 => wrong("records where nothing is new"),
                    _ => Outcome::Ok,
                })
            }
            Job::SetLock(request) => {
                judge(answered(limit, &self.caller, request, set_lock).await, |_| Outcome::Ok)
            }
            Job::GetLock(request) => {
                judge(answered(limit, &self.caller, request, get_lock).await, |_| Outcome::Ok)
            }
            Job::Update => wrong("an update was not signed"),
        };
        (outcome, since.elapsed())
    }

    /// Keeps track of the caller's own record.
    fn follow(&mut self, answer: &Result<SetRecordReply, Status>) {
        match answer {
            Ok(reply) if reply.status() == SetRecordStatus::Success => {
                self.chain.written(reply.new_revision);
            }
            Ok(_) => self.chain.lost(),
            // Refused, then the revision holds; or lost on the way, then a conflict will tell.
            Err(_) => {}
        }
    }
}

fn wrong(what: &str) -> Outcome {
    Outcome::Error(format!("wrong answer: {what}"))
}

fn judge<T>(answer: Result<T, Status>, check: impl FnOnce(&T) -> Outcome) -> Outcome {
    match answer {
        Ok(reply) => check(&reply),
        Err(status) => Outcome::failed(&status),
    }
}

/// Waits for an answer, but not for ever.
pub(super) async fn answered<Message, Reply, Answer>(
    limit: Duration,
    caller: &Caller,
    message: Message,
    call: impl Fn(Caller, Message) -> Answer,
) -> Result<Reply, Status>
where
    Message: Clone,
    Answer: Future<Output = Result<Response<Reply>, Status>>,
{
    let sent = until_sent(|| call(caller.clone(), message.clone()));
    match tokio::time::timeout(limit, sent).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer in {limit:?}"))),
    }
}
