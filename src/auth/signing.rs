//! What a caller signs: one text a request, the same on both sides of the wire.
//!
//! The text joins the request's fields with `-`, in the Go server's notation: booleans as `true`
//! and `false`, data as lower-case hex. The digest is SHA-256 twice over
//! `"realtimesync:" + text`. Source: design §2, `tests/golden/vectors.json`.

use std::fmt::{self, Write as _};

use data_encoding::Encoding;
use secp256k1::{
    Message, SecretKey,
    ecdsa::{RecoverableSignature, RecoveryId},
};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{limits::SIGNATURE_TEXT_BYTES, proto};

/// Separates these signatures from any other use of the key.
const PREFIX: &[u8] = b"realtimesync:";
/// Compact recoverable signature: header, r, s.
const SIGNATURE_BYTES: usize = 65;
/// Header of recovery id 0 for a compressed key; ids 1 to 3 follow.
const COMPRESSED_HEADER: u8 = 31;
/// Bytes of data turned to hex at a time on the way into the hash: few, so that the buffer stays
/// in the first cache.
const HEX_CHUNK_BYTES: usize = 512;

/// Zooko's base 32 alphabet, most significant bit first. 65 bytes are exactly 104 characters.
fn zbase32() -> &'static Encoding {
    use std::sync::LazyLock;
    static ZBASE32: LazyLock<Encoding> = LazyLock::new(|| {
        let mut specification = data_encoding::Specification::new();
        specification.symbols.push_str("ybndrfg8ejkmcpqxot1uwisza345h769");
        #[allow(clippy::expect_used, reason = "the alphabet is fixed above")]
        specification.encoding().expect("32 distinct symbols")
    });
    &ZBASE32
}

/// Feeds text into a hash without building it first.
#[derive(Debug)]
pub struct TextHasher(Sha256);

impl TextHasher {
    fn new() -> Self {
        Self(Sha256::new_with_prefix(PREFIX))
    }

    /// Adds bytes as they are.
    fn raw(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Adds bytes as lower-case hex.
    fn hex(&mut self, bytes: &[u8]) {
        let mut buffer = [0_u8; 2 * HEX_CHUNK_BYTES];
        for chunk in bytes.chunks(HEX_CHUNK_BYTES) {
            let hex = &mut buffer[..2 * chunk.len()];
            #[allow(clippy::expect_used, reason = "the only error is a buffer too small")]
            const_hex::encode_to_slice(chunk, hex).expect("two characters a byte");
            self.0.update(hex);
        }
    }

    fn finish(self) -> [u8; 32] {
        Sha256::digest(self.0.finalize()).into()
    }
}

impl fmt::Write for TextHasher {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}

/// A request that carries a signature over some of its fields.
pub trait SignedRequest {
    /// Feeds the signed text.
    fn write_text(&self, text: &mut TextHasher);

    /// The signature as sent, in zbase32.
    fn signature(&self) -> &str;

    /// Puts a signature in place of the one that is there.
    fn set_signature(&mut self, signature: String);

    /// When the caller made the request, in seconds since 1970-01-01 UTC.
    fn request_time(&self) -> u32;

    /// The digest that the signature covers.
    fn digest(&self) -> [u8; 32] {
        let mut text = TextHasher::new();
        self.write_text(&mut text);
        text.finish()
    }

    /// Signs the request with `key`.
    fn sign(&mut self, key: &SecretKey) {
        let signature = encode(&RecoverableSignature::sign_ecdsa_recoverable(
            Message::from_digest(self.digest()),
            key,
        ));
        self.set_signature(signature);
    }
}

/// Ends the fields that every text ends with.
macro_rules! signature_fields {
    () => {
        fn signature(&self) -> &str {
            &self.signature
        }

        fn set_signature(&mut self, signature: String) {
            self.signature = signature;
        }

        fn request_time(&self) -> u32 {
            self.request_time
        }
    };
}

/// Writing into a hash cannot fail.
macro_rules! put {
    ($text:expr, $($format:tt)*) => {{
        let _ = write!($text, $($format)*);
    }};
}

impl SignedRequest for proto::SetRecordRequest {
    fn write_text(&self, text: &mut TextHasher) {
        let Some(record) = &self.record else { return };
        text.raw(record.id.as_bytes());
        text.raw(b"-");
        text.hex(&record.data);
        put!(text, "-{}-{}-{}", record.revision, record.schema_version, self.request_time);
    }

    signature_fields!();
}

impl SignedRequest for proto::ListChangesRequest {
    fn write_text(&self, text: &mut TextHasher) {
        put!(text, "{}-{}", self.since_revision, self.request_time);
    }

    signature_fields!();
}

impl SignedRequest for proto::ListenChangesRequest {
    fn write_text(&self, text: &mut TextHasher) {
        put!(text, "{}", self.request_time);
    }

    signature_fields!();
}

impl SignedRequest for proto::SetLockRequest {
    fn write_text(&self, text: &mut TextHasher) {
        put!(
            text,
            "{}-{}-{}-{}-{}",
            self.lock_name,
            self.instance_id,
            self.acquire,
            self.exclusive,
            self.request_time
        );
    }

    signature_fields!();
}

impl SignedRequest for proto::GetLockRequest {
    fn write_text(&self, text: &mut TextHasher) {
        put!(text, "{}-{}", self.lock_name, self.request_time);
    }

    signature_fields!();
}

/// Why a text is no signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SignatureFormatError {
    /// Not exactly 104 characters.
    #[error("a signature has 104 characters")]
    Length,
    /// A character outside the alphabet.
    #[error("a signature is written in zbase32")]
    Alphabet,
    /// A header other than 31 to 34: no compact signature for a compressed key.
    #[error("a signature begins with a header of 31 to 34")]
    Header,
    /// r or s is not a number below the group's order.
    #[error("the numbers of the signature are out of range")]
    Range,
}

/// Writes a signature as sent on the wire.
#[must_use]
pub fn encode(signature: &RecoverableSignature) -> String {
    let (recovery_id, numbers) = signature.serialize_compact();
    let mut bytes = [0; SIGNATURE_BYTES];
    bytes[0] = COMPRESSED_HEADER + recovery_id.to_u8();
    bytes[1..].copy_from_slice(&numbers);
    zbase32().encode(&bytes)
}

/// Reads a signature as sent on the wire.
///
/// # Errors
/// What the text lacks; whether it signs anything is not decided here.
pub fn decode(text: &str) -> Result<RecoverableSignature, SignatureFormatError> {
    if text.len() != SIGNATURE_TEXT_BYTES {
        return Err(SignatureFormatError::Length);
    }
    let mut bytes = [0; SIGNATURE_BYTES];
    zbase32()
        .decode_mut(text.as_bytes(), &mut bytes)
        .map_err(|_| SignatureFormatError::Alphabet)?;
    let [header, numbers @ ..] = bytes;
    let recovery_id = header
        .checked_sub(COMPRESSED_HEADER)
        .and_then(|id| RecoveryId::try_from(i32::from(id)).ok())
        .ok_or(SignatureFormatError::Header)?;
    RecoverableSignature::from_compact(&numbers, recovery_id)
        .map_err(|_| SignatureFormatError::Range)
}
