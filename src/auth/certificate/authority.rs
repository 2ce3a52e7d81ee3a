//! The authority whose certificate the operator gives, and what it has signed.

use std::borrow::Cow;

use thiserror::Error;

use super::{
    Certificate, Malformed,
    key::{self, Curve, KeyKind, Verdict},
};

/// Why a certificate cannot serve as authority.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CaError {
    /// PEM in place of base64 alone.
    #[error("expected base64 of a DER certificate, not PEM: leave out the BEGIN and END lines")]
    Pem,
    /// Not base64.
    #[error("not base64: {0}")]
    Encoding(#[from] data_encoding::DecodeError),
    /// Not a certificate.
    #[error("not a DER certificate: {0}")]
    Malformed(#[from] Malformed),
    /// The certificate is not meant to vouch for others.
    #[error("not the certificate of an authority: {0}")]
    NotAnAuthority(&'static str),
    /// Its signatures cannot be checked here.
    #[error("its key is not supported: {0}")]
    UnsupportedKey(&'static str),
}

/// Why the authority does not stand behind a certificate, its validity in time apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::auth) enum Refusal {
    /// Issued by somebody else, or the authority's own.
    Stranger,
    Signature,
    UnsupportedSignature,
    Usage,
    CriticalExtension,
    Policy,
    Names,
}

/// An authority.
#[derive(Debug)]
pub(in crate::auth) struct Authority {
    subject: Box<[u8]>,
    key_info: Box<[u8]>,
    key: (KeyKind, Box<[u8]>),
    alternative_names: Option<Box<[u8]>>,
    name_constraints: bool,
    /// First second of validity, since 1970-01-01 UTC.
    pub(in crate::auth) not_before: i64,
    /// Last second of validity, since 1970-01-01 UTC.
    pub(in crate::auth) not_after: i64,
}

impl Authority {
    /// Reads an authority's certificate, and refuses one that could admit no key at any time.
    pub(in crate::auth) fn read(der: &[u8]) -> Result<Self, CaError> {
        let certificate = Certificate::read(der)?;
        let extensions = &certificate.extensions;
        match extensions.authority {
            Some(false) => return Err(CaError::NotAnAuthority("its basic constraints deny it")),
            None if certificate.version == 3 => {
                return Err(CaError::NotAnAuthority("it has no basic constraints"));
            }
            Some(true) | None => {}
        }
        if extensions.may_sign == Some(false) {
            return Err(CaError::NotAnAuthority(
                "its key usage does not allow signing certificates",
            ));
        }
        if extensions.server_usage == Some(false) {
            return Err(CaError::NotAnAuthority(
                "its extended key usage does not allow server authentication",
            ));
        }
        if extensions.unknown_critical {
            return Err(CaError::NotAnAuthority("it has a critical extension that is not known"));
        }
        check_key(certificate.key.kind)?;
        Ok(Self {
            subject: certificate.subject.into(),
            key_info: certificate.key_info.into(),
            key: (certificate.key.kind, Cow::into_owned(certificate.key.bytes).into()),
            alternative_names: extensions.alternative_names.map(Into::into),
            name_constraints: extensions.name_constraints,
            not_before: certificate.not_before,
            not_after: certificate.not_after,
        })
    }

    /// Checks that this authority, and nobody in between, has made `leaf` an API key.
    /// Whether both are valid now is left to the caller.
    pub(in crate::auth) fn verify(&self, leaf: &Certificate<'_>) -> Result<(), Refusal> {
        let extensions = &leaf.extensions;
        if leaf.issuer != &*self.subject || self.is_own(leaf) {
            return Err(Refusal::Stranger);
        }
        if extensions.unknown_critical {
            return Err(Refusal::CriticalExtension);
        }
        if extensions.server_usage == Some(false) {
            return Err(Refusal::Usage);
        }
        if extensions.requires_policy && !extensions.has_policies {
            return Err(Refusal::Policy);
        }
        // Constraints are not evaluated: keys name no hosts, and whoever is in doubt is out.
        let constrained = self.name_constraints && extensions.constrainable_names > 0;
        if constrained || extensions.name_constraints {
            return Err(Refusal::Names);
        }
        let (kind, key) = (self.key.0, &*self.key.1);
        match key::verify((kind, key), &leaf.signature_algorithm, leaf.signed, &leaf.signature) {
            Verdict::Good => Ok(()),
            Verdict::Bad => Err(Refusal::Signature),
            Verdict::Unsupported => Err(Refusal::UnsupportedSignature),
        }
    }

    /// Whether `leaf` is this authority under another certificate: same names, same key.
    fn is_own(&self, leaf: &Certificate<'_>) -> bool {
        leaf.subject == &*self.subject
            && leaf.key_info == &*self.key_info
            && leaf.extensions.alternative_names == self.alternative_names.as_deref()
    }
}

/// Refuses the kinds of key whose signatures cannot be checked.
fn check_key(kind: KeyKind) -> Result<(), CaError> {
    const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;
    match kind {
        KeyKind::Ed25519 | KeyKind::Ec(Curve::P256 | Curve::P384) => Ok(()),
        KeyKind::Rsa { bits } if RSA_BITS.contains(&bits) => Ok(()),
        KeyKind::Rsa { .. } => Err(CaError::UnsupportedKey("RSA needs 2,048 to 8,192 bits")),
        KeyKind::Ec(Curve::P224 | Curve::P521) => {
            Err(CaError::UnsupportedKey("of the curves only P-256 and P-384 are"))
        }
        KeyKind::Other => Err(CaError::UnsupportedKey("only Ed25519, ECDSA and RSA are")),
    }
}
