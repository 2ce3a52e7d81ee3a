//! Reads X.509 certificates and decides which of them an authority has made into API keys.
//!
//! The measure is Go's `x509.Certificate.Verify` with the authority as only root, no
//! intermediates, and a chain of exactly two: that is what live callers were admitted by.
//! `rustls-webpki` refuses version-1 certificates and leaves marked as authorities, `x509-cert`
//! refuses serial numbers over 20 bytes, and neither can be told otherwise; so the structure is
//! read here, and only the signatures are left to a library. `tests/golden/api_keys.json` holds
//! Go's verdicts, among them one for every single-bit change of whole certificates.
//!
//! Stricter than Go on purpose:
//! - ECDSA with SHA-512, and authorities with P-224, P-521 or RSA keys under 2,048 bits, which
//!   *ring* does not check; such an authority is refused at start;
//! - names (DNS, e-mail, URI, IP) in a key whose authority has name constraints, and any key that
//!   has name constraints of its own: constraints are not evaluated;
//! - URIs among the alternative names that are not in plain form.
//!
//! More lenient in one point: the key's own public key, which is never used, may lie off its
//! curve, if an authority signs such a thing.

use std::borrow::Cow;

use thiserror::Error;

mod authority;
mod der;
mod extensions;
mod key;
mod name;
mod time;

pub use authority::CaError;
pub(super) use authority::{Authority, Refusal};
use der::{Reader, SEQUENCE, context, context_constructed};
use extensions::Extensions;
use key::{Algorithm, PublicKey};

/// The part of a certificate that could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("malformed {0}")]
pub struct Malformed(pub(super) &'static str);

/// A certificate as far as it matters here.
#[derive(Debug)]
pub(super) struct Certificate<'a> {
    /// 1, 2 or 3.
    version: i64,
    /// What the signature is over.
    signed: &'a [u8],
    signature_algorithm: Algorithm<'a>,
    signature: Cow<'a, [u8]>,
    /// Big-endian, not negative.
    pub(super) serial: &'a [u8],
    issuer: &'a [u8],
    subject: &'a [u8],
    /// First second of validity, since 1970-01-01 UTC.
    pub(super) not_before: i64,
    /// Last second of validity, since 1970-01-01 UTC.
    pub(super) not_after: i64,
    /// The public key with its algorithm, as encoded.
    key_info: &'a [u8],
    key: PublicKey<'a>,
    extensions: Extensions<'a>,
}

impl<'a> Certificate<'a> {
    /// Reads a certificate from exactly its DER form.
    pub(super) fn read(der: &'a [u8]) -> Result<Self, Malformed> {
        let mut outer = Reader::new(der);
        let mut parts = outer.enter(SEQUENCE).ok_or(Malformed("certificate"))?;
        if !outer.is_empty() {
            return Err(Malformed("certificate (followed by more)"));
        }
        let signed = parts.element(SEQUENCE).ok_or(Malformed("certificate body"))?;
        let algorithm = parts.bytes(SEQUENCE).ok_or(Malformed("signature algorithm"))?;
        // Go reads the signature last; the order of the checks decides nothing.
        let signature = parts.bits().ok_or(Malformed("signature"))?;
        Self::read_body(signed.whole, Reader::new(signed.content), algorithm, signature)
    }

    fn read_body(
        signed: &'a [u8],
        mut body: Reader<'a>,
        outer_algorithm: &'a [u8],
        signature: Cow<'a, [u8]>,
    ) -> Result<Self, Malformed> {
        let version = version(&mut body).ok_or(Malformed("version"))?;
        let serial = body.integer().filter(|serial| serial[0] & 0x80 == 0);
        let serial = serial.ok_or(Malformed("serial number"))?;
        let algorithm = body.bytes(SEQUENCE).filter(|inner| *inner == outer_algorithm);
        let signature_algorithm = algorithm
            .and_then(|algorithm| Algorithm::read(Reader::new(algorithm)))
            .ok_or(Malformed("signature algorithm"))?;
        let issuer = distinguished_name(&mut body).ok_or(Malformed("issuer"))?;
        let (not_before, not_after) = validity(&mut body).ok_or(Malformed("validity"))?;
        let subject = distinguished_name(&mut body).ok_or(Malformed("subject"))?;
        let key_info = body.element(SEQUENCE).ok_or(Malformed("public key"))?;
        let key = PublicKey::read(Reader::new(key_info.content))?;
        let extensions = if version > 1 {
            body.optional(context(1)).ok_or(Malformed("unique identifier"))?;
            body.optional(context(2)).ok_or(Malformed("unique identifier"))?;
            let list = (version == 3).then(|| body.optional(context_constructed(3)));
            let list = list.unwrap_or(Some(None)).ok_or(Malformed("extensions"))?;
            list.map(Extensions::read).transpose()?.unwrap_or_default()
        } else {
            Extensions::default()
        };
        Ok(Self {
            version,
            signed,
            signature_algorithm,
            signature,
            serial,
            issuer,
            subject,
            not_before,
            not_after,
            key_info: key_info.whole,
            key,
            extensions,
        })
    }
}

/// The version: counted from zero in the certificate, from one in speech.
fn version(body: &mut Reader<'_>) -> Option<i64> {
    let Some(mut field) = body.optional(context_constructed(0))? else { return Some(1) };
    let version = field.small_integer(der::INTEGER)?;
    (field.is_empty() && (0..3).contains(&version)).then_some(version + 1)
}

fn distinguished_name<'a>(body: &mut Reader<'a>) -> Option<&'a [u8]> {
    let name = body.element(SEQUENCE)?;
    name::check_distinguished(Reader::new(name.content))?;
    Some(name.whole)
}

fn validity(body: &mut Reader<'_>) -> Option<(i64, i64)> {
    let mut validity = body.enter(SEQUENCE)?;
    Some((time::read(&mut validity)?, time::read(&mut validity)?))
}
