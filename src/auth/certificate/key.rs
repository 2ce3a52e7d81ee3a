//! Reads public keys and names of algorithms, and checks signatures with them.

use rustls_pki_types::SignatureVerificationAlgorithm;
use webpki::ring as algorithms;

use super::{
    Malformed,
    der::{Bits, Element, INTEGER, NULL, Reader, SEQUENCE, context_constructed},
};

/// An algorithm and its parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Algorithm<'a> {
    id: &'a [u8],
    /// As encoded, with tag and length.
    parameters: Option<Element<'a>>,
}

impl<'a> Algorithm<'a> {
    /// Reads an algorithm, as found inside its element.
    pub(super) fn read(mut reader: Reader<'a>) -> Option<Self> {
        let id = reader.object_identifier()?;
        let parameters = if reader.is_empty() { None } else { Some(reader.any()?) };
        Some(Self { id, parameters })
    }

    /// Neither parameters nor anything in their place but NULL.
    fn is_bare_or_null(&self) -> bool {
        self.parameters.is_none_or(|value| is_null(&value))
    }
}

fn is_null(value: &Element<'_>) -> bool {
    value.tag == NULL && value.content.is_empty()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Curve {
    P224,
    P256,
    P384,
    P521,
}

impl Curve {
    fn from_id(id: &[u8]) -> Option<Self> {
        match id {
            [0x2b, 0x81, 4, 0, 33] => Some(Self::P224),
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7] => Some(Self::P256),
            [0x2b, 0x81, 4, 0, 34] => Some(Self::P384),
            [0x2b, 0x81, 4, 0, 35] => Some(Self::P521),
            _ => None,
        }
    }

    const fn coordinate_bytes(self) -> usize {
        match self {
            Self::P224 => 28,
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}

/// What kind of key it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyKind {
    Rsa {
        /// Bits of the modulus.
        bits: usize,
    },
    Ec(Curve),
    Ed25519,
    /// One that signs no certificate.
    Other,
}

/// A public key.
#[derive(Debug)]
pub(super) struct PublicKey<'a> {
    pub(super) kind: KeyKind,
    pub(super) bytes: Bits<'a>,
}

const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
const DSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x38, 4, 1];
const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const ED25519_KEY_BYTES: usize = 32;

impl<'a> PublicKey<'a> {
    /// Reads a key, as found inside its element.
    ///
    /// A point is not checked to lie on its curve: a caller's own key is never used, and an
    /// authority's is checked wherever it is.
    pub(super) fn read(mut reader: Reader<'a>) -> Result<Self, Malformed> {
        const KEY: Malformed = Malformed("public key");
        let algorithm = reader.enter(SEQUENCE).and_then(Algorithm::read).ok_or(KEY)?;
        let bytes = reader.bits().ok_or(KEY)?;
        let parameters = algorithm.parameters;
        let kind = match algorithm.id {
            RSA => parameters
                .filter(is_null)
                .and_then(|_| rsa_bits(&bytes))
                .map(|bits| KeyKind::Rsa { bits }),
            EC => parameters.and_then(|curve| ec_curve(&curve, &bytes)).map(KeyKind::Ec),
            ED25519 => (parameters.is_none() && bytes.len() == ED25519_KEY_BYTES)
                .then_some(KeyKind::Ed25519),
            DSA => parameters.and_then(|group| check_dsa(&group, &bytes)).map(|()| KeyKind::Other),
            _ => Some(KeyKind::Other),
        };
        Ok(Self { kind: kind.ok_or(KEY)?, bytes })
    }
}

/// A number above zero.
fn positive<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    reader.integer().filter(|number| number[0] & 0x80 == 0 && *number != [0])
}

/// Bits of the modulus of an RSA key.
fn rsa_bits(key: &[u8]) -> Option<usize> {
    let mut key = Reader::new(key).enter(SEQUENCE)?;
    let modulus = positive(&mut key)?;
    key.small_integer(INTEGER).filter(|exponent| *exponent > 0)?;
    let leading_zeros = modulus.iter().position(|byte| *byte != 0)?;
    let first = modulus[leading_zeros].leading_zeros() as usize;
    Some(8 * (modulus.len() - leading_zeros) - first)
}

fn ec_curve(parameters: &Element<'_>, point: &[u8]) -> Option<Curve> {
    const UNCOMPRESSED: u8 = 4;
    let curve = Curve::from_id(Reader::new(parameters.whole).object_identifier()?)?;
    let whole = point.len() == 1 + 2 * curve.coordinate_bytes();
    (whole && point[0] == UNCOMPRESSED).then_some(curve)
}

fn check_dsa(parameters: &Element<'_>, key: &[u8]) -> Option<()> {
    positive(&mut Reader::new(key))?;
    let mut group = Reader::new(parameters.whole).enter(SEQUENCE)?;
    for _ in ["p", "q", "g"] {
        positive(&mut group)?;
    }
    Some(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// A way to sign that is still sound; SHA-1 and MD5 are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    RsaPkcs1(Hash),
    RsaPss(Hash),
    Ecdsa(Hash),
    Ed25519,
}

impl Scheme {
    /// Parameters count for PSS and Ed25519 only, as in Go.
    fn from_algorithm(algorithm: &Algorithm<'_>) -> Option<Self> {
        match algorithm.id {
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11] => Some(Self::RsaPkcs1(Hash::Sha256)),
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12] => Some(Self::RsaPkcs1(Hash::Sha384)),
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13] => Some(Self::RsaPkcs1(Hash::Sha512)),
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10] => {
                algorithm.parameters.and_then(|value| pss_hash(&value)).map(Self::RsaPss)
            }
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2] => Some(Self::Ecdsa(Hash::Sha256)),
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3] => Some(Self::Ecdsa(Hash::Sha384)),
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4] => Some(Self::Ecdsa(Hash::Sha512)),
            ED25519 if algorithm.parameters.is_none() => Some(Self::Ed25519),
            _ => None,
        }
    }
}

/// The hash of a PSS signature whose mask uses the same hash and whose salt is as long.
fn pss_hash(parameters: &Element<'_>) -> Option<Hash> {
    let mut fields = Reader::new(parameters.whole).enter(SEQUENCE)?;
    let hash = explicit_algorithm(&mut fields, 0).filter(Algorithm::is_bare_or_null)?;
    let mask = explicit_algorithm(&mut fields, 1)?;
    let mask_hash =
        Reader::new(mask.parameters?.whole).enter(SEQUENCE).and_then(Algorithm::read)?;
    let salt_bytes = fields.enter(context_constructed(2))?.small_integer(INTEGER)?;
    if let Some(mut trailer) = fields.optional(context_constructed(3))? {
        trailer.small_integer(INTEGER).filter(|trailer| *trailer == 1)?;
    }
    const MGF1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 8];
    if mask.id != MGF1 || mask_hash.id != hash.id || !mask_hash.is_bare_or_null() {
        return None;
    }
    match (hash.id, salt_bytes) {
        ([0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1], 32) => Some(Hash::Sha256),
        ([0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2], 48) => Some(Hash::Sha384),
        ([0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3], 64) => Some(Hash::Sha512),
        _ => None,
    }
}

fn explicit_algorithm<'a>(fields: &mut Reader<'a>, number: u8) -> Option<Algorithm<'a>> {
    fields.enter(context_constructed(number))?.enter(SEQUENCE).and_then(Algorithm::read)
}

/// What became of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    Bad,
    /// The algorithm is unknown, unsound, or does not go with the key.
    Unsupported,
}

/// Checks that `key` made `signature` over `message`.
pub(super) fn verify(
    (kind, key): (KeyKind, &[u8]),
    algorithm: &Algorithm<'_>,
    message: &[u8],
    signature: &[u8],
) -> Verdict {
    let verifier = Scheme::from_algorithm(algorithm).and_then(|scheme| verifier(kind, scheme));
    verifier.map_or(Verdict::Unsupported, |verifier| {
        match verifier.verify_signature(key, message, signature) {
            Ok(()) => Verdict::Good,
            Err(_) => Verdict::Bad,
        }
    })
}

fn verifier(kind: KeyKind, scheme: Scheme) -> Option<&'static dyn SignatureVerificationAlgorithm> {
    match (kind, scheme) {
        (KeyKind::Ed25519, Scheme::Ed25519) => Some(algorithms::ED25519),
        (KeyKind::Ec(curve), Scheme::Ecdsa(hash)) => match (curve, hash) {
            (Curve::P256, Hash::Sha256) => Some(algorithms::ECDSA_P256_SHA256),
            (Curve::P256, Hash::Sha384) => Some(algorithms::ECDSA_P256_SHA384),
            (Curve::P384, Hash::Sha256) => Some(algorithms::ECDSA_P384_SHA256),
            (Curve::P384, Hash::Sha384) => Some(algorithms::ECDSA_P384_SHA384),
            // Not in *ring*.
            (Curve::P256 | Curve::P384, Hash::Sha512) | (Curve::P224 | Curve::P521, _) => None,
        },
        (KeyKind::Rsa { .. }, Scheme::RsaPkcs1(hash)) => Some(match hash {
            Hash::Sha256 => algorithms::RSA_PKCS1_2048_8192_SHA256,
            Hash::Sha384 => algorithms::RSA_PKCS1_2048_8192_SHA384,
            Hash::Sha512 => algorithms::RSA_PKCS1_2048_8192_SHA512,
        }),
        (KeyKind::Rsa { .. }, Scheme::RsaPss(hash)) => Some(match hash {
            Hash::Sha256 => algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
            Hash::Sha384 => algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
            Hash::Sha512 => algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
        }),
        _ => None,
    }
}
