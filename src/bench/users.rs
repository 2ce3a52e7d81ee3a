//! The users of a run: keys made from the run's seed.

use secp256k1::SecretKey;
use sha2::{Digest as _, Sha256};

/// Keys of users, numbered from 0.
#[derive(Debug)]
pub(super) struct Users(Vec<SecretKey>);

impl Users {
    /// Makes `count` users from `seed`, at least one.
    pub(super) fn new(seed: u64, count: usize) -> Self {
        Self((0..count.max(1)).map(|index| key(seed, index)).collect())
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// The key of a user; numbers beyond the last begin again.
    pub(super) fn key(&self, index: usize) -> &SecretKey {
        &self.0[index % self.0.len()]
    }
}

fn key(seed: u64, index: usize) -> SecretKey {
    let mut hash = Sha256::new_with_prefix(b"data-sync bench user");
    hash.update(seed.to_le_bytes());
    hash.update(index.to_le_bytes());
    let mut bytes: [u8; 32] = hash.finalize().into();
    loop {
        // All but one in 2^128 of the numbers are keys.
        match SecretKey::from_secret_bytes(bytes) {
            Ok(key) => return key,
            Err(_) => bytes = Sha256::digest(bytes).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_users() {
        let secret = |seed, index| Users::new(seed, 3).key(index).to_secret_bytes();
        assert_eq!(secret(1, 2), secret(1, 2));
        assert_ne!(secret(1, 2), secret(1, 1));
        assert_ne!(secret(1, 2), secret(2, 2));
        assert_eq!(secret(1, 3), secret(1, 0));
    }
}
