//! Signed calls as a wallet makes them, by the generated client alone: no code of ours but the
//! signature lies between a test and the wire.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use data_sync::{
    auth::signing::SignedRequest,
    proto::{
        GetLockRequest, ListChangesReply, ListChangesRequest, ListenChangesRequest, Notification,
        Record, SetLockReply, SetLockRequest, SetRecordReply, SetRecordRequest, SetRecordStatus,
        syncer_client::SyncerClient,
    },
    store::UserId,
};
use secp256k1::SecretKey;
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

use super::wait::within;

/// Seconds since 1970-01-01 UTC, as a request carries them.
#[allow(clippy::disallowed_methods, reason = "tests play clients, which have clocks of their own")]
pub(crate) fn now() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u32::try_from(now.as_secs()).expect("before 2106")
}

/// A key that no other test uses.
pub(crate) fn fresh_key() -> SecretKey {
    let mut bytes = [0x22; 32];
    bytes[..16].copy_from_slice(Uuid::new_v4().as_bytes());
    SecretKey::from_secret_bytes(bytes).expect("below the order")
}

/// Opens a connection of its own to `address`.
pub(crate) async fn channel(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a URL");
    within("connecting", endpoint.connect_timeout(Duration::from_secs(5)).connect())
        .await
        .expect("the server accepts connections")
}

/// One instance of an app: a key, a connection, a client id.
#[derive(Debug, Clone)]
pub(crate) struct Wallet {
    rpc: SyncerClient<Channel>,
    key: SecretKey,
    /// Sent with writes and used as the holder of locks.
    pub(crate) instance: Uuid,
}

impl Wallet {
    /// An instance with a connection of its own.
    pub(crate) async fn connect(address: SocketAddr, key: SecretKey) -> Self {
        Self::on(channel(address).await, key)
    }

    /// An instance on a connection that others use too.
    pub(crate) fn on(channel: Channel, key: SecretKey) -> Self {
        let rpc = SyncerClient::new(channel).max_decoding_message_size(4 * 1024 * 1024);
        Self { rpc, key, instance: Uuid::new_v4() }
    }

    /// The same instance over a connection to another address.
    pub(crate) async fn connected_to(&self, address: SocketAddr) -> Self {
        Self { instance: self.instance, ..Self::connect(address, self.key).await }
    }

    /// Another instance of the same user on the same connection.
    pub(crate) fn sibling(&self) -> Self {
        Self { instance: Uuid::new_v4(), ..self.clone() }
    }

    /// Whose instance it is.
    pub(crate) fn user(&self) -> UserId {
        UserId::new(self.key.public_key().serialize())
    }

    /// The client without signatures, for malformed calls.
    pub(crate) fn raw(&self) -> SyncerClient<Channel> {
        self.rpc.clone()
    }

    /// Signs a request with this instance's key.
    pub(crate) fn signed<R: SignedRequest>(&self, mut request: R) -> R {
        request.sign(&self.key);
        request
    }

    /// The signed request that [`Self::set`] sends.
    pub(crate) fn set_request(&self, id: &str, base: u64, data: &[u8]) -> SetRecordRequest {
        self.signed(SetRecordRequest {
            record: Some(Record {
                id: id.to_owned(),
                revision: base,
                schema_version: "1.0.0".to_owned(),
                data: data.to_vec().into(),
            }),
            request_time: now(),
            client_id: Some(self.instance.to_string()),
            ..Default::default()
        })
    }

    /// Writes a record on a base revision.
    pub(crate) async fn set(
        &self,
        id: &str,
        base: u64,
        data: &[u8],
    ) -> Result<SetRecordReply, Status> {
        self.send_set(self.set_request(id, base, data)).await
    }

    /// Sends a request as it is.
    pub(crate) async fn send_set(
        &self,
        request: SetRecordRequest,
    ) -> Result<SetRecordReply, Status> {
        within("SetRecord", self.raw().set_record(request)).await.map(tonic::Response::into_inner)
    }

    /// Writes a record that must be accepted; its revision.
    pub(crate) async fn must_set(&self, id: &str, base: u64, data: &[u8]) -> u64 {
        let reply = self.set(id, base, data).await.expect("SetRecord answers");
        assert_eq!(reply.status(), SetRecordStatus::Success);
        reply.new_revision
    }

    /// Lists one page.
    pub(crate) async fn list(&self, since: u64) -> Result<ListChangesReply, Status> {
        let request = self.signed(ListChangesRequest {
            since_revision: since,
            request_time: now(),
            ..Default::default()
        });
        within("ListChanges", self.raw().list_changes(request))
            .await
            .map(tonic::Response::into_inner)
    }

    /// Every record of the user, page by page.
    pub(crate) async fn list_all(&self) -> Vec<Record> {
        let mut records: Vec<Record> = Vec::new();
        loop {
            let since = records.last().map_or(0, |record| record.revision);
            let page = self.list(since).await.expect("ListChanges answers");
            records.extend(page.changes);
            if !page.has_more {
                return records;
            }
        }
    }

    /// Opens a stream.
    pub(crate) async fn listen(&self) -> Result<Streaming<Notification>, Status> {
        let request =
            self.signed(ListenChangesRequest { request_time: now(), ..Default::default() });
        within("ListenChanges", self.raw().listen_changes(request))
            .await
            .map(tonic::Response::into_inner)
    }

    /// Opens a stream and takes the first, empty notification.
    pub(crate) async fn listening(&self) -> Streaming<Notification> {
        let mut stream = self.listen().await.expect("ListenChanges answers");
        assert_eq!(next(&mut stream).await, Notification::default());
        stream
    }

    /// The signed request that [`Self::lock`] and [`Self::unlock`] send.
    pub(crate) fn lock_request(
        &self,
        name: &str,
        acquire: bool,
        exclusive: bool,
        ttl_seconds: Option<u32>,
    ) -> SetLockRequest {
        self.signed(SetLockRequest {
            lock_name: name.to_owned(),
            instance_id: self.instance.to_string(),
            acquire,
            exclusive,
            ttl_seconds,
            request_time: now(),
            ..Default::default()
        })
    }

    /// Takes a lock.
    pub(crate) async fn lock(
        &self,
        name: &str,
        exclusive: bool,
        ttl_seconds: Option<u32>,
    ) -> Result<SetLockReply, Status> {
        let request = self.lock_request(name, true, exclusive, ttl_seconds);
        within("SetLock", self.raw().set_lock(request)).await.map(tonic::Response::into_inner)
    }

    /// Releases a lock.
    pub(crate) async fn unlock(&self, name: &str) -> Result<SetLockReply, Status> {
        let request = self.lock_request(name, false, false, None);
        within("SetLock", self.raw().set_lock(request)).await.map(tonic::Response::into_inner)
    }

    /// The signed request that [`Self::locked`] sends.
    pub(crate) fn lock_query(&self, name: &str) -> GetLockRequest {
        self.signed(GetLockRequest {
            lock_name: name.to_owned(),
            request_time: now(),
            ..Default::default()
        })
    }

    /// Asks whether anybody holds a lock.
    pub(crate) async fn locked(&self, name: &str) -> Result<bool, Status> {
        let request = self.lock_query(name);
        let reply = within("GetLock", self.raw().get_lock(Request::new(request))).await;
        reply.map(|reply| reply.into_inner().locked)
    }
}

/// The next notification of a stream that must not end.
pub(crate) async fn next(stream: &mut Streaming<Notification>) -> Notification {
    within("a notification", stream.message()).await.expect("no error").expect("no end")
}

/// The status that ends a stream.
pub(crate) async fn end(stream: &mut Streaming<Notification>) -> Status {
    loop {
        match within("the end of the stream", stream.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a stream must not end with status OK"),
            Err(status) => return status,
        }
    }
}
