//! Checks the certificate that a caller shows as its API key.
//!
//! An API key is public to whoever sees the request: a shared secret, not a proof of possession.
//! What an authority has signed is decided once and remembered by the token's hash; whether the
//! key is valid now, and not revoked, is looked at on every call.

use std::{fmt, sync::Arc, time::Duration};

use dashmap::DashMap;
use data_encoding::{BASE64, Encoding, HEXLOWER};
use sha2::{Digest, Sha256};
use thiserror::Error;

pub use super::certificate::{CaError, Malformed};
use super::{
    certificate::{Authority, Certificate, Refusal},
    revocation::{RevocationList, Standing},
    serial::Serial,
};
use crate::{
    clock::Clock,
    limits::{API_KEY_RECHECK_INTERVAL, MAX_API_KEY_TEXT_BYTES, MAX_CACHED_API_KEYS},
};

/// How the value of `authorization` begins; exactly so, as in the Go server.
const SCHEME: &[u8] = b"Bearer ";

/// Reads the authority's certificate from base64 of its DER form; line breaks are skipped.
///
/// # Errors
/// What is wrong with the text, or why the certificate can admit nobody.
pub fn decode_ca(text: &str) -> Result<Vec<u8>, CaError> {
    if text.trim_start().starts_with("-----BEGIN") {
        return Err(CaError::Pem);
    }
    let text: String = text.split_ascii_whitespace().collect();
    let der = BASE64.decode(text.as_bytes())?;
    Authority::read(&der)?;
    Ok(der)
}

/// First and last second in which an authority's certificate is valid, since 1970-01-01 UTC.
///
/// # Errors
/// If `ca_der` is not an authority's certificate.
pub fn ca_validity(ca_der: &[u8]) -> Result<(i64, i64), CaError> {
    Authority::read(ca_der).map(|authority| (authority.not_before, authority.not_after))
}

/// Base64 as Go reads it: the bits after the last byte may be anything.
fn base64() -> &'static Encoding {
    use std::sync::LazyLock;
    static LENIENT: LazyLock<Encoding> = LazyLock::new(|| {
        let mut specification = BASE64.specification();
        specification.check_trailing_bits = false;
        #[allow(clippy::expect_used, reason = "the specification is fixed above")]
        specification.encoding().expect("standard base64")
    });
    &LENIENT
}

/// Names an API key without giving it away: the SHA-256 fingerprint of the certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApiKeyHash([u8; 32]);

impl ApiKeyHash {
    /// The whole fingerprint.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The first 12 hex digits.
impl fmt::Display for ApiKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0[..6]))
    }
}

impl fmt::Debug for ApiKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key that the authority stands behind. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// The certificate's fingerprint.
    pub hash: ApiKeyHash,
    /// The certificate's serial number.
    pub serial: Serial,
    /// First second in which key and authority are valid, since 1970-01-01 UTC.
    pub not_before: i64,
    /// Last second in which key and authority are valid, since 1970-01-01 UTC.
    pub not_after: i64,
}

/// Why an API key is refused. The texts may be shown to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ApiKeyError {
    /// No `authorization` at all.
    #[error("an API key is required: authorization: Bearer <key>")]
    Missing,
    /// Not `Bearer`, one space, and something.
    #[error("authorization must be: Bearer <key>")]
    Scheme,
    /// Longer than any certificate of a reasonable size.
    #[error("the API key is too long")]
    TooLong,
    /// Not base64.
    #[error("the API key is not base64")]
    Encoding,
    /// Not a certificate.
    #[error("the API key is not a certificate: {0}")]
    Malformed(#[from] Malformed),
    /// Issued by nobody known here, or not directly.
    #[error("the API key was issued by an unknown authority")]
    UnknownAuthority,
    /// Not signed by the authority it names.
    #[error("the API key's signature is wrong")]
    Signature,
    /// Signed in a way that is unknown or unsound.
    #[error("the API key's signature algorithm is not supported")]
    Algorithm,
    /// Meant for other things.
    #[error("the API key's extended key usage does not include server authentication")]
    Usage,
    /// Asks for something that is not known here.
    #[error("the API key has a critical extension that is not supported")]
    CriticalExtension,
    /// Requires a policy and has none.
    #[error("the API key requires a policy and names none")]
    Policy,
    /// Holds names where names are constrained.
    #[error("the API key's names are not supported under name constraints")]
    Names,
    /// Its time has not come.
    #[error("the API key is not valid yet")]
    NotYetValid,
    /// Its time, or its authority's, is over.
    #[error("the API key has expired")]
    Expired,
    /// On the revocation list.
    #[error("the API key is revoked")]
    Revoked,
    /// No revocation list yet, and none is not good enough.
    #[error("API keys cannot be checked for revocation yet")]
    RevocationUnknown,
}

impl ApiKeyError {
    /// The cause as a label of metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "api_key_missing",
            Self::Scheme => "api_key_scheme",
            Self::TooLong => "api_key_too_long",
            Self::Encoding => "api_key_encoding",
            Self::Malformed(_) => "api_key_malformed",
            Self::UnknownAuthority => "api_key_unknown_authority",
            Self::Signature => "api_key_signature",
            Self::Algorithm => "api_key_algorithm",
            Self::Usage => "api_key_usage",
            Self::CriticalExtension => "api_key_critical_extension",
            Self::Policy => "api_key_policy",
            Self::Names => "api_key_names",
            Self::NotYetValid => "api_key_not_yet_valid",
            Self::Expired => "api_key_expired",
            Self::Revoked => "api_key_revoked",
            Self::RevocationUnknown => "api_key_revocation_unknown",
        }
    }
}

impl From<Refusal> for ApiKeyError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Stranger => Self::UnknownAuthority,
            Refusal::Signature => Self::Signature,
            Refusal::UnsupportedSignature => Self::Algorithm,
            Refusal::Usage => Self::Usage,
            Refusal::CriticalExtension => Self::CriticalExtension,
            Refusal::Policy => Self::Policy,
            Refusal::Names => Self::Names,
        }
    }
}

/// Checks API keys.
#[derive(Debug)]
pub struct ApiKeys {
    authority: Authority,
    revocation: Option<Arc<RevocationList>>,
    clock: Arc<dyn Clock>,
    /// Keys the authority stands behind, by SHA-256 of the token. Only such keys get in here, so
    /// strangers cannot fill it.
    verified: DashMap<[u8; 32], ApiKey>,
}

impl ApiKeys {
    /// Checks keys against the authority's certificate and, where there is one, the list.
    ///
    /// # Errors
    /// If the certificate cannot serve as authority.
    pub fn new(
        ca_der: &[u8],
        revocation: Option<Arc<RevocationList>>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CaError> {
        let authority = Authority::read(ca_der)?;
        if !within(authority.not_before, authority.not_after, clock.as_ref()) {
            tracing::warn!(
                not_before = authority.not_before,
                not_after = authority.not_after,
                "the certificate of CA_CERT is not valid now: no API key will be accepted"
            );
        }
        Ok(Self { authority, revocation, clock, verified: DashMap::new() })
    }

    /// Checks the value of a request's `authorization`.
    ///
    /// # Errors
    /// Why the key is refused.
    pub fn check(&self, authorization: Option<&[u8]>) -> Result<ApiKey, ApiKeyError> {
        let authorization = authorization.ok_or(ApiKeyError::Missing)?;
        let token = authorization.strip_prefix(SCHEME).filter(|token| !token.is_empty());
        let token = token.ok_or(ApiKeyError::Scheme)?;
        if token.len() > MAX_API_KEY_TEXT_BYTES {
            return Err(ApiKeyError::TooLong);
        }
        let token_hash = Sha256::digest(token).into();
        let known = self.verified.get(&token_hash).map(|key| key.clone());
        let key = match known {
            Some(key) => key,
            None => {
                let key = self.verify(token)?;
                self.remember(token_hash, key.clone());
                key
            }
        };
        self.check_standing(&key)?;
        Ok(key)
    }

    /// Waits until a key that was valid is so no longer: revoked or expired.
    pub async fn until_invalid(&self, key: &ApiKey) -> ApiKeyError {
        let mut changes = self.revocation.as_ref().map(|list| list.changes());
        loop {
            if let Some(changes) = &mut changes {
                changes.mark_unchanged();
            }
            if let Err(error) = self.check_standing(key) {
                return error;
            }
            let recheck = tokio::time::sleep(self.until_recheck(key));
            match &mut changes {
                Some(changes) => tokio::select! {
                    () = recheck => {}
                    // The list lives as long as `self`, and the sender with it.
                    _ = changes.changed() => {}
                },
                None => recheck.await,
            }
        }
    }

    /// Number of remembered keys.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.verified.len()
    }

    /// Decides, apart from time and revocation, whether a token is an API key.
    fn verify(&self, token: &[u8]) -> Result<ApiKey, ApiKeyError> {
        let der = decode_token(token).ok_or(ApiKeyError::Encoding)?;
        let leaf = Certificate::read(&der)?;
        self.authority.verify(&leaf)?;
        Ok(ApiKey {
            hash: ApiKeyHash(Sha256::digest(&der).into()),
            serial: Serial::from_bytes(leaf.serial),
            not_before: leaf.not_before.max(self.authority.not_before),
            not_after: leaf.not_after.min(self.authority.not_after),
        })
    }

    /// Remembers a key, forgetting all when there are too many: they are cheap to check anew.
    pub(super) fn remember(&self, token_hash: [u8; 32], key: ApiKey) {
        if self.verified.len() >= MAX_CACHED_API_KEYS {
            self.verified.clear();
        }
        self.verified.insert(token_hash, key);
    }

    /// Whether a key is valid now and not revoked.
    fn check_standing(&self, key: &ApiKey) -> Result<(), ApiKeyError> {
        if !within(key.not_before, key.not_after, self.clock.as_ref()) {
            let begun = self.now_ms() >= key.not_before.saturating_mul(1_000);
            return Err(if begun { ApiKeyError::Expired } else { ApiKeyError::NotYetValid });
        }
        match self.revocation.as_ref().map(|list| list.standing(&key.serial)) {
            None | Some(Standing::Good) => Ok(()),
            Some(Standing::Revoked) => Err(ApiKeyError::Revoked),
            Some(Standing::Unknown) => Err(ApiKeyError::RevocationUnknown),
        }
    }

    /// Time until a valid key is worth another look. Bounded, since the wall clock may be set.
    fn until_recheck(&self, key: &ApiKey) -> Duration {
        let first_invalid_ms = key.not_after.saturating_mul(1_000).saturating_add(1);
        let left_ms = first_invalid_ms.saturating_sub(self.now_ms());
        let left = Duration::from_millis(u64::try_from(left_ms).unwrap_or(0));
        left.min(API_KEY_RECHECK_INTERVAL)
    }

    fn now_ms(&self) -> i64 {
        i64::try_from(self.clock.now_ms()).unwrap_or(i64::MAX)
    }
}

/// Whether it is now from the first second's begin to the last second's.
fn within(not_before: i64, not_after: i64, clock: &dyn Clock) -> bool {
    let now_ms = i64::try_from(clock.now_ms()).unwrap_or(i64::MAX);
    (not_before.saturating_mul(1_000)..=not_after.saturating_mul(1_000)).contains(&now_ms)
}

/// Decodes base64 whose padding stands at its end only.
fn decode_token(token: &[u8]) -> Option<Vec<u8>> {
    let unpadded = token.iter().position(|byte| *byte == b'=').unwrap_or(token.len());
    let padded_at_end = token[unpadded..].iter().all(|byte| *byte == b'=');
    padded_at_end.then(|| base64().decode(token).ok()).flatten()
}
