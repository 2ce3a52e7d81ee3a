//! What must hold for any bytes whatsoever, one check a fuzz target.
//!
//! The fuzz targets call these with whatever the fuzzer makes up; `tests/it/fuzz_corpus.rs` calls
//! them with the corpus kept in the repository, so that what was once found stays found.

use std::sync::{Arc, LazyLock};

use data_encoding::{BASE64, HEXLOWER};
use data_sync::{
    auth::{
        api_key::ApiKeys,
        revocation,
        signature::recover,
        signing::{self, SignedRequest},
    },
    clock::{Clock, ManualClock},
    proto::{
        GetLockRequest, ListChangesRequest, ListenChangesRequest, SetLockRequest, SetRecordRequest,
    },
};
use prost::Message;
use secp256k1::SecretKey;
use sha2::{Digest as _, Sha256};

mod service;

pub(crate) use service::{grpc_web, request};

/// What `tests/golden/api_keys.json` was made for.
const GOLDEN: &str = include_str!("../../tests/golden/api_keys.json");

fn key() -> SecretKey {
    SecretKey::from_secret_bytes([7; 32]).expect("a number far below the curve's order")
}

/// A text is either no signature, or the only text of the signature it is; recovering a user from
/// it may fail but never worse.
pub(crate) fn signature(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(signature) = signing::decode(text) {
        assert_eq!(signing::encode(&signature), text, "a signature has a second text");
    }
    let signature = text.to_owned();
    let request = ListenChangesRequest { request_time: 1_700_000_000, signature };
    if let Ok((user, digest)) = recover(&request) {
        assert_eq!(digest.0, request.digest());
        assert!(matches!(user.as_bytes()[0], 2 | 3), "a user is a compressed key");
    }
}

/// The streamed digest is that of the text as the Go server writes it, and a signature over it
/// recovers to its signer. The first byte chooses the RPC, the others are its request.
pub(crate) fn signed_text(input: &[u8]) {
    let Some((rpc, message)) = input.split_first() else { return };
    match rpc % 5 {
        0 => text_of::<SetRecordRequest>(message, |request| {
            request.record.as_ref().map_or_else(String::new, |record| {
                format!(
                    "{}-{}-{}-{}-{}",
                    record.id,
                    HEXLOWER.encode(&record.data),
                    record.revision,
                    record.schema_version,
                    request.request_time
                )
            })
        }),
        1 => text_of::<ListChangesRequest>(message, |request| {
            format!("{}-{}", request.since_revision, request.request_time)
        }),
        2 => text_of::<ListenChangesRequest>(message, |request| request.request_time.to_string()),
        3 => text_of::<SetLockRequest>(message, |request| {
            let SetLockRequest { lock_name, instance_id, acquire, exclusive, .. } = request;
            format!("{lock_name}-{instance_id}-{acquire}-{exclusive}-{}", request.request_time)
        }),
        _ => text_of::<GetLockRequest>(message, |request| {
            format!("{}-{}", request.lock_name, request.request_time)
        }),
    }
}

fn text_of<R: Message + SignedRequest + Default>(message: &[u8], text: impl Fn(&R) -> String) {
    let Ok(mut request) = R::decode(message) else { return };
    let once = Sha256::digest(format!("realtimesync:{}", text(&request)));
    let digest: [u8; 32] = Sha256::digest(once).into();
    assert_eq!(request.digest(), digest, "the streamed text differs from the written one");
    request.sign(&key());
    let (user, _) = recover(&request).expect("a signature just made");
    assert_eq!(user.as_bytes(), &key().public_key().serialize());
}

struct Golden {
    keys: Vec<ApiKeys>,
    /// The keys that some authority signed.
    known: Vec<Vec<u8>>,
}

static AUTHORITIES: LazyLock<Golden> = LazyLock::new(|| {
    let golden: serde_json::Value = serde_json::from_str(GOLDEN).expect("the corpus is JSON");
    let now = golden["now"].as_u64().expect("a time");
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(now * 1_000));
    let list = |name: &str| golden[name].as_array().cloned().unwrap_or_default();
    let der = |entry: &serde_json::Value| {
        BASE64.decode(entry["der"].as_str().unwrap_or_default().as_bytes()).unwrap_or_default()
    };
    let authorities = list("authorities");
    let keys = authorities
        .iter()
        .filter_map(|authority| ApiKeys::new(&der(authority), None, Arc::clone(&clock)).ok());
    Golden { keys: keys.collect(), known: list("keys").iter().map(der).collect() }
});

/// A header or a certificate is refused, or is one that an authority made; asking twice answers
/// the same.
pub(crate) fn api_key(input: &[u8]) {
    let encoded = format!("Bearer {}", BASE64.encode(input));
    for authorization in [input, encoded.as_bytes()] {
        for authority in &AUTHORITIES.keys {
            let first = authority.check(Some(authorization));
            let second = authority.check(Some(authorization));
            assert_eq!(first.is_ok(), second.is_ok(), "the second answer differs");
            if first.is_ok() {
                // Nobody can make a signature up. What follows it is not signed, and ignored.
                let token = authorization.strip_prefix(b"Bearer ").expect("the scheme");
                let der = loosely(token);
                let body = signed_part(&der).expect("an accepted certificate has a body");
                let genuine =
                    AUTHORITIES.known.iter().any(|known| signed_part(known) == Some(body));
                assert!(genuine, "a forged key");
            }
        }
    }
}

/// Base64 whose last bits may be anything, as the Go server reads it.
fn loosely(token: &[u8]) -> Vec<u8> {
    let mut specification = BASE64.specification();
    specification.check_trailing_bits = false;
    let encoding = specification.encoding().expect("standard base64");
    encoding.decode(token).unwrap_or_default()
}

/// The body of a certificate: the first element within the outermost one.
fn signed_part(der: &[u8]) -> Option<&[u8]> {
    let (header, _) = element(der)?;
    let within = &der[header..];
    let (header, length) = element(within)?;
    within.get(..header + length)
}

/// Bytes of a DER element's header and of its content.
fn element(der: &[u8]) -> Option<(usize, usize)> {
    let (&[_tag, first], rest) = der.split_first_chunk::<2>()?;
    let octets = usize::from(first).checked_sub(0x80);
    let Some(octets) = octets else { return Some((2, usize::from(first))) };
    let length = rest.get(..octets)?.iter().try_fold(0_usize, |length, octet| {
        length.checked_mul(256).map(|length| length + usize::from(*octet))
    });
    Some((2 + octets, length?))
}

/// A list is refused as a whole, or its entries are decimal numbers in their shortest form that
/// read back as themselves.
pub(crate) fn revocation_list(input: &[u8]) {
    let Ok(serials) = revocation::parse(input) else { return };
    for serial in &serials {
        let decimal = !serial.is_empty() && serial.bytes().all(|byte| byte.is_ascii_digit());
        assert!(decimal && (!serial.starts_with('0') || serial.len() == 1), "{serial:?}");
    }
    let joined = serials.iter().map(|serial| &**serial).collect::<Vec<_>>().join(",");
    let again = revocation::parse(joined.as_bytes()).expect("a list of its own entries");
    assert_eq!(again, serials);
}
