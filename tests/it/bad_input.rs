//! What a caller may not send: a clear status, nothing written, nothing logged, nothing broken.

use data_sync::{
    auth::signing::SignedRequest as _,
    proto::{
        GetLockRequest, ListChangesRequest, ListenChangesRequest, Record, SetLockRequest,
        SetRecordRequest,
    },
};
use http::uri::PathAndQuery;
use prost::{Message, bytes::Bytes};
use tonic::{Code, Request, Status, client::Grpc};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;

use crate::support::{
    client::{Wallet, channel, fresh_key, now},
    engine::{Engine, Fixture, on_both_engines},
    wait::within,
};

on_both_engines!(
    every_limit_is_refused_one_beyond_its_edge_and_named,
    signatures_that_are_none_are_unauthenticated,
    a_lock_signature_is_no_record_signature,
    odd_revisions_are_answered_not_refused,
    odd_texts_are_stored_as_they_are,
);

/// The violated fields of a refusal.
fn violated(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().expect("a reason").reason, "INVALID_REQUEST");
    let bad_request = details.bad_request().expect("field violations");
    bad_request.field_violations.iter().map(|violation| violation.field.clone()).collect()
}

async fn every_limit_is_refused_one_beyond_its_edge_and_named(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;

    let record = |edit: fn(&mut Record)| {
        let mut request = wallet.set_request("a", 0, b"x");
        edit(request.record.as_mut().expect("set above"));
        wallet.signed(request)
    };
    let edge = wallet.send_set(record(|record| {
        record.id = "i".repeat(64);
        record.schema_version = "v".repeat(15);
        record.data = vec![0; 65_536].into();
    }));
    edge.await.expect("at the edge");
    let refusals: [(SetRecordRequest, &str); 8] = [
        (record(|record| record.id = "i".repeat(65)), "record.id"),
        (record(|record| record.id = "a\0b".to_owned()), "record.id"),
        (record(|record| record.data = vec![0; 65_537].into()), "record.data"),
        (record(|record| record.schema_version = "v".repeat(16)), "record.schema_version"),
        (record(|record| record.schema_version = "true-false".to_owned()), "record.schema_version"),
        (SetRecordRequest { record: None, ..wallet.set_request("a", 0, b"x") }, "record"),
        (SetRecordRequest { request_time: 0, ..wallet.set_request("a", 0, b"x") }, "request_time"),
        (
            SetRecordRequest { request_time: now() + 330, ..wallet.set_request("a", 0, b"x") },
            "request_time",
        ),
    ];
    for (request, field) in refusals {
        let status = wallet.send_set(request).await.expect_err(field);
        assert_eq!(violated(&status), [field]);
    }

    let lock = |edit: fn(&mut SetLockRequest)| {
        let mut request = wallet.lock_request("lock", true, true, None);
        edit(&mut request);
        wallet.signed(request)
    };
    let refusals: [(SetLockRequest, &str); 6] = [
        (lock(|lock| lock.lock_name.clear()), "lock_name"),
        (lock(|lock| lock.lock_name = "l".repeat(257)), "lock_name"),
        (lock(|lock| lock.lock_name = "l\0".to_owned()), "lock_name"),
        (lock(|lock| lock.instance_id = "not a uuid".to_owned()), "instance_id"),
        (lock(|lock| lock.ttl_seconds = Some(0)), "ttl_seconds"),
        (lock(|lock| lock.request_time = 1), "request_time"),
    ];
    for (request, field) in refusals {
        let status = within("SetLock", wallet.raw().set_lock(request)).await.expect_err(field);
        assert_eq!(violated(&status), [field]);
    }
    assert_eq!(wallet.list(0).await.expect("lists").head_revision, 1, "nothing else was written");
}

async fn signatures_that_are_none_are_unauthenticated(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let valid = wallet.set_request("a", 0, b"x");
    let uncompressed = format!("d{}", &valid.signature[1..]).replacen('d', "y", 1);
    let signatures = [
        String::new(),
        valid.signature[..103].to_owned(),
        format!("{}y", valid.signature),
        valid.signature.to_uppercase(),
        valid.signature.replacen(&valid.signature[50..51], "0", 1),
        "y".repeat(104),
        "9".repeat(104),
        uncompressed,
        "y".repeat(65_536),
        "é".repeat(52),
    ];
    for signature in signatures {
        let request = SetRecordRequest { signature: signature.clone(), ..valid.clone() };
        let status = wallet.send_set(request).await.expect_err("no signature");
        assert_eq!(status.code(), Code::Unauthenticated, "{signature}");
        let shown = &signature[..signature.len().min(20)];
        assert!(signature.is_empty() || !server.log().contains(shown), "a signature was logged");
    }
    let mut raw = wallet.raw();
    let request = ListChangesRequest { request_time: now(), ..Default::default() };
    let status = within("ListChanges", raw.list_changes(request)).await.expect_err("unsigned");
    assert_eq!(status.code(), Code::Unauthenticated);
    let request = ListenChangesRequest { request_time: now(), ..Default::default() };
    let status = within("ListenChanges", raw.listen_changes(request)).await.expect_err("unsigned");
    assert_eq!(status.code(), Code::Unauthenticated);
    let request =
        GetLockRequest { lock_name: "lock".to_owned(), request_time: now(), ..Default::default() };
    let status = within("GetLock", raw.get_lock(request)).await.expect_err("unsigned");
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(wallet.list(0).await.expect("lists").head_revision, 0, "nothing was written");
}

async fn a_lock_signature_is_no_record_signature(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    // The two signed texts are the same bytes: a lock's that reads as a record's.
    let lock = wallet.signed(SetLockRequest {
        lock_name: "lock".to_owned(),
        instance_id: "aaaaaaaa-bbbb-4ccc-8ddd-123456789012".to_owned(),
        acquire: true,
        exclusive: false,
        request_time: now(),
        ..Default::default()
    });
    let forged = SetRecordRequest {
        record: Some(Record {
            id: "lock-aaaaaaaa-bbbb-4ccc".to_owned(),
            data: Bytes::from_static(&[0x8d, 0xdd]),
            revision: 123_456_789_012,
            schema_version: "true-false".to_owned(),
        }),
        request_time: lock.request_time,
        signature: lock.signature.clone(),
        ..Default::default()
    };
    assert_eq!(forged.digest(), lock.digest());
    let status = wallet.send_set(forged).await.expect_err("refused");
    assert_eq!(violated(&status), ["record.schema_version"]);
    assert_eq!(wallet.list(0).await.expect("lists").head_revision, 0);
}

async fn odd_revisions_are_answered_not_refused(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    wallet.must_set("held", 0, b"x").await;
    for revision in [1 << 31, 1 << 63, u64::MAX] {
        assert!(wallet.list(revision).await.expect("an empty list").changes.is_empty());
        let reply = wallet.set("held", revision, b"y").await.expect("a conflict");
        assert_eq!(reply.new_revision, 0);
        wallet.must_set(&format!("absent {revision}"), revision, b"y").await;
    }
}

async fn odd_texts_are_stored_as_they_are(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let ids = [
        "'; drop table records; --",
        "\u{1}\u{7f}\r\n\t",
        "\u{feff}\u{202e}",
        "%s{}\\",
        "\u{10ffff}",
    ];
    for id in ids {
        wallet.must_set(id, 0, id.as_bytes()).await;
    }
    let listed: Vec<String> = wallet.list_all().await.into_iter().map(|record| record.id).collect();
    assert_eq!(listed, ids);
}

/// A message of any bytes.
#[derive(Clone, PartialEq, Message)]
struct Bad {
    #[prost(bytes = "vec", tag = "2047")]
    padding: Vec<u8>,
    /// Where the contract has a string.
    #[prost(bytes = "vec", tag = "3")]
    text: Vec<u8>,
}

/// Calls a method with a message that the contract does not know.
async fn call_raw(wallet_address: std::net::SocketAddr, method: &str, message: Bad) -> Status {
    let mut grpc = Grpc::new(channel(wallet_address).await);
    grpc.ready().await.expect("connected");
    let path = PathAndQuery::try_from(format!("/sync.Syncer/{method}")).expect("a path");
    let codec: ProstCodec<Bad, Bad> = ProstCodec::default();
    let call = grpc.unary(Request::new(message), path, codec);
    within(method, call).await.expect_err("refused")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_codec_refuses_has_the_right_code() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.serve();
    let oversize = Bad { padding: vec![0; 256 * 1024], text: Vec::new() };
    let status = call_raw(server.grpc, "ListChanges", oversize).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let not_utf8 = Bad { padding: Vec::new(), text: vec![0xff, 0xfe] };
    let status = call_raw(server.grpc, "ListChanges", not_utf8).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let status = call_raw(server.grpc, "NoSuchMethod", Bad::default()).await;
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_fields_are_skipped() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let server = fixture.serve();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let request = wallet.signed(ListChangesRequest { request_time: now(), ..Default::default() });
    let mut bytes = request.encode_to_vec();
    bytes.extend(Bad { padding: vec![1, 2, 3], text: Vec::new() }.encode_to_vec());
    let mut grpc = Grpc::new(channel(server.grpc).await);
    grpc.ready().await.expect("connected");
    let path = PathAndQuery::from_static("/sync.Syncer/ListChanges");
    let codec: ProstCodec<RawBytes, RawBytes> = ProstCodec::default();
    within("ListChanges", grpc.unary(Request::new(RawBytes(bytes)), path, codec))
        .await
        .expect("accepted");
}

/// Bytes that are a message already.
#[derive(Debug, Default)]
struct RawBytes(Vec<u8>);

impl Message for RawBytes {
    fn encode_raw(&self, buffer: &mut impl prost::bytes::BufMut) {
        buffer.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: prost::encoding::WireType,
        buffer: &mut impl prost::bytes::Buf,
        context: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        prost::encoding::skip_field(wire_type, tag, buffer, context)
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}
