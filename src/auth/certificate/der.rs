//! Reads DER: the elements of ASN.1 that a certificate is made of.
//!
//! Deliberately as strict and as lenient as Go's reader, because it decides which API keys are
//! accepted: lengths and numbers in their shortest form, tags below 31, any element of at most
//! 4 GiB. Every method takes what it reads off the front, and answers `None` if it is not there.

use std::borrow::Cow;

pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const NULL: u8 = 0x05;
pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;

/// Longest arc of an object identifier, in base-128 digits.
const MAX_ARC_DIGITS: usize = 5;

/// The tag `[number]` of a simple value.
pub(super) const fn context(number: u8) -> u8 {
    0x80 | number
}

/// The tag `[number]` of a value made of others.
pub(super) const fn context_constructed(number: u8) -> u8 {
    0xa0 | number
}

/// One value with its tag.
#[derive(Debug, Clone, Copy)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    /// The value alone.
    pub(super) content: &'a [u8],
    /// Tag, length and value.
    pub(super) whole: &'a [u8],
}

/// A sequence of bits, right-aligned in whole bytes.
pub(super) type Bits<'a> = Cow<'a, [u8]>;

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the next element has this tag.
    pub(super) fn next_is(&self, tag: u8) -> bool {
        self.0.first() == Some(&tag)
    }

    /// The next element, whatever it is.
    pub(super) fn any(&mut self) -> Option<Element<'a>> {
        let [tag, first, rest @ ..] = self.0 else { return None };
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (header, length) = match first {
            0..=0x7f => (2, usize::from(*first)),
            0x81..=0x84 => {
                let digits = rest.get(..usize::from(first & 0x7f))?;
                let length = digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit));
                if length < 0x80 || digits[0] == 0 {
                    return None;
                }
                (2 + digits.len(), length)
            }
            _ => return None,
        };
        let (whole, rest) = self.0.split_at_checked(header.checked_add(length)?)?;
        self.0 = rest;
        Some(Element { tag: *tag, content: &whole[header..], whole })
    }

    /// The next element, which must have this tag.
    pub(super) fn element(&mut self, tag: u8) -> Option<Element<'a>> {
        self.any().filter(|element| element.tag == tag)
    }

    /// The value of the next element, which must have this tag.
    pub(super) fn bytes(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.element(tag).map(|element| element.content)
    }

    /// The inside of the next element, which must have this tag.
    pub(super) fn enter(&mut self, tag: u8) -> Option<Self> {
        self.bytes(tag).map(Reader)
    }

    /// The inside of the next element if it has this tag; the outer `None` is a malformed one.
    #[allow(clippy::option_option, reason = "absent and malformed are different answers")]
    pub(super) fn optional(&mut self, tag: u8) -> Option<Option<Self>> {
        if self.next_is(tag) { self.enter(tag).map(Some) } else { Some(None) }
    }

    pub(super) fn boolean(&mut self) -> Option<bool> {
        match self.bytes(BOOLEAN)? {
            [0] => Some(false),
            [0xff] => Some(true),
            _ => None,
        }
    }

    /// A whole number: big-endian, two's complement, in the fewest bytes.
    pub(super) fn integer(&mut self) -> Option<&'a [u8]> {
        self.integer_tagged(INTEGER)
    }

    /// A whole number under another tag.
    pub(super) fn integer_tagged(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.bytes(tag).filter(|bytes| match bytes {
            [] => false,
            [_] => true,
            [first, second, ..] => {
                let padding = if second & 0x80 == 0 { 0 } else { 0xff };
                *first != padding
            }
        })
    }

    /// A whole number that fits 64 bits with its sign.
    pub(super) fn small_integer(&mut self, tag: u8) -> Option<i64> {
        let bytes = self.integer_tagged(tag).filter(|bytes| bytes.len() <= 8)?;
        let sign = if bytes[0] & 0x80 == 0 { 0 } else { -1 };
        Some(bytes.iter().fold(sign, |sum, byte| sum << 8 | i64::from(*byte)))
    }

    /// An object identifier with arcs below 2^31, as encoded.
    pub(super) fn object_identifier(&mut self) -> Option<&'a [u8]> {
        let bytes = self.bytes(OBJECT_IDENTIFIER).filter(|bytes| well_formed_arcs(bytes))?;
        let arcs_fit = bytes.split_inclusive(|byte| byte & 0x80 == 0).all(|arc| {
            arc.len() < MAX_ARC_DIGITS || (arc.len() == MAX_ARC_DIGITS && arc[0] & 0x7f < 0x08)
        });
        arcs_fit.then_some(bytes)
    }

    /// An object identifier with arcs of any size, as encoded.
    pub(super) fn any_object_identifier(&mut self) -> Option<&'a [u8]> {
        self.bytes(OBJECT_IDENTIFIER).filter(|bytes| well_formed_arcs(bytes))
    }

    /// A sequence of bits: the bytes that hold it and the number of unused bits at its end.
    pub(super) fn bit_string(&mut self) -> Option<(&'a [u8], u32)> {
        let (padding, bytes) = self.bytes(BIT_STRING)?.split_first()?;
        let padding = u32::from(*padding);
        let unused = match bytes.last() {
            _ if padding > 7 => return None,
            Some(last) => last & ((1 << padding) - 1),
            None => u8::from(padding > 0),
        };
        (unused == 0).then_some((bytes, padding))
    }

    /// A sequence of bits, moved right over the unused ones.
    pub(super) fn bits(&mut self) -> Option<Bits<'a>> {
        let (bytes, padding) = self.bit_string()?;
        if padding == 0 {
            return Some(Cow::Borrowed(bytes));
        }
        let above = std::iter::once(0).chain(bytes.iter().copied());
        let shifted = above.zip(bytes).map(|(above, byte)| {
            let low_half = u16::from_be_bytes([above, *byte]) >> padding;
            low_half.to_be_bytes()[1]
        });
        Some(Cow::Owned(shifted.collect()))
    }
}

/// Whether the arcs are whole and written in the fewest digits.
fn well_formed_arcs(bytes: &[u8]) -> bool {
    let arcs = bytes.split_inclusive(|byte| byte & 0x80 == 0);
    bytes.last().is_some_and(|last| last & 0x80 == 0) && arcs.into_iter().all(|arc| arc[0] != 0x80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_must_be_short_and_inside() {
        for bytes in [
            &[][..],
            &[0x04],
            &[0x04, 0x01],
            &[0x04, 0x80, 0x00, 0x00],
            &[0x04, 0x81, 0x01, 0xaa],
            &[0x04, 0x82, 0x00, 0x01, 0xaa],
            &[0x04, 0x85, 0, 0, 0, 0, 1, 0xaa],
            &[0x04, 0x84, 0xff, 0xff, 0xff, 0xff],
            &[0x1f, 0x01, 0x00],
        ] {
            assert!(Reader::new(bytes).any().is_none(), "{bytes:02x?}");
        }
        let mut long = vec![0x04, 0x81, 0x80];
        long.resize(3 + 0x80, 7);
        let mut reader = Reader::new(&long);
        assert_eq!(reader.bytes(OCTET_STRING), Some(&[7; 0x80][..]));
        assert!(reader.is_empty());
    }

    #[test]
    fn numbers_are_read_with_their_sign() {
        let read = |bytes: &[u8]| Reader::new(bytes).small_integer(INTEGER);
        assert_eq!(read(&[2, 1, 0]), Some(0));
        assert_eq!(read(&[2, 1, 0xff]), Some(-1));
        assert_eq!(read(&[2, 2, 0, 0x80]), Some(128));
        assert_eq!(read(&[2, 8, 0x7f, 255, 255, 255, 255, 255, 255, 255]), Some(i64::MAX));
        assert_eq!(read(&[2, 9, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), None, "too large");
        assert_eq!(read(&[2, 2, 0, 0x7f]), None, "needless zero");
        assert_eq!(read(&[2, 2, 0xff, 0x80]), None, "needless sign");
        assert_eq!(read(&[2, 0]), None, "nothing");
    }

    #[test]
    fn identifiers_have_whole_short_arcs_of_31_bits() {
        let read = |bytes: &[u8]| Reader::new(bytes).object_identifier().is_some();
        assert!(read(&[6, 3, 0x2b, 0x65, 0x70]));
        assert!(read(&[6, 6, 0x2b, 0x87, 0xff, 0xff, 0xff, 0x7f]), "2^31 - 1");
        assert!(!read(&[6, 6, 0x2b, 0x88, 0x80, 0x80, 0x80, 0x00]), "2^31");
        assert!(!read(&[6, 2, 0x2b, 0x80]), "cut off");
        assert!(!read(&[6, 3, 0x2b, 0x80, 0x01]), "needless digit");
        assert!(!read(&[6, 0]), "nothing");
    }

    #[test]
    fn unused_bits_must_be_clear_and_are_shifted_out() {
        let read = |bytes: &[u8]| Reader::new(bytes).bits().map(Cow::into_owned);
        assert_eq!(read(&[3, 3, 0, 0xab, 0xcd]), Some(vec![0xab, 0xcd]));
        assert_eq!(read(&[3, 3, 4, 0xab, 0xc0]), Some(vec![0x0a, 0xbc]));
        assert_eq!(read(&[3, 3, 4, 0xab, 0xcd]), None, "used");
        assert_eq!(read(&[3, 2, 8, 0]), None, "too many");
        assert_eq!(read(&[3, 1, 0]), Some(Vec::new()));
        assert_eq!(read(&[3, 1, 1]), None, "unused bits of nothing");
        assert_eq!(read(&[3, 0]), None, "nothing");
    }
}
