//! A user in few bytes: what replicas call a user when they talk to each other.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::store::UserId;

/// The first 16 bytes of the SHA-256 of a user id. Eight could be ground to a collision, which
/// would show a stranger when a user writes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UserTag([u8; Self::BYTES]);

impl UserTag {
    /// Length of a tag.
    pub const BYTES: usize = 16;

    /// The tag of a user.
    #[must_use]
    pub fn of(user: UserId) -> Self {
        let digest: [u8; 32] = Sha256::digest(user.as_bytes()).into();
        let mut tag = [0; Self::BYTES];
        tag.copy_from_slice(&digest[..Self::BYTES]);
        Self(tag)
    }

    /// Reads a tag as another replica wrote it.
    #[must_use]
    pub const fn new(tag: [u8; Self::BYTES]) -> Self {
        Self(tag)
    }

    /// The tag itself.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

/// Shows the first four bytes, as for a user id.
impl fmt::Debug for UserTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}…", data_encoding::HEXLOWER.encode(&self.0[..4]))
    }
}
