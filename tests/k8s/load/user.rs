//! One user with two devices: one writes, one watches.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use data_sync::client::{Client, Error, Options, Record, SetRecord, Signer, WatchEvent};
use futures_util::TryStreamExt as _;
use tokio::time::Instant;

use crate::board::Board;

/// Records of one user, written in turn.
const RECORDS: u64 = 8;
/// Pause before a list is tried again.
const LIST_AGAIN: Duration = Duration::from_millis(500);
/// Time for the second device to catch up after the last write.
const SETTLE: Duration = Duration::from_secs(60);
/// Time for a fresh device to list everything.
const JUDGE: Duration = Duration::from_secs(60);

/// What is known to be stored, and what the second device has seen.
#[derive(Debug, Default)]
struct Truth {
    /// By id: revision and data of the newest acknowledged write.
    records: BTreeMap<String, (u64, String)>,
    /// Data of writes that may have been stored.
    doubtful: HashMap<String, Vec<String>>,
    /// When a revision was acknowledged that the second device has not seen.
    unseen: BTreeMap<u64, Instant>,
    /// Accepted writes: acknowledged, or found to have been stored.
    accepted: u64,
    conflicts: u64,
    head: u64,
    seen: u64,
}

/// How one user, or all of them, fared.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    users: u64,
    accepted: u64,
    lost: u64,
    uncounted: u64,
    conflicts: u64,
    deaf: u64,
}

impl Verdict {
    /// Takes in another's.
    pub(crate) fn add(&mut self, other: &Self) {
        self.users += other.users;
        self.accepted += other.accepted;
        self.lost += other.lost;
        self.uncounted += other.uncounted;
        self.conflicts += other.conflicts;
        self.deaf += other.deaf;
    }

    /// Whether nothing was lost and nobody is left behind.
    pub(crate) const fn is_good(&self) -> bool {
        self.accepted > 0 && self.lost + self.uncounted + self.conflicts + self.deaf == 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { users, accepted, lost, uncounted, conflicts, deaf } = self;
        write!(
            f,
            "verdict: {users} users, {accepted} accepted writes, {lost} lost records, {uncounted} \
             heads that do not match, {conflicts} false conflicts, {deaf} deaf devices"
        )
    }
}

/// One user.
#[derive(Debug)]
pub(crate) struct User {
    url: String,
    signer: Signer,
    pause: Duration,
    board: Arc<Board>,
    truth: Mutex<Truth>,
}

impl User {
    /// A new user.
    pub(crate) fn new(url: &str, pause: Duration, board: Arc<Board>) -> anyhow::Result<Self> {
        ensure!(!pause.is_zero(), "a load without pauses is no steady one");
        let (url, truth) = (url.to_owned(), Mutex::default());
        Ok(Self { url, signer: Signer::generate(), pause, board, truth })
    }

    fn device(&self) -> Result<Client, Error> {
        Client::lazy(&self.url, self.signer.clone(), Options::default())
    }

    fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes and watches until the end, then judges.
    pub(crate) async fn run(self) -> anyhow::Result<Verdict> {
        let (writer, watcher) = (self.device()?, self.device()?);
        let writes_then_settles = async {
            self.write(&writer).await;
            let end = Instant::now() + SETTLE;
            while self.truth().is_behind() && Instant::now() < end {
                tokio::time::sleep(LIST_AGAIN).await;
            }
        };
        tokio::select! {
            () = writes_then_settles => {}
            () = self.watch(&watcher) => {}
        }
        tokio::time::timeout(JUDGE, self.judge()).await.context("nobody answers a fresh device")?
    }

    async fn write(&self, client: &Client) {
        let mut last = Instant::now();
        for number in 0_u64.. {
            if self.board.stopped() {
                return;
            }
            let id = format!("record-{}", number % RECORDS);
            let data = format!("write {number}");
            let revision = self.truth().records.get(&id).map_or(0, |(revision, _)| *revision);
            let record = Record {
                id: id.clone(),
                revision,
                schema_version: "1.0.0".to_owned(),
                data: data.clone().into(),
            };
            match client.set_record(record).await {
                Ok(SetRecord::Stored { revision }) => {
                    self.board.acknowledged(last.elapsed());
                    last = Instant::now();
                    self.truth().stored(id, revision, data, Some(last));
                }
                Ok(SetRecord::Conflict { current }) => self.truth().conflict(&id, current),
                Err(error) => {
                    self.board.failed(&kind(&error));
                    self.truth().doubtful.entry(id).or_default().push(data);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(self.pause) => {}
                () = self.board.until_stopped() => {}
            }
        }
    }

    /// Lists when told to, for ever.
    async fn watch(&self, client: &Client) {
        let mut events = client.watch();
        let mut lost: Option<Instant> = None;
        while let Some(event) = events.next_event().await {
            match event {
                WatchEvent::Lost { error, .. } => {
                    if lost.is_none() {
                        lost = Some(Instant::now());
                        self.board.stream_lost(&kind(&error));
                    }
                    continue;
                }
                WatchEvent::Live => {
                    if let Some(since) = lost.take() {
                        self.board.stream_back(since.elapsed());
                    }
                }
                WatchEvent::Changed(_) => {}
            }
            while let Err(error) = self.list(client).await {
                self.board.failed(&kind(&error));
                tokio::time::sleep(LIST_AGAIN).await;
            }
        }
    }

    async fn list(&self, client: &Client) -> Result<(), Error> {
        let since = self.truth().seen;
        let mut pages = std::pin::pin!(client.changes_since(since));
        while let Some(page) = pages.try_next().await? {
            let newest = page.records.last().map_or(0, |record| record.revision);
            for delay in self.truth().seen_up_to(newest) {
                self.board.told(delay);
            }
        }
        Ok(())
    }

    /// Compares what a fresh device finds with what is known to be stored.
    async fn judge(&self) -> anyhow::Result<Verdict> {
        let client = self.device()?;
        let mut found = HashMap::new();
        let mut head = 0;
        loop {
            let pages: Result<Vec<_>, _> = client.changes_since(0).try_collect().await;
            match pages {
                Ok(pages) => {
                    for page in pages {
                        head = head.max(page.head_revision);
                        found.extend(page.records.into_iter().map(|r| (r.id.clone(), r)));
                    }
                    break;
                }
                Err(_) => tokio::time::sleep(LIST_AGAIN).await,
            }
        }
        let mut truth = self.truth();
        for record in found.values() {
            truth.conflict_free(record);
        }
        let lost = truth.records.iter().filter(|(id, (revision, data))| {
            found.get(*id).is_none_or(|record| record.revision != *revision || record.data != *data)
        });
        Ok(Verdict {
            users: 1,
            accepted: truth.accepted,
            lost: u64::try_from(lost.count()).unwrap_or(u64::MAX),
            uncounted: u64::from(head != truth.accepted),
            conflicts: truth.conflicts,
            deaf: u64::from(truth.is_behind()),
        })
    }
}

impl Truth {
    /// Whether the second device lacks something that was acknowledged.
    const fn is_behind(&self) -> bool {
        self.seen < self.head
    }

    fn stored(&mut self, id: String, revision: u64, data: String, acknowledged: Option<Instant>) {
        self.doubtful.remove(&id);
        self.records.insert(id, (revision, data));
        self.accepted += 1;
        self.head = self.head.max(revision);
        if let Some(at) = acknowledged
            && revision > self.seen
        {
            self.unseen.insert(revision, at);
        }
    }

    /// A conflict is right only after a write whose outcome was unknown.
    fn conflict(&mut self, id: &str, current: Option<Record>) {
        match current {
            Some(record) if self.is_doubtful(&record) => self.conflict_free(&record),
            _ => {
                self.conflicts += 1;
                self.records.remove(id);
            }
        }
    }

    fn is_doubtful(&self, record: &Record) -> bool {
        let data = self.doubtful.get(&record.id).map(Vec::as_slice).unwrap_or_default();
        data.iter().any(|data| record.data == *data)
    }

    /// Takes over a write whose outcome was unknown and that is found stored.
    fn conflict_free(&mut self, record: &Record) {
        if self.is_doubtful(record) {
            let data = String::from_utf8_lossy(&record.data).into_owned();
            self.stored(record.id.clone(), record.revision, data, None);
        }
    }

    /// The second device has everything up to `revision`: since when it could have known.
    fn seen_up_to(&mut self, revision: u64) -> Vec<Duration> {
        self.seen = self.seen.max(revision);
        let later = self.unseen.split_off(&(self.seen + 1));
        std::mem::replace(&mut self.unseen, later).values().map(Instant::elapsed).collect()
    }
}

/// An error by its kind, for counting.
fn kind(error: &Error) -> String {
    match error.status() {
        Some(status) => format!("{:?}: {}", status.code(), status.message()),
        None => error.to_string(),
    }
}
