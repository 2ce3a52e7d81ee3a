//! Requests of a run, made and signed ahead, so that signing is not what is measured.

use std::{collections::VecDeque, thread};

use bytes::Bytes;
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::SmallRng};
use uuid::Uuid;

use super::{
    plan::{Mix, Operation, Plan, Workload},
    users::Users,
};
use crate::{
    auth::signing::SignedRequest as _,
    clock::{Clock as _, SystemClock},
    proto::{GetLockRequest, ListChangesRequest, Record, SetLockRequest, SetRecordRequest},
};

/// Random bytes that record data is cut from, beyond the length of one record.
const CONTENT_POOL_BYTES: usize = 1024 * 1024;
/// Locks of each user that SetLock and GetLock work on.
const LOCKS_PER_USER: u64 = 8;
/// A revision that no user of a run reaches. The Go server keeps revisions in 32 bits.
const NOTHING_NEW_SINCE: u64 = 2_000_000_000;
/// The schema version of every record.
const SCHEMA_VERSION: &str = "1.0.0";

/// One call to make.
#[derive(Debug)]
pub(super) enum Job {
    Set(SetRecordRequest),
    /// Of the caller's own record; only the caller knows its revision.
    Update,
    List {
        request: ListChangesRequest,
        all: bool,
    },
    SetLock(SetLockRequest),
    GetLock(GetLockRequest),
}

impl Job {
    pub(super) const fn operation(&self) -> Operation {
        match self {
            Self::Set(_) => Operation::Set,
            Self::Update => Operation::Update,
            Self::List { all: true, .. } => Operation::ListAll,
            Self::List { all: false, .. } => Operation::ListNew,
            Self::SetLock(_) => Operation::SetLock,
            Self::GetLock(_) => Operation::GetLock,
        }
    }
}

/// Makes the calls of a run, each from its number alone.
#[derive(Debug)]
pub(super) struct JobMaker {
    pub(super) users: Users,
    mix: Mix,
    content: Bytes,
    record_bytes: usize,
    seed: u64,
    /// Sets new records apart from those of earlier runs of the same users.
    run: u32,
}

impl JobMaker {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut content = vec![0; CONTENT_POOL_BYTES + plan.record_bytes];
        SmallRng::seed_from_u64(plan.seed).fill_bytes(&mut content);
        let mix = match &plan.workload {
            Workload::Calls(mix) => mix.clone(),
            Workload::Listen(_) => Mix::usual(),
        };
        Self {
            users: Users::new(plan.seed, plan.users),
            mix,
            content: content.into(),
            record_bytes: plan.record_bytes,
            seed: plan.seed,
            run: rand::random(),
        }
    }

    /// Makes calls number `first` and up, on all cores.
    pub(super) fn make_all(&self, first: u64, count: u64) -> Vec<Job> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let cores = u64::try_from(cores).unwrap_or(1);
        let share = count.div_ceil(cores);
        let shares = (0..cores).map(|core| first + core * share..first + (core + 1) * share);
        let shares = shares.map(|range| range.start..range.end.min(first + count));
        thread::scope(|scope| {
            let makers: Vec<_> = shares
                .map(|range| scope.spawn(|| range.map(|n| self.make(n)).collect::<Vec<_>>()))
                .collect();
            makers.into_iter().flat_map(|maker| maker.join().unwrap_or_default()).collect()
        })
    }

    /// Makes call number `number`.
    fn make(&self, number: u64) -> Job {
        let mut rng = SmallRng::seed_from_u64(self.seed.wrapping_add(number));
        let user = rng.random_range(0..self.users.len());
        match self.mix.at(rng.random_range(0..self.mix.total())) {
            Operation::Set => {
                let id = self.own(&format!("set-{number}"));
                Job::Set(self.set_record(user, id, 0, number, None))
            }
            Operation::Update => Job::Update,
            Operation::ListAll => Job::List { request: self.list_changes(user, 0), all: true },
            Operation::ListNew => {
                Job::List { request: self.list_changes(user, NOTHING_NEW_SINCE), all: false }
            }
            Operation::SetLock => Job::SetLock(self.set_lock(user, &mut rng)),
            Operation::GetLock => Job::GetLock(self.get_lock(user, &mut rng)),
        }
    }

    /// A signed write. `number` chooses the data.
    pub(super) fn set_record(
        &self,
        user: usize,
        id: String,
        base_revision: u64,
        number: u64,
        client_id: Option<String>,
    ) -> SetRecordRequest {
        // A step that shares no factor with the pool's length visits every offset.
        let pool = CONTENT_POOL_BYTES as u64;
        let offset = usize::try_from(number.wrapping_mul(4_099) % pool).unwrap_or(0);
        let mut request = SetRecordRequest {
            record: Some(Record {
                id,
                revision: base_revision,
                schema_version: SCHEMA_VERSION.to_owned(),
                data: self.content.slice(offset..offset + self.record_bytes),
            }),
            request_time: request_time(),
            client_id,
            ..SetRecordRequest::default()
        };
        request.sign(self.users.key(user));
        request
    }

    fn list_changes(&self, user: usize, since_revision: u64) -> ListChangesRequest {
        let mut request = ListChangesRequest {
            since_revision,
            request_time: request_time(),
            signature: String::new(),
        };
        request.sign(self.users.key(user));
        request
    }

    /// Takes or releases one of the user's locks, always for the same holder.
    fn set_lock(&self, user: usize, rng: &mut SmallRng) -> SetLockRequest {
        let lock = rng.random_range(0..LOCKS_PER_USER);
        let mut request = SetLockRequest {
            lock_name: lock_name(lock),
            instance_id: Uuid::from_u64_pair(self.seed, lock).to_string(),
            acquire: rng.random(),
            exclusive: true,
            ttl_seconds: None,
            request_time: request_time(),
            signature: String::new(),
        };
        request.sign(self.users.key(user));
        request
    }

    fn get_lock(&self, user: usize, rng: &mut SmallRng) -> GetLockRequest {
        let mut request = GetLockRequest {
            lock_name: lock_name(rng.random_range(0..LOCKS_PER_USER)),
            request_time: request_time(),
            signature: String::new(),
        };
        request.sign(self.users.key(user));
        request
    }

    /// A record id that no earlier run used.
    pub(super) fn own(&self, name: &str) -> String {
        format!("{name}-{:08x}", self.run)
    }
}

fn lock_name(lock: u64) -> String {
    format!("bench-{lock}")
}

/// The present, as requests carry it.
pub(super) fn request_time() -> u32 {
    u32::try_from(SystemClock.now_seconds()).unwrap_or(u32::MAX)
}

/// A record that one caller alone updates, with the updates signed ahead for the revisions that
/// will follow if nobody else writes for this user.
#[derive(Debug)]
pub(super) struct UpdateChain {
    caller: usize,
    revision: u64,
    /// New ids taken, each after a conflict.
    renewals: u64,
    updates: u64,
    ahead: VecDeque<SetRecordRequest>,
}

impl UpdateChain {
    /// The chain of a caller; its user is the one with the caller's number.
    pub(super) const fn new(caller: usize) -> Self {
        Self { caller, revision: 0, renewals: 0, updates: 0, ahead: VecDeque::new() }
    }

    /// Signs the next `count` updates anew.
    pub(super) fn sign_ahead(&mut self, maker: &JobMaker, count: u64) {
        // The first revision of a record cannot be foreseen: others write for this user too.
        let count = if self.revision == 0 { 0 } else { count };
        let sign = |n| self.sign(maker, self.revision + n, self.updates + n);
        self.ahead = (0..count).map(sign).collect();
    }

    /// The next update: the one signed ahead if its revision came true.
    pub(super) fn next(&mut self, maker: &JobMaker) -> SetRecordRequest {
        let revision = self.revision;
        let ready = self.ahead.pop_front().filter(|request| {
            request.record.as_ref().is_some_and(|record| record.revision == revision)
        });
        let request = ready.unwrap_or_else(|| {
            self.ahead.clear();
            self.sign(maker, revision, self.updates)
        });
        self.updates += 1;
        request
    }

    /// The record is now at `revision`.
    pub(super) const fn written(&mut self, revision: u64) {
        self.revision = revision;
    }

    /// The record is at a revision that this caller does not know: goes on with a new record.
    pub(super) fn lost(&mut self) {
        self.renewals += 1;
        self.revision = 0;
        self.ahead.clear();
    }

    fn sign(&self, maker: &JobMaker, base: u64, number: u64) -> SetRecordRequest {
        let id = maker.own(&format!("own-{}-{}", self.caller, self.renewals));
        maker.set_record(self.caller, id, base, number, None)
    }
}
