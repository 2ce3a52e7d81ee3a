//! Checks the names in a certificate. They are compared as bytes, never shown.

use super::der::{Reader, SEQUENCE, SET};

const UTF8_STRING: u8 = 0x0c;
const NUMERIC_STRING: u8 = 0x12;
const PRINTABLE_STRING: u8 = 0x13;
const T61_STRING: u8 = 0x14;
const IA5_STRING: u8 = 0x16;
const BMP_STRING: u8 = 0x1e;

const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
const IP: u8 = 0x87;

/// Checks a distinguished name, as found inside its element.
pub(super) fn check_distinguished(mut name: Reader<'_>) -> Option<()> {
    while !name.is_empty() {
        let mut set = name.enter(SET)?;
        while !set.is_empty() {
            let mut attribute = set.enter(SEQUENCE)?;
            attribute.object_identifier()?;
            let value = attribute.any()?;
            if !is_text(value.tag, value.content) {
                return None;
            }
        }
    }
    Some(())
}

fn is_text(tag: u8, bytes: &[u8]) -> bool {
    match tag {
        UTF8_STRING => std::str::from_utf8(bytes).is_ok(),
        NUMERIC_STRING => bytes.iter().all(|byte| byte.is_ascii_digit() || *byte == b' '),
        PRINTABLE_STRING => bytes.iter().all(|byte| is_printable(*byte)),
        T61_STRING => true,
        IA5_STRING => bytes.is_ascii(),
        BMP_STRING => is_ucs2(bytes),
        _ => false,
    }
}

/// The standard's set, and `*` and `&`, which are found in practice.
fn is_printable(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b" '()*+,-./:=?&".contains(&byte)
}

fn is_ucs2(bytes: &[u8]) -> bool {
    let bytes =
        bytes.strip_suffix(&[0, 0]).filter(|rest| rest.len().is_multiple_of(2)).unwrap_or(bytes);
    bytes.len().is_multiple_of(2)
        && bytes.chunks_exact(2).all(|pair| {
            let point = u16::from_be_bytes([pair[0], pair[1]]);
            !matches!(point, 0xd800..=0xdfff | 0xfdd0..=0xfdef | 0xfffe | 0xffff)
        })
}

/// Checks the alternative names of a subject, and counts those of a kind that name constraints
/// could be about.
pub(super) fn check_alternative(mut names: Reader<'_>) -> Option<usize> {
    let mut names = names.enter(SEQUENCE)?;
    let mut known = 0;
    while !names.is_empty() {
        let name = names.any()?;
        let valid = match name.tag {
            EMAIL | DNS => name.content.is_ascii(),
            URI => std::str::from_utf8(name.content).is_ok_and(is_plain_uri),
            IP => matches!(name.content.len(), 4 | 16),
            _ => continue,
        };
        if !valid {
            return None;
        }
        known += 1;
    }
    Some(known)
}

/// A URI in plain form: ASCII throughout, a host of non-empty labels if any.
///
/// Stricter than Go about escapes, ports, users and literal IPv6 hosts; no API key carries a URI
/// for any purpose.
fn is_plain_uri(text: &str) -> bool {
    let rest = match text.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => rest,
        Some(_) => return false,
        None => text,
    };
    let characters_ok =
        rest.chars().all(|c| c.is_ascii_alphanumeric() || "-._~/:?#@!$&'()*+,;=".contains(c));
    let host_ok = rest.strip_prefix("//").is_none_or(|rest| {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        host.is_empty() || host.split('.').all(is_label)
    });
    characters_ok && host_ok
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

fn is_label(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_hold_what_their_type_allows() {
        assert!(is_text(PRINTABLE_STRING, b"Breez & Sons *"));
        assert!(!is_text(PRINTABLE_STRING, b"a@b"));
        assert!(is_text(UTF8_STRING, "dé".as_bytes()));
        assert!(!is_text(UTF8_STRING, &[0xff]));
        assert!(is_text(BMP_STRING, &[0, b'a', 0, 0]));
        assert!(!is_text(BMP_STRING, &[0, b'a', 0]));
        assert!(!is_text(BMP_STRING, &[0xd8, 0]));
        assert!(is_text(NUMERIC_STRING, b"12 3"));
        assert!(!is_text(NUMERIC_STRING, b"1a"));
        assert!(!is_text(IA5_STRING, &[0x80]));
        assert!(is_text(T61_STRING, &[0x80]));
        assert!(!is_text(0x1c, b"abcd"), "UniversalString");
    }

    #[test]
    fn uris_are_plain() {
        for uri in ["https://example.org/a?b#c", "urn:uuid:1", "spiffe://a-b.c/d", "key/1", ""] {
            assert!(is_plain_uri(uri), "{uri}");
        }
        for uri in [":", "https://a..b/", "https://a b/", "1a:b", "http://[::1]/", "a%zz"] {
            assert!(!is_plain_uri(uri), "{uri}");
        }
    }
}
