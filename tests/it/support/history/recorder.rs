//! Writes down calls as they are made. What is dropped half-way is written down as unanswered.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use data_sync::{
    limits::RECORD_OVERHEAD_BYTES,
    proto::{self, SetRecordStatus},
};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::event::{
    Answer, Ended, Event, Fault, History, Instance, List, Listed, Listen, Lock, LockAction,
    LockReply, Locked, Nanos, Notified, Page, SCHEMA_VERSION, Send, Set, SetReply, Settings,
};

/// Where a tag lies in a record's data.
const TAG_BYTES: usize = 8;

/// A history that is being made. Cloning it is cheap.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    start: Instant,
    events: Arc<Mutex<Vec<Event>>>,
    next_tag: Arc<AtomicU64>,
    next_stream: Arc<AtomicU64>,
}

impl Recorder {
    /// Begins a history; its clock starts here.
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            events: Arc::default(),
            next_tag: Arc::new(AtomicU64::new(1)),
            next_stream: Arc::new(AtomicU64::new(1)),
        }
    }

    /// The history's time.
    pub(crate) fn now(&self) -> Nanos {
        nanos(self.start.elapsed())
    }

    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().expect("not poisoned")
    }

    /// Writes down an event.
    pub(crate) fn add(&self, event: Event) {
        self.events().push(event);
    }

    /// Writes down a fault that began at `from` and ends now.
    pub(crate) fn fault(&self, what: &str, from: Nanos, excuses_delay: bool) {
        let until = self.now();
        self.add(Event::Fault(Fault { what: what.to_owned(), from, until, excuses_delay }));
    }

    /// The history so far.
    pub(crate) fn history(&self, settings: Settings) -> History {
        History { settings, events: self.events().clone() }
    }

    /// Begins a write of `bytes` bytes of data (at least eight), with a tag of its own.
    pub(crate) fn set(&self, by: Instance, id: &str, base: u64, bytes: usize) -> SetOp {
        let tag = self.next_tag.fetch_add(1, Ordering::Relaxed);
        let bytes = bytes.max(TAG_BYTES);
        let set = Set {
            by,
            id: id.to_owned(),
            base,
            tag,
            bytes: bytes as u64,
            client_id: Some(by.client_id()),
            sends: Vec::new(),
        };
        SetOp { recorder: self.clone(), set }
    }

    /// Writes down a ListChanges while `call` makes it.
    pub(crate) async fn list(
        &self,
        by: Instance,
        since: u64,
        call: impl Future<Output = Result<proto::ListChangesReply, Status>>,
    ) -> Result<proto::ListChangesReply, Status> {
        let invoked = self.now();
        let answer = Answer::Unknown(DROPPED.to_owned());
        let mut open = Open::new(self, List { by, since, invoked, returned: None, answer });
        let result = call.await;
        let list = &mut open.call;
        list.returned = Some(self.now());
        list.answer = answer_of(&result, |reply| Page {
            records: reply.changes.iter().map(Listed::from).collect(),
            head: reply.head_revision,
            has_more: reply.has_more,
        });
        result
    }

    /// Writes down a SetLock while `call` makes it.
    pub(crate) async fn lock(
        &self,
        by: Instance,
        name: &str,
        holder: &str,
        action: LockAction,
        call: impl Future<Output = Result<proto::SetLockReply, Status>>,
    ) -> Result<proto::SetLockReply, Status> {
        let lock = Lock {
            by,
            name: name.to_owned(),
            holder: holder.to_owned(),
            action,
            invoked: self.now(),
            returned: None,
            answer: Answer::Unknown(DROPPED.to_owned()),
        };
        let mut open = Open::new(self, lock);
        let result = call.await;
        let lock = &mut open.call;
        lock.returned = Some(self.now());
        lock.answer = match &result {
            Err(status) if status.code() == Code::FailedPrecondition => Answer::Ok(LockReply::Held),
            Err(status) if quota(status).is_some() => Answer::Ok(LockReply::OverQuota),
            result => answer_of(result, |reply| match action {
                LockAction::Acquire { .. } => LockReply::Acquired(reply.fencing_token),
                LockAction::Release => LockReply::Released,
            }),
        };
        result
    }

    /// Writes down a GetLock while `call` makes it.
    pub(crate) async fn locked(
        &self,
        by: Instance,
        name: &str,
        call: impl Future<Output = Result<proto::GetLockReply, Status>>,
    ) -> Result<proto::GetLockReply, Status> {
        let (invoked, name) = (self.now(), name.to_owned());
        let answer = Answer::Unknown(DROPPED.to_owned());
        let mut open = Open::new(self, Locked { by, name, invoked, returned: None, answer });
        let result = call.await;
        open.call.returned = Some(self.now());
        open.call.answer = answer_of(&result, |reply| reply.locked);
        result
    }

    /// Begins a stream.
    pub(crate) fn listen(&self, by: Instance) -> Told {
        let stream = self.next_stream.fetch_add(1, Ordering::Relaxed);
        self.add(Event::Listen(Listen { by, stream, invoked: self.now() }));
        Told { recorder: self.clone(), stream, ended: false }
    }
}

const DROPPED: &str = "DROPPED";

pub(super) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).expect("a history of less than 500 years")
}

/// A call that is written down whatever becomes of it.
struct Open<C: Clone + Into<Event>> {
    recorder: Recorder,
    call: C,
}

impl<C: Clone + Into<Event>> Open<C> {
    fn new(recorder: &Recorder, call: C) -> Self {
        Self { recorder: recorder.clone(), call }
    }
}

impl<C: Clone + Into<Event>> Drop for Open<C> {
    fn drop(&mut self) {
        self.recorder.add(self.call.clone().into());
    }
}

impl From<List> for Event {
    fn from(list: List) -> Self {
        Self::List(list)
    }
}

impl From<Lock> for Event {
    fn from(lock: Lock) -> Self {
        Self::Lock(lock)
    }
}

impl From<Locked> for Event {
    fn from(locked: Locked) -> Self {
        Self::Locked(locked)
    }
}

/// A write that may be sent several times; written down when dropped.
#[derive(Debug)]
pub(crate) struct SetOp {
    recorder: Recorder,
    set: Set,
}

impl SetOp {
    /// The record to send.
    pub(crate) fn record(&self) -> proto::Record {
        let mut data = self.set.tag.to_be_bytes().to_vec();
        data.resize(usize::try_from(self.set.bytes).expect("fits"), 0);
        proto::Record {
            id: self.set.id.clone(),
            revision: self.set.base,
            schema_version: SCHEMA_VERSION.to_owned(),
            data: data.into(),
        }
    }

    /// The client id to send.
    pub(crate) fn client_id(&self) -> Option<String> {
        self.set.client_id.clone()
    }

    /// What is written, as a list would show it at `revision`.
    pub(crate) fn listed(&self, revision: u64) -> Listed {
        let Set { id, tag, bytes, .. } = &self.set;
        Listed { id: id.clone(), revision, tag: *tag, bytes: *bytes }
    }

    /// Writes down one send while `call` makes it.
    pub(crate) async fn send(
        &mut self,
        call: impl Future<Output = Result<proto::SetRecordReply, Status>>,
    ) -> Result<proto::SetRecordReply, Status> {
        let invoked = self.recorder.now();
        let answer = Answer::Unknown(DROPPED.to_owned());
        self.set.sends.push(Send { invoked, returned: None, answer });
        let result = call.await;
        let send = self.set.sends.last_mut().expect("just pushed");
        send.returned = Some(self.recorder.now());
        send.answer = match (&result, result.as_ref().err().and_then(quota)) {
            (_, Some(quota)) => Answer::Ok(SetReply::OverQuota(quota)),
            (result, None) => answer_of(result, |reply| match reply.status() {
                SetRecordStatus::Success => SetReply::Written(reply.new_revision),
                SetRecordStatus::Conflict => {
                    SetReply::Conflict(reply.current.as_ref().map(Listed::from))
                }
            }),
        };
        result
    }
}

impl Drop for SetOp {
    fn drop(&mut self) {
        if !self.set.sends.is_empty() {
            self.recorder.add(Event::Set(self.set.clone()));
        }
    }
}

/// A stream that is being written down. Dropping it means that the client hung up.
#[derive(Debug)]
pub(crate) struct Told {
    recorder: Recorder,
    stream: u64,
    ended: bool,
}

impl Told {
    /// A notification came.
    pub(crate) fn notified(&self, notification: &proto::Notification) {
        self.recorder.add(Event::Notified(Notified {
            stream: self.stream,
            at: self.recorder.now(),
            client_id: notification.client_id.clone(),
            revision: notification.revision,
        }));
    }

    /// The stream ended, or never began.
    pub(crate) fn ended(mut self, code: Code) {
        self.end(code_name(code));
    }

    fn end(&mut self, code: &str) {
        self.ended = true;
        let (stream, at) = (self.stream, self.recorder.now());
        self.recorder.add(Event::Ended(Ended { stream, at, code: code.to_owned() }));
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if !self.ended {
            self.end(DROPPED);
        }
    }
}

impl From<&proto::Record> for Listed {
    fn from(record: &proto::Record) -> Self {
        let tag = record.data.first_chunk::<TAG_BYTES>().map_or(0, |tag| u64::from_be_bytes(*tag));
        Self {
            id: record.id.clone(),
            revision: record.revision,
            tag,
            bytes: record.data.len() as u64,
        }
    }
}

impl Listed {
    /// What the record takes on a page, as the store counts it.
    pub(crate) fn page_bytes(&self) -> u64 {
        (self.id.len() + SCHEMA_VERSION.len() + RECORD_OVERHEAD_BYTES) as u64 + self.bytes
    }
}

fn answer_of<R, T>(result: &Result<R, Status>, ok: impl FnOnce(&R) -> T) -> Answer<T> {
    match result {
        Ok(reply) => Answer::Ok(ok(reply)),
        Err(status) if is_definite(status.code()) => {
            Answer::Refused(code_name(status.code()).to_owned())
        }
        Err(status) => Answer::Unknown(code_name(status.code()).to_owned()),
    }
}

/// Whether an error with this code promises that nothing was written.
const fn is_definite(code: Code) -> bool {
    !matches!(
        code,
        Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Internal
            | Code::Unavailable
    )
}

fn quota(status: &Status) -> Option<String> {
    let details = status.get_error_details();
    let violation = details.quota_failure()?.violations.first()?;
    Some(violation.subject.clone())
}

/// A code as the gRPC specification spells it.
pub(crate) const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
