//! One life of a replica: the real service core over the simulated database and feed.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use data_sync::{
    auth::Authenticator,
    clock::Clock,
    notify::{Change, ChangeFeed, Hub},
    proto::{ListenChangesRequest, Notification, syncer_server::Syncer as _},
    service::{
        ServiceParts, StreamLife, SyncService,
        nudge::Nudger,
        places::StreamPlaces,
        rate::{RateLimits, Rates},
    },
    store::{Store, UserId},
    telemetry::metrics::Metrics,
};
use futures_util::Stream;
use rand::{RngExt as _, rngs::StdRng};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use super::{
    database::{Connection, Database, SimClock},
    mutant::Mutant,
    plan::{Plan, rng},
};

/// Time between two comparisons of heads; the service promises at most five seconds.
const RECONCILE: Duration = Duration::from_millis(4_000);

/// Carries announcements between the lives of replicas that are up.
#[derive(Debug)]
pub(super) struct Network {
    hubs: Mutex<Vec<Option<Arc<Hub>>>>,
    rng: Mutex<StdRng>,
    loses: Mutex<f64>,
    delay_ms: u64,
    users: Vec<UserId>,
    /// Nudges that did not reach a life, noted as the database does; it reads them when it
    /// compares heads.
    missed_nudges: Mutex<BTreeMap<usize, BTreeSet<UserId>>>,
    mutant: Option<Mutant>,
}

impl Network {
    pub(super) fn new(plan: &Plan, users: Vec<UserId>) -> Arc<Self> {
        Arc::new(Self {
            hubs: Mutex::default(),
            rng: Mutex::new(rng(plan.seed, 3)),
            loses: Mutex::new(plan.odds.announcement_lost),
            delay_ms: plan.odds.feed_ms,
            users,
            missed_nudges: Mutex::default(),
            mutant: plan.mutant,
        })
    }

    /// Loses nothing any more.
    pub(super) fn heal(&self) {
        *self.loses.lock().expect("not poisoned") = 0.0;
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Hands something to every other hub, each after a time of its own, or never; the lives that
    /// it does not reach.
    fn send(&self, from: usize, deliver: impl Fn(&Hub) + Clone + Send + 'static) -> Vec<usize> {
        let hubs = self.hubs.lock().expect("not poisoned").clone();
        let loses = *self.loses.lock().expect("not poisoned");
        let mut missed_by = Vec::new();
        for (to, hub) in hubs.into_iter().enumerate().filter(|(to, _)| *to != from) {
            let (is_lost, delay_ms) = {
                let mut rng = self.rng.lock().expect("not poisoned");
                (rng.random_bool(loses), rng.random_range(0..=self.delay_ms))
            };
            let Some(hub) = hub else { continue };
            if is_lost || self.is(Mutant::DropsNotifications) {
                missed_by.push(to);
                continue;
            }
            let deliver = deliver.clone();
            // Ordered by number where two arrive in the same millisecond.
            let delay = Duration::from_millis(delay_ms) + Duration::from_micros(to as u64);
            tokio::spawn(async move {
                sleep(delay).await;
                deliver(&hub);
            });
        }
        missed_by
    }

    fn note_missed_nudge(&self, user: UserId, missed_by: &[usize]) {
        if self.is(Mutant::ForgetsLostNudges) {
            return;
        }
        let mut missed = self.missed_nudges.lock().expect("not poisoned");
        for life in missed_by {
            missed.entry(*life).or_default().insert(user);
        }
    }

    /// What a life reads of nudges when it compares heads.
    fn take_missed_nudges(&self, life: usize) -> BTreeSet<UserId> {
        self.missed_nudges.lock().expect("not poisoned").remove(&life).unwrap_or_default()
    }
}

/// The feed of one life of a replica.
#[derive(Debug)]
struct Feed {
    network: Arc<Network>,
    life: usize,
    hub: Arc<Hub>,
    /// For the mutant that merges: what waits under one name.
    waiting: Mutex<Option<Change>>,
}

impl Feed {
    /// What this feed makes of a change; the mutants change it.
    fn altered(&self, change: &Change) -> Option<Change> {
        let mut change = change.clone();
        if self.network.is(Mutant::ForgetsNames) {
            change.client_id = None;
        }
        if self.network.is(Mutant::MergesUnderOneName) {
            let mut waiting = self.waiting.lock().expect("not poisoned");
            return match waiting.take() {
                Some(first) if first.user == change.user => {
                    change.from = first.from.min(change.from);
                    Some(change)
                }
                _ => {
                    *waiting = Some(change);
                    None
                }
            };
        }
        Some(change)
    }
}

impl ChangeFeed for Feed {
    fn announce(&self, changes: &[Change]) {
        for change in changes {
            let Some(change) = self.altered(change) else { continue };
            self.hub.announce(&change);
            if self.network.is(Mutant::TellsEverybody) {
                for user in &self.network.users {
                    self.hub.announce(&Change { user: *user, ..change.clone() });
                }
            }
            self.network.send(self.life, move |hub| hub.announce(&change));
        }
    }

    fn nudge(&self, user: UserId) {
        if self.network.is(Mutant::NeverNudges) {
            return;
        }
        self.hub.nudge(user);
        let missed_by = self.network.send(self.life, move |hub| hub.nudge(user));
        self.network.note_missed_nudge(user, &missed_by);
    }
}

/// What a stream brings.
#[derive(Debug)]
pub(super) enum Item {
    Told(Notification),
    /// The server ended it, so.
    Over(Code),
}

type Notifications = Pin<Box<dyn Stream<Item = Result<Notification, Status>> + Send>>;

/// One open stream on its way to a client.
struct Line {
    stream: Notifications,
    client: mpsc::UnboundedSender<Item>,
}

/// One life of a replica.
#[derive(Debug)]
pub(super) struct Replica {
    service: SyncService,
    life: usize,
    alive: CancellationToken,
    /// Until the nudges that are planned are to be made.
    nudging: CancellationToken,
    streams: StreamLife,
    gate: Arc<Gate>,
    lines: mpsc::UnboundedSender<Line>,
    mutant: Option<Mutant>,
    network: Arc<Network>,
    database: Arc<Database>,
}

impl Replica {
    /// Starts life number `life` of a replica whose clock is off by `skew_ms`.
    pub(super) fn start(
        plan: &Plan,
        life: usize,
        start: Instant,
        database: &Arc<Database>,
        network: &Arc<Network>,
    ) -> Arc<Self> {
        let hub = Arc::new(Hub::new());
        let skew_ms = plan.skews_ms[life % plan.skews_ms.len()];
        let clock: Arc<dyn Clock> = Arc::new(SimClock::new(start, skew_ms));
        let metrics = Arc::new(Metrics::new());
        let waiting = Mutex::default();
        let feed: Arc<dyn ChangeFeed> =
            Arc::new(Feed { network: Arc::clone(network), life, hub: Arc::clone(&hub), waiting });
        database.attach(life, Some(Arc::clone(&feed)));
        {
            let mut hubs = network.hubs.lock().expect("not poisoned");
            let lives = hubs.len().max(life + 1);
            hubs.resize(lives, None);
            hubs[life] = Some(Arc::clone(&hub));
        }
        let store: Arc<dyn Store> =
            Arc::new(Connection { database: Arc::clone(database), replica: life });
        let (nudger, nudges) = Nudger::new(Arc::clone(&feed), Arc::clone(&metrics));
        let streams = StreamLife::new(None, Duration::ZERO);
        let auth = Authenticator::new(None, &clock, Arc::clone(&metrics)).expect("no settings");
        let service = SyncService::new(ServiceParts {
            store: Arc::clone(&store),
            feed,
            hub: Arc::clone(&hub),
            auth: Arc::new(auth),
            clock,
            metrics,
            nudger,
            streams: streams.clone(),
            places: Arc::new(StreamPlaces::new(usize::MAX, usize::MAX)),
            rates: RateLimits::new(Rates::default()),
            request_timeout: Duration::from_secs(10),
        });
        let alive = CancellationToken::new();
        let (lines, incoming) = mpsc::unbounded_channel();
        let gate = Arc::new(Gate::default());
        let nudging = CancellationToken::new();
        let nudges = nudges.run(nudging.clone());
        tokio::spawn(alive.clone().run_until_cancelled_owned(nudges));
        tokio::spawn(alive.clone().run_until_cancelled_owned(carry(incoming, Arc::clone(&gate))));
        // A replica alone, as over SQLite, has nothing that makes up for what its hub misses.
        if !plan.is_exact() && plan.mutant != Some(Mutant::DropsNotifications) {
            let missed = (Arc::clone(network), life);
            let reconcile = reconcile(store, hub, missed, Arc::clone(&gate));
            tokio::spawn(alive.clone().run_until_cancelled_owned(reconcile));
        }
        Arc::new(Self {
            service,
            life,
            alive,
            nudging,
            streams,
            gate,
            lines,
            mutant: plan.mutant,
            network: Arc::clone(network),
            database: Arc::clone(database),
        })
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.alive.is_cancelled() && !self.streams.is_draining()
    }

    /// Ends at once, as by SIGKILL.
    pub(super) fn kill(&self) {
        self.alive.cancel();
        self.database.attach(self.life, None);
        self.network.hubs.lock().expect("not poisoned")[self.life] = None;
    }

    /// Ends its streams, as at SIGTERM.
    pub(super) fn drain(&self) {
        self.streams.drain();
    }

    /// Announces what is left, as a replica does at the end of its drain.
    pub(super) fn finish(&self) {
        self.nudging.cancel();
    }

    /// Stands still, as by SIGSTOP, or goes on.
    pub(super) fn pause(&self, paused: bool) {
        self.gate.set(paused);
    }

    /// Makes a call on a connection that breaks when the replica dies.
    pub(super) async fn call<T>(
        &self,
        call: impl AsyncFnOnce(&SyncService) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let answered = async {
            self.gate.when(false).await;
            let answer = call(&self.service).await;
            self.gate.when(false).await;
            answer
        };
        let answer = self.alive.run_until_cancelled(answered).await;
        answer.unwrap_or_else(|| Err(Status::unavailable("the connection is gone")))
    }

    /// Opens a stream. When its channel closes without an end, the connection broke.
    pub(super) async fn listen(
        &self,
        request: ListenChangesRequest,
    ) -> Result<mpsc::UnboundedReceiver<Item>, Status> {
        let (client, items) = mpsc::unbounded_channel();
        if self.mutant == Some(Mutant::SpeaksBeforeSubscribing) {
            let _ = client.send(Item::Told(Notification::default()));
            let (service, lines) = (self.service.clone(), self.lines.clone());
            tokio::spawn(async move {
                sleep(Duration::from_millis(400)).await;
                if let Ok(stream) = service.listen_changes(Request::new(request)).await {
                    use futures_util::StreamExt as _;
                    let stream = Box::pin(stream.into_inner().skip(1));
                    let _ = lines.send(Line { stream, client });
                }
            });
            return Ok(items);
        }
        let opened = self.call(async |service: &SyncService| {
            service.listen_changes(Request::new(request)).await
        });
        let mut stream: Notifications = opened.await?.into_inner();
        if self.mutant == Some(Mutant::EndsWithOk) {
            use futures_util::StreamExt as _;
            stream = Box::pin(stream.take_while(|item| std::future::ready(item.is_ok())));
        }
        let gone = |_| Status::unavailable("the connection is gone");
        self.lines.send(Line { stream, client }).map_err(gone)?;
        Ok(items)
    }
}

/// Holds everything of a replica up while it stands still. What waits goes on in the order it
/// came, unlike with tokio's `watch`: a seed must replay.
#[derive(Debug, Default)]
struct Gate {
    paused: AtomicBool,
    turned: Notify,
}

impl Gate {
    fn set(&self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
        self.turned.notify_waiters();
    }

    /// Waits until the replica stands still, or does not.
    async fn when(&self, paused: bool) {
        loop {
            let turned = self.turned.notified();
            if self.paused.load(Ordering::SeqCst) == paused {
                return;
            }
            turned.await;
        }
    }
}

/// Carries what streams bring to their clients, always in the same order: a seed must replay.
async fn carry(mut incoming: mpsc::UnboundedReceiver<Line>, gate: Arc<Gate>) {
    let mut lines: Vec<Line> = Vec::new();
    loop {
        gate.when(false).await;
        let carrying = poll_fn(|cx| -> Poll<()> {
            while let Poll::Ready(Some(line)) = incoming.poll_recv(cx) {
                lines.push(line);
            }
            lines.retain_mut(|line| {
                loop {
                    match line.stream.as_mut().poll_next(cx) {
                        Poll::Pending => return !line.client.is_closed(),
                        Poll::Ready(Some(Ok(told))) => {
                            if line.client.send(Item::Told(told)).is_err() {
                                return false;
                            }
                        }
                        Poll::Ready(ended) => {
                            let code = ended.map_or(Code::Ok, |item| {
                                item.map_or_else(|status| status.code(), |_| Code::Ok)
                            });
                            let _ = line.client.send(Item::Over(code));
                            return false;
                        }
                    }
                }
            });
            Poll::Pending
        });
        tokio::select! {
            biased;
            () = gate.when(true) => {}
            () = carrying => {}
        }
    }
}

/// Compares heads and reads missed nudges now and then, as the feed of the shared store does.
async fn reconcile(
    store: Arc<dyn Store>,
    hub: Arc<Hub>,
    (network, life): (Arc<Network>, usize),
    gate: Arc<Gate>,
) {
    loop {
        sleep(RECONCILE).await;
        gate.when(false).await;
        for user in network.take_missed_nudges(life) {
            hub.nudge(user);
        }
        let mut users: Vec<UserId> = hub.told_heads().into_iter().map(|(user, _)| user).collect();
        users.sort_unstable();
        let deadline = Instant::now() + Duration::from_secs(1);
        let Ok(heads) = store.heads(&users, deadline).await else { continue };
        for (user, head) in users.into_iter().zip(heads) {
            hub.reconcile(user, head);
        }
    }
}
