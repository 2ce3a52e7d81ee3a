//! The key that names a user.

use std::fmt;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use secp256k1::SecretKey;
use thiserror::Error;

use crate::auth::signing::SignedRequest;

/// Signs requests. Whoever holds the key is the user; nobody can recover a lost one.
#[derive(Clone)]
pub struct Signer(SecretKey);

/// A text that is no secret key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a secret key is 64 hexadecimal digits, neither zero nor beyond the curve's order")]
pub struct InvalidKey;

impl Signer {
    /// Makes a new user from the operating system's randomness.
    #[must_use]
    pub fn generate() -> Self {
        loop {
            // All but one in 2^128 of the 32-byte numbers are keys.
            if let Ok(key) = SecretKey::from_secret_bytes(rand::random()) {
                return Self(key);
            }
        }
    }

    /// Reads a key from 64 hexadecimal digits.
    ///
    /// # Errors
    /// If the text is no secret key.
    pub fn from_hex(text: &str) -> Result<Self, InvalidKey> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).map_err(|_| InvalidKey)?;
        let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| InvalidKey)?;
        SecretKey::from_secret_bytes(bytes).map(Self).map_err(|_| InvalidKey)
    }

    /// The secret itself as 64 hexadecimal digits, for the place that keeps it.
    #[must_use]
    pub fn to_secret_hex(&self) -> String {
        HEXLOWER.encode(&self.0.to_secret_bytes())
    }

    /// The user this key names on the server: the compressed public key, as 66 hexadecimal digits.
    #[must_use]
    pub fn user_id(&self) -> String {
        HEXLOWER.encode(&self.0.public_key().serialize())
    }

    /// Signs `request` as it is now.
    pub fn sign<R: SignedRequest>(&self, request: &mut R) {
        request.sign(&self.0);
    }
}

impl From<SecretKey> for Signer {
    fn from(key: SecretKey) -> Self {
        Self(key)
    }
}

/// Shows the user, never the key.
impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signer").field(&self.user_id()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text() {
        let signer = Signer::generate();
        let again = Signer::from_hex(&format!(" {}\n", signer.to_secret_hex())).unwrap();
        assert_eq!(signer.user_id(), again.user_id());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let zero = "00".repeat(32);
        let beyond_the_order = "ff".repeat(32);
        for text in ["", "12", "xyz", &zero, &beyond_the_order, &"ab".repeat(33)] {
            assert_eq!(Signer::from_hex(text).unwrap_err(), InvalidKey, "{text:?}");
        }
    }

    #[test]
    fn the_secret_is_not_shown() {
        let signer = Signer::generate();
        assert!(!format!("{signer:?}").contains(&signer.to_secret_hex()));
    }
}
