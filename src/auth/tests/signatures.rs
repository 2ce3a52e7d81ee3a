//! Signatures against vectors of the original's libraries and against a second implementation.

use k256::ecdsa::{RecoveryId, Signature as OtherSignature, SigningKey, VerifyingKey};
use proptest::prelude::*;
use secp256k1::SecretKey;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{
    auth::{
        signature::{SignatureError, recover},
        signing::{SignatureFormatError, SignedRequest, decode, encode},
    },
    limits::MAX_RECORD_DATA_BYTES,
    proto::{
        GetLockRequest, ListChangesRequest, ListenChangesRequest, Record, SetLockRequest,
        SetRecordRequest,
    },
};

const ALPHABET: &[u8; 32] = b"ybndrfg8ejkmcpqxot1uwisza345h769";

#[derive(Deserialize)]
struct Vectors {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    rpc: String,
    private_key_hex: String,
    user_id_hex: String,
    fields: serde_json::Value,
    signed_text_hex: String,
    digest_hex: String,
    compact_signature_hex: String,
    signature: String,
}

fn hex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).expect("hex")
}

/// 65 bytes in zbase32, written a second time: five bits at a time.
fn zbase32(bytes: &[u8]) -> String {
    let bit = |at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    let digits = (0..bytes.len() * 8 / 5).map(|digit| {
        let value = (0..5).fold(0, |value, at| value << 1 | bit(5 * digit + at));
        char::from(ALPHABET[usize::from(value)])
    });
    digits.collect()
}

fn double_sha256(text: &[u8]) -> [u8; 32] {
    let prefixed = [b"realtimesync:", text].concat();
    Sha256::digest(Sha256::digest(prefixed)).into()
}

impl Vector {
    fn text(&self, field: &str) -> String {
        self.fields[field].as_str().expect("a text").to_owned()
    }

    fn flag(&self, field: &str) -> bool {
        self.fields[field].as_bool().expect("a flag")
    }

    fn number(&self, field: &str) -> u64 {
        self.fields[field].as_u64().expect("a number")
    }

    fn time(&self) -> u32 {
        self.number("request_time").try_into().expect("32 bits")
    }

    /// The data, given whole or as one byte many times.
    fn data(&self) -> Vec<u8> {
        let Some(repeat) = self.fields.get("data_repeat") else {
            return hex(&self.text("data_hex"));
        };
        let byte = hex(repeat["byte_hex"].as_str().expect("a byte"));
        byte.repeat(repeat["count"].as_u64().expect("a number").try_into().expect("a size"))
    }

    fn check(&self) {
        let (request_time, signature) = (self.time(), self.signature.clone());
        match self.rpc.as_str() {
            "SetRecord" => self.check_request(SetRecordRequest {
                record: Some(Record {
                    id: self.text("id"),
                    revision: self.number("revision"),
                    schema_version: self.text("schema_version"),
                    data: self.data().into(),
                }),
                request_time,
                signature,
                ..Default::default()
            }),
            "ListChanges" => self.check_request(ListChangesRequest {
                since_revision: self.number("since_revision"),
                request_time,
                signature,
            }),
            "ListenChanges" => self.check_request(ListenChangesRequest { request_time, signature }),
            "SetLock" => self.check_request(SetLockRequest {
                lock_name: self.text("lock_name"),
                instance_id: self.text("instance_id"),
                acquire: self.flag("acquire"),
                exclusive: self.flag("exclusive"),
                request_time,
                signature,
                ..Default::default()
            }),
            "GetLock" => self.check_request(GetLockRequest {
                lock_name: self.text("lock_name"),
                request_time,
                signature,
            }),
            other => unreachable!("{other} is no RPC"),
        }
    }

    fn check_request<R: SignedRequest>(&self, mut request: R) {
        let name = &self.name;
        let digest: [u8; 32] = hex(&self.digest_hex).try_into().expect("32 bytes");
        // Left out where it is long.
        if !self.signed_text_hex.is_empty() {
            assert_eq!(double_sha256(&hex(&self.signed_text_hex)), digest, "{name}: its digest");
        }
        assert_eq!(request.digest(), digest, "{name}: our digest");
        let compact = hex(&self.compact_signature_hex);
        assert_eq!(zbase32(&compact), self.signature, "{name}: the vector's signature");
        let decoded = decode(&self.signature).expect("a signature");
        assert_eq!(encode(&decoded), self.signature, "{name}: there and back");
        let (user, signed) = recover(&request).expect("a user");
        assert_eq!((user.to_hex(), signed.0), (self.user_id_hex.clone(), digest), "{name}");

        let key = hex(&self.private_key_hex).try_into().expect("32 bytes");
        request.sign(&SecretKey::from_secret_bytes(key).expect("a key"));
        assert_eq!(request.signature(), self.signature, "{name}: our signature");
    }
}

#[test]
fn every_vector_of_the_original_is_reproduced() {
    let text = include_str!("../../../tests/golden/vectors.json");
    let Vectors { vectors } = serde_json::from_str(text).expect("vectors");
    vectors.iter().for_each(Vector::check);
    let has = |rpc: &str| vectors.iter().any(|vector| vector.rpc == rpc);
    assert!(
        ["SetRecord", "ListChanges", "ListenChanges", "SetLock", "GetLock"].into_iter().all(has)
    );
}

fn secret(byte: u8) -> SecretKey {
    SecretKey::from_secret_bytes([byte; 32]).expect("a key")
}

fn signed() -> ListChangesRequest {
    let mut request = ListChangesRequest {
        since_revision: 5,
        request_time: 1_700_000_000,
        signature: String::new(),
    };
    request.sign(&secret(1));
    request
}

/// The 65 bytes of a signature as sent.
fn bytes_of(signature: &str) -> [u8; 65] {
    let (id, numbers) = decode(signature).expect("a signature").serialize_compact();
    let mut bytes = [31 + id.to_u8(); 65];
    bytes[1..].copy_from_slice(&numbers);
    assert_eq!(zbase32(&bytes), signature);
    bytes
}

#[test]
fn only_104_characters_of_the_alphabet_are_a_signature() {
    let good = signed().signature;
    let end = good.len() - 1;
    for text in [
        String::new(),
        good[..end].to_owned(),
        format!("{good}y"),
        format!("{good}="),
        format!(" {good}"),
        "y".repeat(64 * 1024),
        "é".repeat(64 * 1024),
    ] {
        assert_eq!(decode(&text), Err(SignatureFormatError::Length), "{}", text.len());
    }
    for text in [
        good.to_uppercase(),
        format!("{}0", &good[..end]),
        format!("{}l", &good[..end]),
        format!("{}v", &good[..end]),
        format!("{}2", &good[..end]),
        format!("{}=", &good[..end]),
        format!("{}\n", &good[..end]),
        format!("{}é", &good[..end - 1]),
        "\0".repeat(104),
    ] {
        assert_eq!(text.len(), 104);
        assert_eq!(decode(&text), Err(SignatureFormatError::Alphabet), "{text:?}");
    }
}

#[test]
fn only_headers_of_compressed_keys_are_taken() {
    let mut bytes = bytes_of(&signed().signature);
    for header in 0..=u8::MAX {
        bytes[0] = header;
        let decoded = decode(&zbase32(&bytes));
        if (31..=34).contains(&header) {
            assert!(decoded.is_ok(), "{header}");
        } else {
            assert_eq!(decoded, Err(SignatureFormatError::Header), "{header}");
        }
    }
}

/// The order of the curve's group.
const ORDER: &str = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";

#[test]
fn numbers_out_of_range_name_nobody() {
    let good = bytes_of(&signed().signature);
    let refused = |change: &dyn Fn(&mut [u8; 65])| {
        let mut bytes = good;
        change(&mut bytes);
        let request = ListChangesRequest { signature: zbase32(&bytes), ..signed() };
        recover(&request).expect_err("refused")
    };
    let order: [u8; 32] = hex(ORDER).try_into().expect("32 bytes");
    let range = SignatureError::Format(SignatureFormatError::Range);
    assert_eq!(refused(&|bytes| bytes[1..33].copy_from_slice(&order)), range);
    assert_eq!(refused(&|bytes| bytes[33..].copy_from_slice(&order)), range);
    assert_eq!(refused(&|bytes| bytes[1..].fill(0xff)), range);
    assert_eq!(refused(&|bytes| bytes[1..33].fill(0)), SignatureError::Unrecoverable, "r is 0");
    assert_eq!(refused(&|bytes| bytes[33..].fill(0)), SignatureError::Unrecoverable, "s is 0");
    let header = SignatureError::Format(SignatureFormatError::Header);
    assert_eq!(refused(&|bytes| bytes.fill(0)), header, "all zero");
    // r would have to be above the order: true of about one signature in 2^128.
    assert_eq!(refused(&|bytes| bytes[0] = 33), SignatureError::Unrecoverable);
}

#[test]
fn a_high_s_names_the_same_user() {
    let low = signed();
    let bytes = bytes_of(&low.signature);
    let other = OtherSignature::from_slice(&bytes[1..]).expect("in range");
    let (r, s) = other.split_scalars();
    let high = OtherSignature::from_scalars(r, -s).expect("in range");
    assert_eq!(high.normalize_s(), other, "it was low before");
    let mut bytes = bytes;
    bytes[0] = 31 + ((bytes[0] - 31) ^ 1);
    bytes[1..].copy_from_slice(&high.to_bytes());
    let flipped = ListChangesRequest { signature: zbase32(&bytes), ..low.clone() };
    assert_ne!(flipped.signature, low.signature);
    assert_eq!(recover(&flipped), recover(&low));
}

#[test]
fn a_signature_over_other_bytes_names_another_user() {
    let request = signed();
    let later = ListChangesRequest { request_time: request.request_time + 1, ..request.clone() };
    let user = |request: &ListChangesRequest| recover(request).map(|(user, _)| user);
    assert_ne!(user(&later), user(&request));
}

/// Any request, with the text that it signs written a second time.
fn requests() -> impl Strategy<Value = (AnyRequest, Vec<u8>)> {
    let data = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..200),
        // About the hasher's chunk of 2,048 bytes.
        1 => prop::collection::vec(any::<u8>(), 2_040..2_060),
        1 => (any::<u8>(), Just(MAX_RECORD_DATA_BYTES)).prop_map(|(byte, size)| vec![byte; size]),
    ];
    let set = (any::<String>(), data, any::<u64>(), any::<String>(), any::<u32>());
    let lock = (any::<String>(), any::<String>(), any::<bool>(), any::<bool>(), any::<u32>());
    prop_oneof![
        set.prop_map(|(id, data, revision, schema_version, request_time)| {
            let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
            let text = format!("{id}-{hex}-{revision}-{schema_version}-{request_time}");
            let record = Some(Record { id, revision, schema_version, data: data.into() });
            let request = SetRecordRequest { record, request_time, ..Default::default() };
            (AnyRequest::SetRecord(request), text.into_bytes())
        }),
        lock.prop_map(|(lock_name, instance_id, acquire, exclusive, request_time)| {
            let flags = format!("{}-{}", ["false", "true"][usize::from(acquire)], exclusive);
            let text = format!("{lock_name}-{instance_id}-{flags}-{request_time}");
            let request = SetLockRequest {
                lock_name,
                instance_id,
                acquire,
                exclusive,
                request_time,
                ..Default::default()
            };
            (AnyRequest::SetLock(request), text.into_bytes())
        }),
        (any::<u64>(), any::<u32>()).prop_map(|(since_revision, request_time)| {
            let text = format!("{since_revision}-{request_time}");
            let request = ListChangesRequest { since_revision, request_time, ..Default::default() };
            (AnyRequest::ListChanges(request), text.into_bytes())
        }),
        (any::<String>(), any::<u32>()).prop_map(|(lock_name, request_time)| {
            let text = format!("{lock_name}-{request_time}");
            let request = GetLockRequest { lock_name, request_time, ..Default::default() };
            (AnyRequest::GetLock(request), text.into_bytes())
        }),
        any::<u32>().prop_map(|request_time| {
            let request = ListenChangesRequest { request_time, ..Default::default() };
            (AnyRequest::ListenChanges(request), request_time.to_string().into_bytes())
        }),
    ]
}

#[derive(Debug, Clone)]
enum AnyRequest {
    SetRecord(SetRecordRequest),
    ListChanges(ListChangesRequest),
    ListenChanges(ListenChangesRequest),
    SetLock(SetLockRequest),
    GetLock(GetLockRequest),
}

fn agrees<R: SignedRequest>(mut request: R, text: &[u8], key: [u8; 32]) {
    let digest = double_sha256(text);
    assert_eq!(request.digest(), digest, "digest of {text:?}");
    let Ok(ours) = SecretKey::from_secret_bytes(key) else { return };
    let theirs = SigningKey::from_slice(&key).expect("a key for both");
    let user = theirs.verifying_key().to_sec1_point(true);

    request.sign(&ours);
    let bytes = bytes_of(request.signature());
    let signature = OtherSignature::from_slice(&bytes[1..]).expect("in range");
    let id = RecoveryId::from_byte(bytes[0] - 31).expect("0 to 3");
    let found = VerifyingKey::recover_from_prehash(&digest, &signature, id).expect("a key");
    assert_eq!(&found, theirs.verifying_key(), "ours, recovered there");

    let (signature, id) = theirs.sign_prehash_recoverable(&digest);
    let bytes = [&[31 + id.to_byte()], &signature.to_bytes()[..]].concat();
    request.set_signature(zbase32(&bytes));
    let (found, signed) = recover(&request).expect("a user");
    assert_eq!(found.as_bytes()[..], *user.as_bytes(), "theirs, recovered here");
    assert_eq!(signed.0, digest);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn two_implementations_agree_on_every_request(
        (request, text) in requests(),
        key in any::<[u8; 32]>(),
    ) {
        match request {
            AnyRequest::SetRecord(request) => agrees(request, &text, key),
            AnyRequest::ListChanges(request) => agrees(request, &text, key),
            AnyRequest::ListenChanges(request) => agrees(request, &text, key),
            AnyRequest::SetLock(request) => agrees(request, &text, key),
            AnyRequest::GetLock(request) => agrees(request, &text, key),
        }
    }

    #[test]
    fn any_text_is_a_signature_or_refused(text in "[a-z0-9]{104}|.{0,200}") {
        let request = ListenChangesRequest { request_time: 1, signature: text.clone() };
        if let Ok(signature) = decode(&text) {
            prop_assert_eq!(encode(&signature), text, "one signature has one spelling");
        }
        let _ = recover(&request);
    }
}
