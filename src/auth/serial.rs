//! Serial numbers of certificates, as operators write them.

use std::{fmt, sync::Arc};

/// Decimal digits of one limb.
const LIMB_DIGITS: usize = 9;
const LIMB: u64 = 1_000_000_000;

/// A serial number of any size: decimal digits without leading zeros.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Serial(Arc<str>);

impl Serial {
    /// Reads a number in big-endian bytes, as a certificate holds it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut limbs = Vec::new();
        for byte in bytes {
            let mut carry = u64::from(*byte);
            for limb in &mut limbs {
                let value = *limb * 256 + carry;
                *limb = value % LIMB;
                carry = value / LIMB;
            }
            if carry > 0 {
                limbs.push(carry);
            }
        }
        let digits: String =
            limbs.iter().rev().map(|limb| format!("{limb:0LIMB_DIGITS$}")).collect();
        Self(without_leading_zeros(&digits).into())
    }

    /// The decimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The one way to write a number, of which `text` is another; `None` unless all are digits.
pub(super) fn canonical_decimal(text: &str) -> Option<&str> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| without_leading_zeros(text))
}

fn without_leading_zeros(digits: &str) -> &str {
    match digits.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(bytes: &[u8]) -> String {
        Serial::from_bytes(bytes).to_string()
    }

    #[test]
    fn bytes_become_decimal_digits() {
        assert_eq!(decimal(&[0]), "0");
        assert_eq!(decimal(&[]), "0");
        assert_eq!(decimal(&[0, 0, 1, 0]), "256");
        assert_eq!(decimal(&1_000_000_000_u64.to_be_bytes()), "1000000000");
        assert_eq!(decimal(&u64::MAX.to_be_bytes()), u64::MAX.to_string());
        assert_eq!(decimal(&u128::MAX.to_be_bytes()), u128::MAX.to_string());
        let power = [&[1][..], &[0; 20]].concat();
        assert_eq!(decimal(&power), "1461501637330902918203684832716283019655932542976", "2^160");
    }

    #[test]
    fn numbers_have_one_spelling() {
        assert_eq!(canonical_decimal("0012"), Some("12"));
        assert_eq!(canonical_decimal("000"), Some("0"));
        for text in ["", "-1", "+1", "0x1f", "1 2", "ab", "١"] {
            assert_eq!(canonical_decimal(text), None, "{text}");
        }
    }
}
