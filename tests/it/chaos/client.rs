//! A client that meets failing replicas: it tries another one, and writes everything down.

use std::{
    collections::BTreeMap,
    error::Error as _,
    future::Future,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use data_sync::{
    proto::{
        GetLockRequest, ListChangesReply, ListChangesRequest, ListenChangesRequest, SetLockRequest,
        SetRecordRequest, SetRecordStatus,
    },
    store::UserId,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use secp256k1::SecretKey;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

use super::site::Way;
use crate::support::{
    client::{Wallet, now},
    history::{ClientState, Instance, Listed, LockAction, Recorder, State},
    wait::PATIENCE,
};

/// A call without an answer is given up.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// A stream may open slowly while the database is away, but not for ever.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(8);
/// Records and locks that all clients of a user share.
const SHARED_IDS: u32 = 8;
const LOCKS: u32 = 3;

#[derive(Debug, Default)]
struct Held {
    records: BTreeMap<String, Listed>,
    cursor: u64,
}

/// One client instance.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) by: Instance,
    key: SecretKey,
    recorder: Recorder,
    way: Way,
    held: Mutex<Held>,
    /// Connections by address; a replica that is started again has another.
    channels: Mutex<BTreeMap<std::net::SocketAddr, Channel>>,
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    let given_up = |_| Err(Status::deadline_exceeded("given up"));
    let answer = timeout(limit, call).await.unwrap_or_else(given_up);
    answer.map(Response::into_inner).map_err(honest)
}

/// A connection that breaks leaves a status with a cause, of whatever code; it is not the
/// service's answer.
fn honest(status: Status) -> Status {
    if status.source().is_some() { Status::unavailable("the connection broke") } else { status }
}

impl Client {
    pub(super) fn new(by: Instance, key: SecretKey, recorder: &Recorder, way: Way) -> Self {
        let (held, channels) = (Mutex::default(), Mutex::default());
        Self { by, key, recorder: recorder.clone(), way, held, channels }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("not poisoned")
    }

    /// Whose client it is.
    pub(super) fn user(&self) -> UserId {
        UserId::new(self.key.public_key().serialize())
    }

    /// What it holds, in the checker's words.
    pub(super) fn state(&self) -> ClientState {
        let held = self.held();
        let records = held.records.values().cloned().collect();
        ClientState { by: self.by, cursor: held.cursor, records, complete: true }
    }

    /// A connection to any replica that is up.
    fn wallet(&self) -> Result<Wallet, Status> {
        let up: Vec<_> = self.way.lock().expect("not poisoned").iter().flatten().copied().collect();
        if up.is_empty() {
            return Err(Status::unavailable("no replica is up"));
        }
        let address = up[rand::random_range(0..up.len())];
        let mut channels = self.channels.lock().expect("not poisoned");
        channels.retain(|known, _| up.contains(known));
        let channel = channels.entry(address).or_insert_with(|| {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a URL");
            endpoint.connect_timeout(Duration::from_secs(1)).connect_lazy()
        });
        let mut wallet = Wallet::on(channel.clone(), self.key);
        wallet.instance = self.by.uuid();
        Ok(wallet)
    }

    async fn list(&self, since: u64) -> Result<ListChangesReply, Status> {
        let call = async {
            let wallet = self.wallet()?;
            let request = wallet.signed(ListChangesRequest {
                since_revision: since,
                request_time: now(),
                ..Default::default()
            });
            within(CALL_TIMEOUT, wallet.raw().list_changes(request)).await
        };
        self.recorder.list(self.by, since, call).await
    }

    /// Lists until there is no more, however often that takes.
    async fn pull(&self) {
        loop {
            let since = self.held().cursor;
            match self.list(since).await {
                Ok(page) => {
                    let mut held = self.held();
                    for record in page.changes.iter().map(Listed::from) {
                        held.cursor = held.cursor.max(record.revision);
                        held.take(record);
                    }
                    if !page.has_more {
                        return;
                    }
                }
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// Everything at the server, in ascending id, as one state without a cut.
    pub(super) async fn all(&self) -> State {
        let page = timeout(PATIENCE, async {
            loop {
                match self.list(0).await {
                    Ok(page) => return page,
                    Err(_) => sleep(Duration::from_millis(200)).await,
                }
            }
        });
        let page = page.await.expect("a healed site answers");
        let records = page.changes.iter().map(Listed::from).collect();
        let (user, at, head) = (self.by.user, self.recorder.now(), page.head_revision);
        State { user, at, head, records, counters: None }
    }

    /// Listens, and lists whenever told, for ever.
    pub(super) async fn listen(self: Arc<Self>) {
        loop {
            let told = self.recorder.listen(self.by);
            let opened = async {
                let wallet = self.wallet()?;
                let request = wallet
                    .signed(ListenChangesRequest { request_time: now(), ..Default::default() });
                within(LISTEN_TIMEOUT, wallet.raw().listen_changes(request)).await
            };
            let code = match opened.await {
                Err(status) => status.code(),
                Ok(mut stream) => loop {
                    match stream.message().await {
                        Ok(Some(notification)) => {
                            told.notified(&notification);
                            if notification.client_id != Some(self.by.client_id()) {
                                self.pull().await;
                            }
                        }
                        Ok(None) => break Code::Ok,
                        Err(status) => break honest(status).code(),
                    }
                },
            };
            told.ended(code);
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Writes, locks and looks, until told to stop; what it has begun it finishes.
    pub(super) async fn write(self: Arc<Self>, seed: u64, stop: CancellationToken) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut holder = Uuid::from_u128(rng.random());
        while !stop.is_cancelled() {
            sleep(Duration::from_millis(rng.random_range(5..150))).await;
            match rng.random_range(0..10) {
                0..7 => self.set(&mut rng).await,
                7..9 => {
                    if rng.random_bool(0.2) {
                        holder = Uuid::from_u128(rng.random());
                    }
                    self.lock(&mut rng, holder).await;
                }
                _ => self.locked(&mut rng).await,
            }
        }
    }

    async fn set(&self, rng: &mut StdRng) {
        let id = format!("record-{}", rng.random_range(0..SHARED_IDS));
        let base = self.held().records.get(&id).map_or(0, |held| held.revision);
        let mut op = self.recorder.set(self.by, &id, base, rng.random_range(8..400));
        let mut request: Option<SetRecordRequest> = None;
        for _ in 0..3 {
            let send = async {
                let wallet = self.wallet()?;
                let request = request.get_or_insert_with(|| {
                    let record = op.record();
                    wallet.set_request(&record.id, record.revision, &record.data)
                });
                Ok::<_, Status>((wallet, request.clone()))
            };
            let Ok((wallet, request)) = send.await else {
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            let sent = op.send(within(CALL_TIMEOUT, wallet.raw().set_record(request))).await;
            match sent {
                Ok(reply) if reply.status() == SetRecordStatus::Success => {
                    let listed = op.listed(reply.new_revision);
                    self.held().take(listed);
                    return;
                }
                // The listener will bring what was there before.
                Ok(_) => return,
                // Over quota: the same again cannot help.
                Err(status) if status.code() == Code::ResourceExhausted => return,
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
        // If it happened after all, its notification names this client and wakes nobody here.
        self.pull().await;
    }

    async fn lock(&self, rng: &mut StdRng, holder: Uuid) {
        let name = format!("lock-{}", rng.random_range(0..LOCKS));
        let (exclusive, seconds) = (rng.random_bool(0.7), rng.random_range(1..=3_u32));
        let acquire = rng.random_bool(0.6);
        let ttl = 1_000_000_000 * u64::from(seconds);
        let action =
            if acquire { LockAction::Acquire { exclusive, ttl } } else { LockAction::Release };
        let holder = holder.to_string();
        let call = async {
            let wallet = self.wallet()?;
            let request = wallet.signed(SetLockRequest {
                lock_name: name.clone(),
                instance_id: holder.clone(),
                acquire,
                exclusive,
                ttl_seconds: Some(seconds),
                request_time: now(),
                ..Default::default()
            });
            within(CALL_TIMEOUT, wallet.raw().set_lock(request)).await
        };
        // Refused or unanswered, the recorder has it.
        let _ = self.recorder.lock(self.by, &name, &holder, action, call).await;
    }

    async fn locked(&self, rng: &mut StdRng) {
        let name = format!("lock-{}", rng.random_range(0..LOCKS));
        let call = async {
            let wallet = self.wallet()?;
            let request = wallet.signed(GetLockRequest {
                lock_name: name.clone(),
                request_time: now(),
                ..Default::default()
            });
            within(CALL_TIMEOUT, wallet.raw().get_lock(request)).await
        };
        let _ = self.recorder.locked(self.by, &name, call).await;
    }
}

impl Held {
    fn take(&mut self, record: Listed) {
        let held = self.records.get(&record.id).map_or(0, |held| held.revision);
        if record.revision > held {
            self.records.insert(record.id.clone(), record);
        }
    }
}
