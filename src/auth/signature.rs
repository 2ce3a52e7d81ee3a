//! Recovers the user who signed a request.

use secp256k1::Message;
use thiserror::Error;

use super::signing::{self, SignatureFormatError, SignedRequest};
use crate::store::{RequestDigest, UserId};

/// Why a signature names nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// The text is no signature at all.
    #[error(transparent)]
    Format(#[from] SignatureFormatError),
    /// No key could have made this signature.
    #[error("the signature recovers to no key")]
    Unrecoverable,
}

impl SignatureError {
    /// The cause as a label of metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Format(_) => "signature_malformed",
            Self::Unrecoverable => "signature_unrecoverable",
        }
    }
}

/// Finds who signed `request`, and the digest that was signed.
///
/// A signature over other bytes does not fail: it recovers to another key, whose records are
/// simply other records. Takes about 27 µs, most of it on the curve, so callers check everything
/// that is cheaper first.
///
/// # Errors
/// If the signature is malformed or no key can have made it.
pub fn recover<R: SignedRequest>(request: &R) -> Result<(UserId, RequestDigest), SignatureError> {
    let signature = signing::decode(request.signature())?;
    let digest = request.digest();
    let key = signature
        .recover_ecdsa(Message::from_digest(digest))
        .map_err(|_| SignatureError::Unrecoverable)?;
    Ok((UserId::new(key.serialize()), RequestDigest(digest)))
}
