//! The library for applications.
//!
//! A [`Client`] speaks for one user. It signs, sets deadlines, and repeats what may be repeated;
//! [`Client::watch`] tells when to list changes again.
//!
//! ```no_run
//! # async fn example() -> Result<(), data_sync::client::Error> {
//! use data_sync::client::{Client, Options, Record, SetRecord, Signer};
//!
//! let signer = Signer::generate(); // keep its secret: it is the account
//! let client = Client::connect("https://sync.example.org", signer, Options::default()).await?;
//! let record = Record { id: "note-1".into(), data: "sealed".into(), ..Record::default() };
//! match client.set_record(record).await? {
//!     SetRecord::Stored { revision } => println!("stored as revision {revision}"),
//!     SetRecord::Conflict { current } => println!("merge with {current:?}, then set again"),
//! }
//! # Ok(())
//! # }
//! ```

use std::{fmt, future::Future, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use tokio::time::Instant;
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use uuid::Uuid;

use crate::{
    auth::signing::SignedRequest,
    clock::{Clock, SystemClock},
    limits,
    proto::{
        GetLockRequest, ListChangesRequest, SetLockRequest, SetRecordRequest, SetRecordStatus,
        syncer_client::SyncerClient,
    },
};

mod backoff;
mod error;
mod signer;
#[cfg(test)]
#[cfg(feature = "server")]
mod tests;
pub(crate) mod unsent;
mod watch;

use backoff::Backoff;
pub use error::Error;
pub use signer::{InvalidKey, Signer};
use unsent::until_sent;
pub use watch::{Watch, WatchEvent};

pub use crate::proto::{Notification, Record};

/// How a client connects and calls.
#[derive(Clone)]
pub struct Options {
    /// Names this running instance: it comes back in the notifications of its own writes.
    /// A random UUID by default.
    pub client_id: Option<String>,
    /// Sent as a bearer token with each call: base 64 of a DER certificate.
    pub api_key: Option<String>,
    /// Longest time of one call, all its attempts together.
    pub timeout: Duration,
    /// Longest time to make a connection.
    pub connect_timeout: Duration,
    /// Most attempts at one call, the first included; at least one is made.
    pub attempts: u32,
    /// PEM certificates of authorities to trust instead of the public ones.
    pub ca_pem: Option<Vec<u8>>,
    /// Tells the time of a request.
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            client_id: Some(Uuid::new_v4().to_string()),
            api_key: None,
            timeout: limits::CLIENT_CALL_TIMEOUT,
            connect_timeout: limits::CLIENT_CONNECT_TIMEOUT,
            attempts: limits::CLIENT_CALL_ATTEMPTS,
            ca_pem: None,
            clock: Arc::new(SystemClock),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("client_id", &self.client_id)
            .field("api_key", &self.api_key.as_ref().map(|_| "[redacted]"))
            .field("timeout", &self.timeout)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

/// The answer to [`Client::set_record`].
#[derive(Debug, Clone, PartialEq)]
pub enum SetRecord {
    /// Stored.
    Stored {
        /// The revision given to this write.
        revision: u64,
    },
    /// The server holds the record at another revision; nothing was written.
    Conflict {
        /// The record as the server holds it; servers before this one do not send it.
        current: Option<Record>,
    },
}

/// One page of changes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Changes {
    /// In ascending revision.
    pub records: Vec<Record>,
    /// More changes follow the last record of this page.
    pub has_more: bool,
    /// The user's newest revision when the page was read; 0 from servers before this one.
    pub head_revision: u64,
}

/// What to take a lock for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// 1 to 256 bytes.
    pub name: String,
    /// The holder; the same one may take the lock again, and only it can release it.
    pub instance: Uuid,
    /// Exclusive locks tolerate no other holder; shared ones tolerate each other.
    pub exclusive: bool,
    /// In whole seconds, from one second to five minutes; the server's 30 s where none is given.
    pub ttl: Option<Duration>,
}

/// The answer to [`Client::acquire_lock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcquireLock {
    /// The lock is held until it is released or expires.
    Acquired {
        /// Larger than that of every earlier holder; 0 from servers before this one.
        fencing_token: u64,
        /// Milliseconds since 1970-01-01 UTC on the server's clock; 0 from servers before this one.
        expires_at_ms: u64,
    },
    /// Another instance holds it.
    Held,
}

/// Speaks for one user. Cheap to clone; clones share one connection.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rpc: SyncerClient<Channel>,
    signer: Signer,
    authorization: Option<MetadataValue<Ascii>>,
    options: Options,
}

impl Client {
    /// Makes a connection to `url` (`http://` or `https://`) now.
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::ApiKey`] or [`Error::Connect`].
    pub async fn connect(url: &str, signer: Signer, options: Options) -> Result<Self, Error> {
        let channel = endpoint(url, &options)?
            .connect()
            .await
            .map_err(|source| Error::Connect { url: url.to_owned(), source })?;
        Self::over(channel, signer, options)
    }

    /// Makes the connection with the first call instead. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Address`] or [`Error::ApiKey`].
    pub fn lazy(url: &str, signer: Signer, options: Options) -> Result<Self, Error> {
        let channel = endpoint(url, &options)?.connect_lazy();
        Self::over(channel, signer, options)
    }

    fn over(channel: Channel, signer: Signer, options: Options) -> Result<Self, Error> {
        let authorization = options.api_key.as_deref().map(|key| {
            let mut value = MetadataValue::try_from(format!("Bearer {}", key.trim()))?;
            value.set_sensitive(true);
            Ok::<_, tonic::metadata::errors::InvalidMetadataValue>(value)
        });
        let authorization = authorization.transpose().map_err(|_| Error::ApiKey)?;
        let rpc = SyncerClient::new(channel);
        Ok(Self(Arc::new(Inner { rpc, signer, authorization, options })))
    }

    /// The user this client speaks for; see [`Signer::user_id`].
    #[must_use]
    pub fn user_id(&self) -> String {
        self.0.signer.user_id()
    }

    /// Stores `record`, if the server holds it at `record.revision` or not at all.
    ///
    /// # Errors
    /// [`Error::Rpc`]. After `UNAVAILABLE` and `DEADLINE_EXCEEDED` the write may have happened.
    pub async fn set_record(&self, record: Record) -> Result<SetRecord, Error> {
        let request = self.signed(SetRecordRequest {
            record: Some(record),
            request_time: self.request_time(),
            signature: String::new(),
            client_id: self.0.options.client_id.clone(),
            return_current: true,
        });
        // Repeated attempts send the same signed bytes: the server knows a write it has stored.
        let reply = self
            .call(&request, |mut rpc, request| async move { rpc.set_record(request).await })
            .await?;
        match SetRecordStatus::try_from(reply.status) {
            Ok(SetRecordStatus::Success) => Ok(SetRecord::Stored { revision: reply.new_revision }),
            Ok(SetRecordStatus::Conflict) => Ok(SetRecord::Conflict { current: reply.current }),
            Err(_) => Err(Error::Protocol("unknown status of a write")),
        }
    }

    /// Lists one page of the records that changed after revision `since`.
    ///
    /// # Errors
    /// [`Error::Rpc`].
    pub async fn list_changes(&self, since: u64) -> Result<Changes, Error> {
        let request = self.signed(ListChangesRequest {
            since_revision: since,
            request_time: self.request_time(),
            signature: String::new(),
        });
        let reply = self
            .call(&request, |mut rpc, request| async move { rpc.list_changes(request).await })
            .await?;
        Ok(Changes {
            records: reply.changes,
            has_more: reply.has_more,
            head_revision: reply.head_revision,
        })
    }

    /// Lists all records that changed after revision `since`, a page at a time. Ends after the
    /// last page or the first error.
    pub fn changes_since(
        &self,
        since: u64,
    ) -> impl Stream<Item = Result<Changes, Error>> + Send + use<> {
        stream::try_unfold((self.clone(), Some(since)), |(client, since)| async move {
            let Some(since) = since else { return Ok(None) };
            let page = client.list_changes(since).await?;
            let last = page.records.last().map_or(0, |record| record.revision);
            if page.has_more && last <= since {
                return Err(Error::Protocol("more changes without a revision to go on from"));
            }
            let next = page.has_more.then_some(last);
            Ok(Some((page, (client, next))))
        })
    }

    /// Tells when something of the user's changed, for as long as it is polled. See [`Watch`].
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch::new(self.clone())
    }

    /// Takes a lock, or takes it again with a new expiry or kind.
    ///
    /// # Errors
    /// [`Error::Rpc`].
    pub async fn acquire_lock(&self, lock: &Lock) -> Result<AcquireLock, Error> {
        // Rounded up, so that a lock never expires before its holder thinks it does.
        let ttl_seconds = lock.ttl.map(|ttl| {
            let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
            u32::try_from(seconds).unwrap_or(u32::MAX)
        });
        let request = self.signed(SetLockRequest {
            lock_name: lock.name.clone(),
            instance_id: lock.instance.to_string(),
            acquire: true,
            exclusive: lock.exclusive,
            ttl_seconds,
            request_time: self.request_time(),
            signature: String::new(),
        });
        let reply = self
            .call(&request, |mut rpc, request| async move { rpc.set_lock(request).await })
            .await;
        match reply {
            Ok(reply) => Ok(AcquireLock::Acquired {
                fencing_token: reply.fencing_token,
                expires_at_ms: reply.expires_at_ms,
            }),
            Err(Error::Rpc(status)) if status.code() == Code::FailedPrecondition => {
                Ok(AcquireLock::Held)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives a lock back; does nothing if `instance` does not hold it.
    ///
    /// # Errors
    /// [`Error::Rpc`].
    pub async fn release_lock(&self, name: &str, instance: Uuid) -> Result<(), Error> {
        let request = self.signed(SetLockRequest {
            lock_name: name.to_owned(),
            instance_id: instance.to_string(),
            acquire: false,
            exclusive: false,
            ttl_seconds: None,
            request_time: self.request_time(),
            signature: String::new(),
        });
        self.call(&request, |mut rpc, request| async move { rpc.set_lock(request).await }).await?;
        Ok(())
    }

    /// Tells whether any instance holds the lock, shared or exclusive.
    ///
    /// # Errors
    /// [`Error::Rpc`].
    pub async fn is_locked(&self, name: &str) -> Result<bool, Error> {
        let request = self.signed(GetLockRequest {
            lock_name: name.to_owned(),
            request_time: self.request_time(),
            signature: String::new(),
        });
        let reply = self
            .call(&request, |mut rpc, request| async move { rpc.get_lock(request).await })
            .await?;
        Ok(reply.locked)
    }

    fn request_time(&self) -> u32 {
        u32::try_from(self.0.options.clock.now_seconds()).unwrap_or(u32::MAX)
    }

    fn signed<R: SignedRequest>(&self, mut request: R) -> R {
        self.0.signer.sign(&mut request);
        request
    }

    /// Wraps a message with what every call carries.
    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.0.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        request
    }

    /// Sends `message` until it is answered, fails for good, or runs out of time or attempts.
    async fn call<M, Reply, Call, Answer>(&self, message: &M, call: Call) -> Result<Reply, Error>
    where
        M: Clone,
        Call: Fn(SyncerClient<Channel>, Request<M>) -> Answer,
        Answer: Future<Output = Result<Response<Reply>, Status>>,
    {
        let options = &self.0.options;
        let deadline = Instant::now() + options.timeout;
        let mut backoff = Backoff::new(limits::CLIENT_RETRY_PAUSE, limits::CLIENT_MAX_RETRY_PAUSE);
        let mut attempt = 1;
        loop {
            let answer = until_sent(|| {
                let mut request = self.request(message.clone());
                request.set_timeout(deadline.saturating_duration_since(Instant::now()));
                call(self.0.rpc.clone(), request)
            });
            let status = match tokio::time::timeout_at(deadline, answer).await {
                Ok(Ok(reply)) => return Ok(reply.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => return Err(timed_out(options.timeout)),
            };
            if Instant::now() >= deadline {
                return Err(timed_out(options.timeout));
            }
            let pause = backoff.next_pause().max(error::asked_pause(&status).unwrap_or_default());
            let goes_on = attempt < options.attempts
                && error::is_transient(&status)
                && Instant::now() + pause < deadline;
            if !goes_on {
                return Err(status.into());
            }
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }
}

fn timed_out(limit: Duration) -> Error {
    Status::deadline_exceeded(format!("no answer within {limit:?}")).into()
}

/// A connection that notices when its server is gone.
fn endpoint(url: &str, options: &Options) -> Result<Endpoint, Error> {
    let invalid = |source| Error::Address { url: url.to_owned(), source };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|source| invalid(Some(source)))?;
    let has_host = endpoint.uri().host().is_some();
    let endpoint = match endpoint.uri().scheme_str() {
        Some("http") if has_host => endpoint,
        Some("https") if has_host => {
            let tls = match &options.ca_pem {
                Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
                None => ClientTlsConfig::new().with_webpki_roots(),
            };
            endpoint.tls_config(tls).map_err(|source| invalid(Some(source)))?
        }
        _ => return Err(invalid(None)),
    };
    endpoint
        .user_agent(concat!("data-sync/", env!("CARGO_PKG_VERSION")))
        .map(|endpoint| {
            endpoint
                .connect_timeout(options.connect_timeout)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(limits::CLIENT_KEEPALIVE_INTERVAL)
                .keep_alive_timeout(limits::CLIENT_KEEPALIVE_TIMEOUT)
                .keep_alive_while_idle(true)
        })
        .map_err(|source| invalid(Some(source)))
}
