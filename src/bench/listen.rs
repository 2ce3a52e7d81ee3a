//! Streams, and writes beside them.
//!
//! All streams are opened and live before the first write. Every event is kept with its time and
//! counted only afterwards, so that counting is not what is measured.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rand::RngExt as _;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{
    Progress,
    calls::answered,
    connections::{self, Caller, listen_changes, set_record},
    jobs::{JobMaker, request_time},
    ledger::{Event, Heard, ListenTally, Said, Write},
    pace::Pace,
    plan::{ListenPlan, Operation, Plan, Side},
    report::{Cost, Outcomes, SideOutcome},
    tally::{Outcome, Tallies},
    usage::Snapshot,
};
use crate::{
    auth::signing::SignedRequest as _,
    limits::{
        BENCH_MAX_DELIVERIES, BENCH_STREAM_RETRY_DELAY, BENCH_STREAMS_OPEN_TIMEOUT,
        BENCH_STREAMS_OPENING,
    },
    proto::{ListenChangesRequest, Notification, SetRecordStatus},
};

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// How often the run looks whether all streams are live.
const LIVE_POLL: Duration = Duration::from_millis(20);
/// Idle time before memory is looked at, so that what opening took has been given back.
const SETTLE: Duration = Duration::from_millis(500);

/// Runs the plan against each of its servers, one after the other.
pub(super) async fn run(
    plan: &Plan,
    listen: &ListenPlan,
    progress: &dyn Progress,
) -> anyhow::Result<Outcomes> {
    let streams_per_user = listen.streams as f64 / plan.users as f64;
    let writes = listen.writes_per_second * plan.duration.as_secs_f64();
    ensure!(
        writes * streams_per_user <= BENCH_MAX_DELIVERIES as f64,
        "the run would expect more than {BENCH_MAX_DELIVERIES} notifications: make it shorter"
    );
    let mut sides = Vec::with_capacity(plan.sides.len());
    for side in &plan.sides {
        sides.push(run_side(plan, listen, side, progress).await?);
    }
    Ok(Outcomes { sides })
}

async fn run_side(
    plan: &Plan,
    listen: &ListenPlan,
    side: &Side,
    progress: &dyn Progress,
) -> anyhow::Result<SideOutcome> {
    let before = Snapshot::take(side)?;
    let audience = Audience::open(plan, listen, side, progress).await?;
    sleep(SETTLE).await;
    let opened = Snapshot::take(side)?;
    let mut cost = Cost::starting_at(&before);

    progress.phase(&format!("listening on {}", side.name), Some(plan.duration.as_secs_f64()));
    let start = Instant::now();
    let (writes, tallies) = audience.write(plan, listen, side, progress).await?;
    let active = start.elapsed();
    sleep(if writes.is_empty() { Duration::ZERO } else { listen.grace }).await;
    cost.add(&opened, &Snapshot::take(side)?);

    let heard = audience.close().await?;
    let mut tally = ListenTally::count(&heard, &writes);
    tally.stream_bytes = before
        .server
        .zip(opened.server)
        .map(|(before, opened)| opened.resident_bytes.saturating_sub(before.resident_bytes));
    Ok(SideOutcome { side: side.clone(), active, tallies, cost, listen: Some(tally) })
}

/// All open streams, and what makes writes for them.
struct Audience {
    maker: Arc<JobMaker>,
    /// What all times count from.
    epoch: Instant,
    streams: JoinSet<Heard>,
    stop: CancellationToken,
}

impl Audience {
    /// Opens every stream and waits until all are live.
    async fn open(
        plan: &Plan,
        listen: &ListenPlan,
        side: &Side,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let mut audience = Self {
            maker: Arc::new(JobMaker::new(plan)),
            epoch: Instant::now(),
            streams: JoinSet::new(),
            stop: CancellationToken::new(),
        };
        progress.phase(&format!("opening streams on {}", side.name), None);
        let callers = connections::open(side, listen.streams).await?;
        let gate = Arc::new(Semaphore::new(BENCH_STREAMS_OPENING));
        let live = Arc::new(Semaphore::new(0));
        for (number, caller) in callers.into_iter().enumerate() {
            let listener = Listener {
                caller,
                maker: Arc::clone(&audience.maker),
                epoch: audience.epoch,
                life: listen.stream_life,
                timeout: plan.timeout,
                gate: Arc::clone(&gate),
                live: Arc::clone(&live),
                heard: Heard { user: number % plan.users, ..Heard::default() },
            };
            audience.streams.spawn(listener.run(audience.stop.clone()));
        }
        let all_live = async {
            while live.available_permits() < listen.streams {
                sleep(LIVE_POLL).await;
            }
        };
        if timeout(BENCH_STREAMS_OPEN_TIMEOUT, all_live).await.is_err() {
            let reasons = audience.close().await?;
            let reasons: BTreeMap<_, _> =
                reasons.into_iter().flat_map(|heard| heard.ended).collect();
            bail!(
                "{} of {} streams went live in {BENCH_STREAMS_OPEN_TIMEOUT:?}; others: {reasons:?}",
                live.available_permits(),
                listen.streams
            );
        }
        Ok(audience)
    }

    /// Writes at the plan's rate; returns the writes that were acknowledged.
    async fn write(
        &self,
        plan: &Plan,
        listen: &ListenPlan,
        side: &Side,
        progress: &dyn Progress,
    ) -> anyhow::Result<(Vec<Write>, Tallies)> {
        let per_second = listen.writes_per_second;
        let count = whole(per_second * plan.duration.as_secs_f64());
        if count == 0 {
            watch(plan.duration, progress, || "idle".to_owned()).await;
            return Ok((Vec::new(), Tallies::default()));
        }
        let callers = connections::open_for_writes(side, plan.load.in_flight()).await?;
        let desk = Arc::new(Desk {
            maker: Arc::clone(&self.maker),
            epoch: self.epoch,
            users: plan.users,
            timeout: plan.timeout,
            pace: Pace::start(per_second, count)?,
            written: Mutex::default(),
        });
        let mut writers = JoinSet::new();
        for caller in callers {
            writers.spawn(Arc::clone(&desk).write(caller));
        }
        let all_written = async {
            while let Some(writer) = writers.join_next().await {
                writer.context("a writer stopped")?;
            }
            anyhow::Ok(())
        };
        tokio::pin!(all_written);
        let summary = || {
            let written = desk.written.lock().unwrap_or_else(PoisonError::into_inner);
            format!("{} of {count} written", written.0.len())
        };
        tokio::select! {
            result = &mut all_written => result?,
            () = watch(plan.duration, progress, summary) => all_written.await?,
        }
        let mut written = desk.written.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut *written))
    }

    /// Closes every stream and returns what each heard.
    async fn close(mut self) -> anyhow::Result<Vec<Heard>> {
        self.stop.cancel();
        let mut all = Vec::with_capacity(self.streams.len());
        while let Some(heard) = self.streams.join_next().await {
            all.push(heard.context("a stream's reader stopped")?);
        }
        Ok(all)
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a positive number of writes, far below 2^52"
)]
const fn whole(count: f64) -> u64 {
    count as u64
}

/// Tells progress for as long as the run is meant to take.
async fn watch(length: Duration, progress: &dyn Progress, summary: impl Fn() -> String) {
    let start = Instant::now();
    while start.elapsed() < length {
        sleep(PROGRESS_INTERVAL.min(length.saturating_sub(start.elapsed()))).await;
        progress.advance(start.elapsed().as_secs_f64(), &summary());
    }
}

/// Where writers get their work and leave what came of it.
struct Desk {
    maker: Arc<JobMaker>,
    epoch: Instant,
    users: usize,
    timeout: Duration,
    pace: Pace,
    written: Mutex<(Vec<Write>, Tallies)>,
}

impl Desk {
    async fn write(self: Arc<Self>, caller: Caller) {
        while let Some(number) = self.pace.next().await {
            let user = usize::try_from(number).unwrap_or(0) % self.users;
            let id = self.maker.own(&format!("listen-{number}"));
            let request = self.maker.set_record(user, id, 0, number, Some(number.to_string()));
            let due = self.pace.due(number);
            let sent = self.epoch.elapsed();
            let answer = answered(self.timeout, &caller, request, set_record).await;
            let acknowledged = self.epoch.elapsed();
            let outcome = match &answer {
                Ok(reply) if reply.status() == SetRecordStatus::Success => Outcome::Ok,
                Ok(_) => Outcome::Conflict,
                Err(status) => Outcome::failed(status),
            };
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            if let (Outcome::Ok, Ok(reply)) = (&outcome, &answer) {
                let revision = reply.new_revision;
                written.0.push(Write { user, number, revision, sent, acknowledged });
            }
            written.1.record(Operation::Set, outcome, due.elapsed());
        }
    }
}

/// One logical stream, opened again whenever it ends.
struct Listener {
    caller: Caller,
    maker: Arc<JobMaker>,
    epoch: Instant,
    life: Option<Duration>,
    timeout: Duration,
    /// Lets only so many streams open at once.
    gate: Arc<Semaphore>,
    /// Gains a permit when this stream is live for the first time.
    live: Arc<Semaphore>,
    heard: Heard,
}

/// Why a stream is no longer read.
enum End {
    /// The run is over.
    Stopped,
    /// The client closed it.
    Closed,
    /// The server ended it, or it never went live.
    Ended(String),
}

impl Listener {
    async fn run(mut self, stop: CancellationToken) -> Heard {
        loop {
            let end = tokio::select! {
                end = self.listen() => end,
                () = stop.cancelled() => End::Stopped,
            };
            match end {
                End::Stopped => return self.heard,
                End::Closed => {}
                End::Ended(kind) => {
                    *self.heard.ended.entry(kind).or_default() += 1;
                    let pause =
                        BENCH_STREAM_RETRY_DELAY.mul_f64(rand::rng().random_range(1.0..2.0));
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = stop.cancelled() => return self.heard,
                    }
                }
            }
        }
    }

    /// Opens the stream and reads it to its end. Cancelling it closes the stream.
    async fn listen(&mut self) -> End {
        let mut stream = match self.open().await {
            Ok(stream) => stream,
            Err(status) => return ended(&status),
        };
        let life = self.life.map(|life| life.mul_f64(rand::rng().random_range(0.5..1.5)));
        let closing = async {
            match life {
                Some(life) => sleep(life).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(closing);
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                () = &mut closing => return End::Closed,
            };
            let at = self.epoch.elapsed();
            match message {
                Ok(Some(notification)) => {
                    let said = changed(&notification);
                    self.heard.events.push(Event { at, said });
                }
                Ok(None) => return End::Ended("Ok: the stream ended".to_owned()),
                Err(status) => return ended(&status),
            }
        }
    }

    /// Opens the stream; it is live when this returns.
    async fn open(&mut self) -> Result<Streaming<Notification>, Status> {
        let gate = Arc::clone(&self.gate);
        // The gate is never closed.
        let _turn = gate.acquire().await.map_err(|_| Status::cancelled("the run is over"))?;
        let start = Instant::now();
        let mut request =
            ListenChangesRequest { request_time: request_time(), signature: String::new() };
        request.sign(self.maker.users.key(self.heard.user));
        let limit = self.timeout;
        let mut stream = answered(limit, &self.caller, request, listen_changes).await?;
        let first = timeout(limit, stream.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the stream did not go live"))??;
        let Some(first) = first else {
            return Err(Status::unknown("the stream ended before it was live"));
        };
        let at = self.epoch.elapsed();
        let said = Said::Live { revision: first.revision };
        if self.heard.opened.is_empty() {
            self.live.add_permits(1);
        }
        self.heard.opened.push(start.elapsed());
        self.heard.events.push(Event { at, said });
        Ok(stream)
    }
}

fn ended(status: &Status) -> End {
    match Outcome::failed(status) {
        Outcome::Error(kind) => End::Ended(kind),
        Outcome::Ok | Outcome::Conflict => End::Closed,
    }
}

fn changed(notification: &Notification) -> Said {
    let writer = notification.client_id.as_ref().and_then(|id| id.parse().ok());
    Said::Changed { writer, revision: notification.revision }
}
