//! The one database under all replicas: the engine in memory with delays, errors and lost commits.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use data_sync::{
    clock::Clock,
    notify::{Change, ChangeFeed},
    store::{
        LockAction, LockOutcome, LockRequest, Page, PageLimit, Quota, Quotas, RecordWrite,
        RequestDigest, Store, StoreContext, StoreError, StoreStatus, StoredRecord, UserId,
        WriteOutcome,
        memory::MemoryStore,
        transfer::{Transfer as _, UserSummary},
    },
    telemetry::metrics::Metrics,
};
use rand::{RngExt as _, rngs::StdRng};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    mutant::Mutant,
    plan::{Odds, Plan, rng},
};

/// Milliseconds since 1970 at which every simulation begins.
const EPOCH_MS: u64 = 1_700_000_000_000;
/// How long the mutant database hides a commit or serves an old page.
const LAG: Duration = Duration::from_millis(400);

/// A clock that runs with the simulated time.
#[derive(Debug, Clone)]
pub(super) struct SimClock {
    start: Instant,
    skew_ms: i64,
}

impl SimClock {
    pub(super) fn new(start: Instant, skew_ms: i64) -> Self {
        Self { start, skew_ms }
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).expect("fits");
        (EPOCH_MS + elapsed).saturating_add_signed(self.skew_ms)
    }
}

/// The database's clock; that of the calling replica under the mutant that confuses the two.
#[derive(Debug)]
struct DatabaseClock {
    start: Instant,
    caller: Arc<AtomicUsize>,
    /// Empty but for the mutant.
    skews_ms: Vec<i64>,
}

impl Clock for DatabaseClock {
    fn now_ms(&self) -> u64 {
        let caller = self.caller.load(Ordering::SeqCst);
        let skew_ms = match self.skews_ms.len() {
            0 => 0,
            pods => self.skews_ms[caller % pods],
        };
        SimClock { start: self.start, skew_ms }.now_ms()
    }
}

/// Takes commits to the feed of the replica that made them.
#[derive(Debug, Default)]
struct CommitFeed {
    caller: Arc<AtomicUsize>,
    feeds: Mutex<Vec<Option<Arc<dyn ChangeFeed>>>>,
}

impl ChangeFeed for CommitFeed {
    fn announce(&self, changes: &[Change]) {
        let caller = self.caller.load(Ordering::SeqCst);
        let feed = self.feeds.lock().expect("not poisoned").get(caller).cloned().flatten();
        // A replica that died before its commit came through tells nobody.
        if let Some(feed) = feed {
            feed.announce(changes);
        }
    }

    fn nudge(&self, _user: UserId) {}
}

/// The database.
#[derive(Debug)]
pub(super) struct Database {
    core: MemoryStore,
    feed: Arc<CommitFeed>,
    caller: Arc<AtomicUsize>,
    rng: Mutex<StdRng>,
    odds: Odds,
    quotas: Quotas,
    page: PageLimit,
    mutant: Option<Mutant>,
    /// Errors and lost commits happen.
    faulty: AtomicBool,
    /// Nobody can reach it.
    down: AtomicBool,
    tokens: AtomicU64,
    /// For mutants: commits nobody sees yet, and old pages.
    hidden: Mutex<Vec<(UserId, u64, Instant)>>,
    old_pages: Mutex<Vec<(UserId, u64, Page, Instant)>>,
}

/// What happens to one operation.
#[derive(Debug, Clone, Copy)]
struct Fate {
    before: Duration,
    after: Duration,
    fails: bool,
    commit_lost: bool,
    /// For mutants that act now and then.
    strikes: bool,
}

impl Database {
    pub(super) fn new(plan: &Plan, start: Instant) -> Arc<Self> {
        let caller = Arc::new(AtomicUsize::new(0));
        let feed = Arc::new(CommitFeed { caller: Arc::clone(&caller), feeds: Mutex::default() });
        let by_pods = plan.mutant == Some(Mutant::ExpiresByPodClock);
        let counts_apart = plan.mutant == Some(Mutant::CountsThenWrites);
        let core = MemoryStore::new(StoreContext {
            feed: feed.clone(),
            quotas: if counts_apart { Quotas::default() } else { plan.quotas },
            clock: Arc::new(DatabaseClock {
                start,
                caller: Arc::clone(&caller),
                skews_ms: if by_pods { plan.skews_ms.clone() } else { Vec::new() },
            }),
            metrics: Arc::new(Metrics::new()),
        });
        Arc::new(Self {
            core,
            feed,
            caller,
            rng: Mutex::new(rng(plan.seed, 2)),
            odds: plan.odds,
            quotas: plan.quotas,
            page: plan.page,
            mutant: plan.mutant,
            faulty: AtomicBool::new(true),
            down: AtomicBool::new(false),
            tokens: AtomicU64::new(0),
            hidden: Mutex::default(),
            old_pages: Mutex::default(),
        })
    }

    pub(super) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    pub(super) fn heal(&self) {
        self.faulty.store(false, Ordering::SeqCst);
        self.set_down(false);
    }

    /// The feed that commits of `replica`, a life of one, go to; none once it is dead.
    pub(super) fn attach(&self, replica: usize, feed: Option<Arc<dyn ChangeFeed>>) {
        let mut feeds = self.feed.feeds.lock().expect("not poisoned");
        if feeds.len() <= replica {
            feeds.resize(replica + 1, None);
        }
        feeds[replica] = feed;
    }

    /// Everything of every user, by whom the counters would be compared.
    pub(super) async fn summaries(&self) -> Vec<UserSummary> {
        self.core.users(None, usize::MAX).await.expect("the engine in memory answers")
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn fate(&self) -> Fate {
        let rng = &mut *self.rng.lock().expect("not poisoned");
        let faulty = self.faulty.load(Ordering::SeqCst);
        let mut ms = || Duration::from_millis(rng.random_range(0..=self.odds.store_ms));
        let (before, after) = (ms(), ms());
        Fate {
            before,
            after,
            fails: rng.random_bool(self.odds.store_error) && faulty,
            commit_lost: rng.random_bool(self.odds.commit_lost) && faulty,
            strikes: rng.random_bool(0.1),
        }
    }

    async fn arrive(&self, fate: Fate) -> Result<(), StoreError> {
        sleep(fate.before).await;
        if fate.fails || self.down.load(Ordering::SeqCst) {
            return Err(lost());
        }
        Ok(())
    }

    /// The call comes from `replica` until the next await.
    fn enter(&self, replica: usize) -> (&MemoryStore, Instant) {
        self.caller.store(replica, Ordering::SeqCst);
        (&self.core, far())
    }

    async fn current(&self, write: &RecordWrite) -> Option<u64> {
        let held = self.core.record(write.user, &write.id, far()).await.ok().flatten();
        held.map(|held| held.revision)
    }

    async fn commit(&self, replica: usize, write: RecordWrite) -> Result<WriteOutcome, StoreError> {
        let (core, deadline) = self.enter(replica);
        core.set_record(write, deadline).await
    }

    /// One write, with the engine's own retry after a commit of unknown outcome.
    async fn write(
        &self,
        replica: usize,
        mut write: RecordWrite,
        fate: Fate,
    ) -> Result<WriteOutcome, StoreError> {
        self.arrive(fate).await?;
        if let Some(outcome) = self.mutate(&mut write, fate).await {
            return outcome;
        }
        let user = write.user;
        let outcome = self.commit(replica, write.clone()).await;
        if let Ok(WriteOutcome::Written { revision }) = outcome
            && self.is(Mutant::DrawsRevisionsEarly)
            && fate.strikes
        {
            let until = Instant::now() + LAG;
            self.hidden.lock().expect("not poisoned").push((user, revision, until));
            sleep(LAG).await;
        }
        sleep(fate.after).await;
        if !fate.commit_lost {
            return self.number(outcome, replica);
        }
        if self.is(Mutant::RetriesWithoutDigest) {
            write.digest = RequestDigest([0; 32]);
            return self.commit(replica, write).await;
        }
        if fate.strikes || self.down.load(Ordering::SeqCst) {
            return Err(lost());
        }
        match self.commit(replica, write).await? {
            outcome @ (WriteOutcome::Written { .. } | WriteOutcome::Repeated { .. }) => Ok(outcome),
            WriteOutcome::Conflict | WriteOutcome::OverQuota(_) => Err(lost()),
        }
    }

    fn number(
        &self,
        outcome: Result<WriteOutcome, StoreError>,
        replica: usize,
    ) -> Result<WriteOutcome, StoreError> {
        match outcome? {
            WriteOutcome::Written { revision } if self.is(Mutant::NumbersInBlocks) => {
                Ok(WriteOutcome::Written { revision: revision + 1_000 * replica as u64 })
            }
            WriteOutcome::Conflict if self.is(Mutant::FailsUnderContention) => {
                Err(StoreError::Internal("could not serialize access".to_owned()))
            }
            outcome => Ok(outcome),
        }
    }

    /// What mutants do before a write; an outcome where they do not write at all.
    async fn mutate(
        &self,
        write: &mut RecordWrite,
        fate: Fate,
    ) -> Option<Result<WriteOutcome, StoreError>> {
        match self.mutant? {
            Mutant::IgnoresConflicts => {
                write.base_revision = self.current(write).await.unwrap_or(write.base_revision);
            }
            Mutant::ReadsThenWrites if self.current(write).await == Some(write.base_revision) => {
                sleep(fate.after * 4).await;
                write.base_revision = self.current(write).await.unwrap_or(write.base_revision);
            }
            Mutant::InventsConflicts if fate.strikes => return Some(Ok(WriteOutcome::Conflict)),
            Mutant::LosesWrites if fate.strikes => {
                let heads = self.core.heads(&[write.user], far()).await;
                let revision = heads.map_or(0, |heads| heads[0]) + 1;
                return Some(Ok(WriteOutcome::Written { revision }));
            }
            Mutant::CountsThenWrites => {
                let is_new = self.current(write).await.is_none();
                let held = self.summaries().await.into_iter().find(|user| user.user == write.user);
                let records = held.map_or(0, |held| held.records);
                if is_new && self.quotas.max_records.is_some_and(|most| records >= most) {
                    return Some(Ok(WriteOutcome::OverQuota(Quota::Records)));
                }
                sleep(fate.after * 4).await;
            }
            _ => {}
        }
        None
    }

    async fn page(
        &self,
        replica: usize,
        user: UserId,
        since: u64,
        limit: PageLimit,
        fate: Fate,
    ) -> Result<Page, StoreError> {
        self.arrive(fate).await?;
        // The service asks for what the wire can take; a simulation has smaller pages.
        let mut limit = if limit == PageLimit::WIRE { self.page } else { limit };
        if self.is(Mutant::CutsByRecordsOnly) {
            limit.max_bytes = usize::MAX;
        }
        let (core, deadline) = self.enter(replica);
        let mut page = core.list_changes(user, since, limit, deadline).await?;
        if self.is(Mutant::ReadsStale) {
            page = self.old_page(user, since, page);
        }
        let hidden = self.hidden.lock().expect("not poisoned").clone();
        page.records.retain(|record| {
            let hides = |(whose, revision, until): &(UserId, u64, Instant)| {
                *whose == user && *revision == record.revision && Instant::now() < *until
            };
            !hidden.iter().any(hides)
        });
        sleep(fate.after).await;
        Ok(page)
    }

    fn old_page(&self, user: UserId, since: u64, page: Page) -> Page {
        let mut pages = self.old_pages.lock().expect("not poisoned");
        pages.retain(|(.., until)| Instant::now() < *until);
        let old = pages.iter().find(|(whose, from, ..)| *whose == user && *from == since);
        if let Some((_, _, page, _)) = old {
            return page.clone();
        }
        pages.push((user, since, page.clone(), Instant::now() + LAG));
        page
    }

    async fn lock(
        &self,
        replica: usize,
        mut request: LockRequest,
        fate: Fate,
    ) -> Result<LockOutcome, StoreError> {
        self.arrive(fate).await?;
        if let LockAction::Acquire { ttl_ms, .. } = &mut request.action
            && self.is(Mutant::NeverExpires)
        {
            *ttl_ms *= 1_000;
        }
        if request.action == LockAction::Release && self.is(Mutant::ReleasesForOthers) {
            for held in self.core.locks(None, usize::MAX).await? {
                if held.user == request.user && held.name == request.name {
                    let (core, deadline) = self.enter(replica);
                    let release = LockRequest { instance: held.instance, ..request.clone() };
                    core.set_lock(release, deadline).await?;
                }
            }
        }
        let (core, deadline) = self.enter(replica);
        let mut outcome = core.set_lock(request, deadline).await?;
        if let LockOutcome::Acquired { fencing_token, .. } = &mut outcome
            && self.is(Mutant::ReusesTokens)
        {
            *fencing_token = 1 + self.tokens.fetch_add(1, Ordering::SeqCst) % 3;
        }
        sleep(fate.after).await;
        if fate.commit_lost {
            return Err(lost());
        }
        Ok(outcome)
    }
}

fn lost() -> StoreError {
    StoreError::Unavailable("the connection was lost".to_owned())
}

/// A deadline for the engine in memory, which never waits.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(3_600)
}

/// The database as one replica reaches it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) database: Arc<Database>,
    /// The number of the replica's life: a restarted one has another.
    pub(super) replica: usize,
}

/// Runs an operation to its end, whether or not its caller waits for it.
async fn detached<T: Send + 'static>(
    deadline: Instant,
    operation: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    let running = tokio::spawn(operation);
    match timeout_at(deadline, running).await {
        Ok(done) => done.expect("an operation does not panic"),
        Err(_) => Err(StoreError::DeadlineExceeded),
    }
}

#[async_trait]
impl Store for Connection {
    async fn set_record(
        &self,
        write: RecordWrite,
        deadline: Instant,
    ) -> Result<WriteOutcome, StoreError> {
        let (database, replica) = (Arc::clone(&self.database), self.replica);
        let fate = database.fate();
        detached(deadline, async move { database.write(replica, write, fate).await }).await
    }

    async fn record(
        &self,
        user: UserId,
        id: &str,
        _deadline: Instant,
    ) -> Result<Option<StoredRecord>, StoreError> {
        let fate = self.database.fate();
        self.database.arrive(fate).await?;
        let (core, deadline) = self.database.enter(self.replica);
        core.record(user, id, deadline).await
    }

    async fn list_changes(
        &self,
        user: UserId,
        since: u64,
        limit: PageLimit,
        _deadline: Instant,
    ) -> Result<Page, StoreError> {
        let fate = self.database.fate();
        self.database.page(self.replica, user, since, limit, fate).await
    }

    async fn heads(&self, users: &[UserId], _deadline: Instant) -> Result<Vec<u64>, StoreError> {
        let fate = self.database.fate();
        self.database.arrive(fate).await?;
        let (core, deadline) = self.database.enter(self.replica);
        let heads = core.heads(users, deadline).await;
        sleep(fate.after).await;
        heads
    }

    async fn set_lock(
        &self,
        request: LockRequest,
        deadline: Instant,
    ) -> Result<LockOutcome, StoreError> {
        let (database, replica) = (Arc::clone(&self.database), self.replica);
        let fate = database.fate();
        detached(deadline, async move { database.lock(replica, request, fate).await }).await
    }

    async fn is_locked(
        &self,
        user: UserId,
        name: &str,
        _deadline: Instant,
    ) -> Result<bool, StoreError> {
        let fate = self.database.fate();
        self.database.arrive(fate).await?;
        let (core, deadline) = self.database.enter(self.replica);
        core.is_locked(user, name, deadline).await
    }

    async fn status(&self, _deadline: Instant) -> Result<StoreStatus, StoreError> {
        let (core, deadline) = self.database.enter(self.replica);
        core.status(deadline).await
    }

    fn engine(&self) -> &'static str {
        "simulated"
    }

    async fn close(&self) {}
}
