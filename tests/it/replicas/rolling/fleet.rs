//! Many devices that behave like the shipped clients: a connection each, one stream, one list for
//! every notification that is not their own, no jitter.

use std::{
    collections::BTreeMap,
    error::Error as _,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use data_sync::proto::{
    ListChangesRequest, ListenChangesRequest, Notification, Record, SetRecordStatus,
};
use futures_util::{StreamExt as _, stream};
use secp256k1::SecretKey;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming, transport::Endpoint};

use crate::support::{
    client::{Wallet, fresh_key, now},
    wait::{PATIENCE, within},
};

pub(super) const USERS: usize = 200;
const DEVICES_PER_USER: usize = 5;
pub(super) const DEVICES: usize = USERS * DEVICES_PER_USER;
/// Users whose first device writes, and its pause between two writes.
const WRITING_USERS: usize = 40;
const WRITE_PAUSE: Duration = Duration::from_millis(500);
/// Sends of one write until it counts as failed, and the pause between them.
const MAX_SENDS: u32 = 30;
const RESEND_PAUSE: Duration = Duration::from_millis(100);
/// One SDK listens again after a second, the other at once, and after three where that fails.
const CALM_PAUSE: Duration = Duration::from_secs(1);
const HASTY_PAUSE: Duration = Duration::from_secs(3);
/// Both ask the server whether it is there, and wait that long for the answer.
const PING: Duration = Duration::from_secs(5);
/// Longest time until all devices listen, on a machine that does other things too.
const OPENING: Duration = Duration::from_secs(60);
/// Users who are looked at the same time in the end.
const AUDITS: usize = 50;

/// Records by id, with their revision.
type Held = BTreeMap<String, u64>;

/// What all devices saw.
#[derive(Debug, Default)]
struct Seen {
    listening: AtomicUsize,
    acknowledged: AtomicUsize,
    resent: AtomicUsize,
    lists: AtomicUsize,
    /// When streams ended by the server's word.
    ends: Mutex<Vec<Instant>>,
    /// From the end of a stream to the first notification of the next.
    gaps: Mutex<Vec<Duration>>,
    /// What connections broke under, with how they did, and how often.
    broken: Mutex<BTreeMap<String, usize>>,
    /// What must not happen.
    faults: Mutex<Vec<String>>,
}

impl Seen {
    fn fault(&self, what: String) {
        self.faults.lock().expect("not poisoned").push(what);
    }

    /// A call or a stream failed. A status with a cause was made by the client: its connection
    /// broke or was about to be closed.
    fn failed(&self, what: &str, status: &Status) {
        if let Some(mut cause) = status.source() {
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            let how = format!("{what}: {cause}");
            *self.broken.lock().expect("not poisoned").entry(how).or_default() += 1;
        } else if status.code() != Code::Unavailable {
            self.fault(format!("{what}: {status:?}"));
        }
    }
}

/// One device.
#[derive(Debug)]
struct Device {
    wallet: Wallet,
    is_hasty: bool,
    /// Its cursor moves by lists only, which is what the more careful of the two does.
    held: Mutex<(u64, Held)>,
    seen: Arc<Seen>,
}

impl Device {
    fn new(balancer: SocketAddr, key: SecretKey, is_hasty: bool, seen: &Arc<Seen>) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{balancer}")).expect("a URL");
        let endpoint = endpoint
            .connect_timeout(PING)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .keep_alive_while_idle(true);
        let wallet = Wallet::on(endpoint.connect_lazy(), key);
        Self { wallet, is_hasty, held: Mutex::default(), seen: Arc::clone(seen) }
    }

    /// Listens for ever, as an app does that is open.
    async fn live(&self) {
        let mut ended: Option<Instant> = None;
        loop {
            match self.listen().await {
                Ok(mut stream) => {
                    let status = self.hear(&mut stream, &mut ended).await;
                    self.seen.failed("a stream", &status);
                    if status.source().is_none() {
                        self.seen.ends.lock().expect("not poisoned").push(Instant::now());
                    }
                    ended.get_or_insert_with(Instant::now);
                    if !self.is_hasty {
                        sleep(CALM_PAUSE).await;
                    }
                }
                Err(status) => {
                    self.seen.failed("ListenChanges", &status);
                    sleep(if self.is_hasty { HASTY_PAUSE } else { CALM_PAUSE }).await;
                }
            }
        }
    }

    async fn listen(&self) -> Result<Streaming<Notification>, Status> {
        let request = ListenChangesRequest { request_time: now(), ..Default::default() };
        let opened = self.wallet.raw().listen_changes(self.wallet.signed(request)).await;
        opened.map(tonic::Response::into_inner)
    }

    /// Hears a stream to its end, and lists whenever it is told of others.
    async fn hear(
        &self,
        stream: &mut Streaming<Notification>,
        ended: &mut Option<Instant>,
    ) -> Status {
        let mut is_live = false;
        let status = loop {
            match stream.message().await {
                Ok(Some(notification)) => {
                    if !is_live {
                        is_live = true;
                        self.seen.listening.fetch_add(1, Ordering::Relaxed);
                        let gap = ended.take().map(|ended| ended.elapsed());
                        self.seen.gaps.lock().expect("not poisoned").extend(gap);
                    }
                    if notification.client_id != Some(self.wallet.instance.to_string()) {
                        self.pull().await;
                    }
                }
                Ok(None) => break Status::ok("a stream must not end so"),
                Err(status) => break status,
            }
        };
        if is_live {
            self.seen.listening.fetch_sub(1, Ordering::Relaxed);
        }
        status
    }

    /// One list. Where it fails nothing is tried again: neither client does.
    async fn pull(&self) {
        let since_revision = self.held.lock().expect("not poisoned").0;
        let request =
            ListChangesRequest { since_revision, request_time: now(), ..Default::default() };
        match self.wallet.raw().list_changes(self.wallet.signed(request)).await {
            Ok(page) => {
                self.seen.lists.fetch_add(1, Ordering::Relaxed);
                let mut held = self.held.lock().expect("not poisoned");
                for Record { id, revision, .. } in page.into_inner().changes {
                    held.0 = held.0.max(revision);
                    held.1.insert(id, revision);
                }
            }
            Err(status) => self.seen.failed("ListChanges", &status),
        }
    }

    /// Writes new records until told to stop, each until it is acknowledged.
    async fn write(&self, stop: CancellationToken) -> Held {
        let mut acknowledged = Held::new();
        while stop.run_until_cancelled(sleep(WRITE_PAUSE)).await.is_some() {
            let id = format!("{}", acknowledged.len());
            match self.write_once(&id).await {
                Some(revision) => {
                    self.seen.acknowledged.fetch_add(1, Ordering::Relaxed);
                    self.held.lock().expect("not poisoned").1.insert(id.clone(), revision);
                    acknowledged.insert(id, revision);
                }
                None => return acknowledged,
            }
        }
        acknowledged
    }

    /// Sends one write until it is acknowledged; always the same request, so that it happens once.
    async fn write_once(&self, id: &str) -> Option<u64> {
        let request = self.wallet.set_request(id, 0, &[7; 300]);
        for _ in 0..MAX_SENDS {
            match self.wallet.raw().set_record(request.clone()).await {
                Ok(reply) if reply.get_ref().status() == SetRecordStatus::Success => {
                    return Some(reply.get_ref().new_revision);
                }
                Ok(reply) => {
                    self.seen.fault(format!("SetRecord {id}: {reply:?}"));
                    return None;
                }
                Err(status) => self.seen.failed("SetRecord", &status),
            }
            self.seen.resent.fetch_add(1, Ordering::Relaxed);
            sleep(RESEND_PAUSE).await;
        }
        self.seen.fault(format!("SetRecord {id} was never acknowledged"));
        None
    }
}

/// All devices.
pub(super) struct Fleet {
    users: Vec<Vec<Arc<Device>>>,
    seen: Arc<Seen>,
    living: JoinSet<()>,
    stop: CancellationToken,
    writing: Mutex<JoinSet<(usize, Held)>>,
    acknowledged: Mutex<BTreeMap<usize, Held>>,
}

impl Fleet {
    /// Starts all devices, and the writers among them.
    pub(super) fn start(balancer: SocketAddr) -> Self {
        let seen = Arc::new(Seen::default());
        let device = |key, number: usize| {
            Arc::new(Device::new(balancer, key, number.is_multiple_of(2), &seen))
        };
        let users: Vec<Vec<_>> = (0..USERS)
            .map(|_| {
                let key = fresh_key();
                (0..DEVICES_PER_USER).map(|number| device(key, number)).collect()
            })
            .collect();
        let (stop, mut living, mut writing) =
            (CancellationToken::new(), JoinSet::new(), JoinSet::new());
        for (number, device) in users.iter().flatten().cloned().enumerate() {
            living.spawn(async move {
                // Apps are not opened all in the same instant.
                sleep(Duration::from_millis(2) * u32::try_from(number).expect("few")).await;
                device.live().await;
            });
        }
        for (user, devices) in users.iter().enumerate().take(WRITING_USERS) {
            let (device, stop) = (Arc::clone(&devices[0]), stop.clone());
            writing.spawn(async move { (user, device.write(stop).await) });
        }
        let (writing, acknowledged) = (Mutex::new(writing), Mutex::default());
        Self { users, seen, living, stop, writing, acknowledged }
    }

    /// Waits until every device has a live stream.
    pub(super) async fn all_listen(&self) {
        let listening = || self.seen.listening.load(Ordering::Relaxed);
        let all = timeout(OPENING, async {
            while listening() < DEVICES {
                sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(all.await.is_ok(), "only {} of {DEVICES} devices listen", listening());
    }

    /// When streams ended by the server's word since `start`.
    pub(super) fn ends_since(&self, start: Instant) -> Vec<Instant> {
        let ends = self.seen.ends.lock().expect("not poisoned");
        ends.iter().copied().filter(|end| *end >= start).collect()
    }

    /// Ends the load; every write that was begun is finished.
    pub(super) async fn stop_writing(&self) {
        self.stop.cancel();
        let mut writing = std::mem::take(&mut *self.writing.lock().expect("not poisoned"));
        while let Some(ended) = within("the last writes", writing.join_next()).await {
            let (user, held) = ended.expect("no panic");
            self.acknowledged.lock().expect("not poisoned").insert(user, held);
        }
    }

    /// Waits until every device holds what the service holds, which is what was acknowledged.
    /// Returns how long it took.
    pub(super) async fn converge(&self, bound: Duration) -> Duration {
        let began = Instant::now();
        let audits =
            stream::iter(self.users.iter().enumerate()).map(|(user, devices)| async move {
                let records = devices[0].wallet.list_all().await;
                let held: Held = records.into_iter().map(|r| (r.id, r.revision)).collect();
                let acknowledged = self.acknowledged.lock().expect("not poisoned");
                assert_eq!(
                    acknowledged.get(&user).cloned().unwrap_or_default(),
                    held,
                    "user {user}"
                );
                (devices, held)
            });
        let audits: Vec<_> = audits.buffer_unordered(AUDITS).collect().await;
        let behind = || {
            let devices = audits.iter().flat_map(|(devices, held)| {
                devices.iter().filter(move |d| d.held.lock().expect("not poisoned").1 != *held)
            });
            devices.count()
        };
        let agreed = timeout(bound, async {
            while behind() > 0 {
                sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(agreed.await.is_ok(), "{} devices are behind", behind());
        began.elapsed()
    }

    /// Ends all devices; what they saw.
    pub(super) async fn finish(mut self) -> Report {
        self.living.shutdown().await;
        Report(self.seen)
    }
}

/// What a fleet saw.
pub(super) struct Report(Arc<Seen>);

impl Report {
    fn longest_gap(&self) -> Duration {
        self.0.gaps.lock().expect("not poisoned").iter().copied().max().unwrap_or_default()
    }

    /// Nothing happened that must not happen.
    pub(super) fn assert_sound(&self) {
        let faults = self.0.faults.lock().expect("not poisoned");
        assert!(faults.is_empty(), "{} faults, such as {:#?}", faults.len(), faults.last());
        assert!(self.longest_gap() < PATIENCE, "a device was deaf for {:?}", self.longest_gap());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let seen = &self.0;
        write!(
            f,
            "{} writes acknowledged ({} sent again), {} lists, {} streams ended and were opened \
             anew, the longest gap {:.1?}, connections broke under {:?}, {} faults",
            count(&seen.acknowledged),
            count(&seen.resent),
            count(&seen.lists),
            seen.ends.lock().expect("not poisoned").len(),
            self.longest_gap(),
            seen.broken.lock().expect("not poisoned"),
            seen.faults.lock().expect("not poisoned").len(),
        )
    }
}
