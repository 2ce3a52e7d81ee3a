//! The steps of the hot path, each as something that can be done again and again.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use data_sync::{
    auth::{signature::recover, signing::SignedRequest as _},
    notify::{Change, Hub, Subscription},
    proto::{
        ListChangesReply, ListChangesRequest, Record, SetRecordReply, SetRecordRequest,
        syncer_server::Syncer as _,
    },
    service::SyncService,
    store::UserId,
    telemetry::metrics::Metrics,
};
use prost::Message as _;
use secp256k1::SecretKey;
use tokio::runtime::Runtime;
use tonic::Request;

#[path = "in_memory.rs"]
mod in_memory;

const NOW_SECONDS: u32 = 1_700_000_000;
const SMALL_RECORD_BYTES: usize = 1_024;
const LARGE_RECORD_BYTES: usize = 65_536;
const PAGE_RECORDS: u64 = 100;

/// One step, prepared: each call does it once.
pub(crate) type Step = Box<dyn FnMut()>;
type Prepare = fn() -> Step;

/// Every step by its name.
pub(crate) const STEPS: [(&str, Prepare); 13] = [
    ("decode a write of 1 KiB", || decode(SMALL_RECORD_BYTES)),
    ("decode a write of 64 KiB", || decode(LARGE_RECORD_BYTES)),
    ("digest a write of 1 KiB", || digest(SMALL_RECORD_BYTES)),
    ("digest a write of 64 KiB", || digest(LARGE_RECORD_BYTES)),
    ("recover the signer of a write of 1 KiB", recover_signer),
    ("sign a write of 1 KiB", sign),
    ("encode a page of 100 records", encode_page),
    ("serve a write of 1 KiB", || serve_write(SMALL_RECORD_BYTES)),
    ("serve a write of 64 KiB", || serve_write(LARGE_RECORD_BYTES)),
    ("serve a list with nothing new", serve_list),
    ("tell 1 stream", || tell(1)),
    ("tell 1000 streams of a user", || tell(1_000)),
    ("open and close a subscription", subscribe),
];

fn key() -> SecretKey {
    SecretKey::from_secret_bytes([7; 32]).expect("a number far below the curve's order")
}

fn write(bytes: usize) -> SetRecordRequest {
    let mut request = SetRecordRequest {
        record: Some(Record {
            id: "f3b1c2d4-0000-4000-8000-000000000001".to_owned(),
            revision: 0,
            schema_version: "1.0.0".to_owned(),
            data: (0..bytes).map(|index| index.to_le_bytes()[0]).collect(),
        }),
        request_time: NOW_SECONDS,
        client_id: Some("7f1c5a52-3d0f-4e6c-8f0e-0d8a1b2c3d4e".to_owned()),
        ..SetRecordRequest::default()
    };
    request.sign(&key());
    request
}

fn decode(bytes: usize) -> Step {
    let encoded = Bytes::from(write(bytes).encode_to_vec());
    Box::new(move || {
        let request = SetRecordRequest::decode(encoded.clone()).expect("valid");
        std::hint::black_box(request);
    })
}

fn digest(bytes: usize) -> Step {
    let request = write(bytes);
    Box::new(move || {
        std::hint::black_box(request.digest());
    })
}

fn recover_signer() -> Step {
    let request = write(SMALL_RECORD_BYTES);
    Box::new(move || {
        std::hint::black_box(recover(&request).expect("valid"));
    })
}

fn sign() -> Step {
    let (mut request, key) = (write(SMALL_RECORD_BYTES), key());
    Box::new(move || {
        request.sign(&key);
        std::hint::black_box(&request);
    })
}

fn encode_page() -> Step {
    let record = write(SMALL_RECORD_BYTES).record.expect("set above");
    let changes = (1..=PAGE_RECORDS).map(|revision| Record { revision, ..record.clone() });
    let page = ListChangesReply { changes: changes.collect(), ..ListChangesReply::default() };
    Box::new(move || {
        std::hint::black_box(page.encode_to_vec());
    })
}

/// From the message's bytes to the reply's: decode, validate, verify, store, encode. The store is
/// the one in memory and the write a repeat, so that neither disk nor growth is measured.
fn serve_write(bytes: usize) -> Step {
    let encoded = Bytes::from(write(bytes).encode_to_vec());
    let (runtime, service) = (runtime(), service());
    Box::new(move || {
        let request = SetRecordRequest::decode(encoded.clone()).expect("valid");
        let reply = runtime.block_on(service.set_record(Request::new(request))).expect("accepted");
        let reply: SetRecordReply = reply.into_inner();
        assert_eq!(reply.new_revision, 1);
        std::hint::black_box(reply.encode_to_vec());
    })
}

fn serve_list() -> Step {
    let (runtime, service) = (runtime(), service());
    let mut request = ListChangesRequest { request_time: NOW_SECONDS, ..Default::default() };
    request.sign(&key());
    let encoded = Bytes::from(request.encode_to_vec());
    Box::new(move || {
        let request = ListChangesRequest::decode(encoded.clone()).expect("valid");
        let reply = runtime.block_on(service.list_changes(Request::new(request))).expect("valid");
        std::hint::black_box(reply.into_inner().encode_to_vec());
    })
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

fn service() -> SyncService {
    in_memory::service(Arc::new(Metrics::new()), NOW_SECONDS, Duration::from_secs(10))
}

fn user() -> UserId {
    UserId::new(key().public_key().serialize())
}

/// A change is announced and every stream takes its hint.
fn tell(streams: usize) -> Step {
    let (hub, runtime, user) = (Arc::new(Hub::new()), runtime(), user());
    let mut subscriptions: Vec<Subscription> = (0..streams).map(|_| hub.subscribe(user)).collect();
    let client_id: Arc<str> = "7f1c5a52-3d0f-4e6c-8f0e-0d8a1b2c3d4e".into();
    let mut revision = 0;
    Box::new(move || {
        revision += 1;
        let client_id = Some(Arc::clone(&client_id));
        hub.announce(&Change { user, from: revision, to: revision, client_id });
        runtime.block_on(async {
            for subscription in &mut subscriptions {
                std::hint::black_box(subscription.next().await);
            }
        });
    })
}

fn subscribe() -> Step {
    let (hub, user) = (Arc::new(Hub::new()), user());
    Box::new(move || {
        std::hint::black_box(hub.subscribe(user));
    })
}
