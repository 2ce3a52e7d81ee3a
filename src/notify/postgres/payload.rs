//! What one replica tells the others, as the text of a NOTIFY.
//!
//! Base 64 of: version (1 byte), origin (8), serial number (8), then entries up to the end. An
//! entry is: flags (1), tag of the user (16); where it tells of a run: newest revision (8),
//! revisions before it in the run (2), milliseconds since its commit (4), length of the client's
//! name (1) and the name. Numbers are big-endian. A message without entries proves that messages
//! are heard.

use bytes::{Buf as _, BufMut as _};
use data_encoding::BASE64_NOPAD;
use thiserror::Error;

use super::super::tag::UserTag;
use crate::limits::{MAX_ANNOUNCED_CLIENT_ID_BYTES, MAX_NOTIFY_PAYLOAD_BYTES};

/// Changes whenever the meaning of the bytes does. A replica leaves other versions to its
/// comparison of heads.
const VERSION: u8 = 1;
/// The user's streams are to be woken although nothing changed.
const NUDGE: u8 = 1;
/// A run of revisions follows.
const RUN: u8 = 2;
/// Most bytes before base 64.
const MAX_MESSAGE_BYTES: usize = MAX_NOTIFY_PAYLOAD_BYTES / 4 * 3;
const MAX_ENTRY_BYTES: usize = 1 + UserTag::BYTES + 8 + 2 + 4 + 1 + MAX_ANNOUNCED_CLIENT_ID_BYTES;
const HEADER_BYTES: usize = 1 + 8 + 8;

// The length of a name fits its byte, and every entry fits a message.
const _: () = assert!(MAX_ANNOUNCED_CLIENT_ID_BYTES <= u8::MAX as usize);
const _: () = assert!(HEADER_BYTES + MAX_ENTRY_BYTES <= MAX_MESSAGE_BYTES);

/// Who sends, and which of its messages this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// One run of one process.
    pub(super) origin: u64,
    /// Rises with each transaction of the origin.
    pub(super) serial: u64,
}

/// News of one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) tag: UserTag,
    pub(super) nudge: bool,
    pub(super) run: Option<EntryRun<'a>>,
}

/// An unbroken run of one client's revisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntryRun<'a> {
    pub(super) from: u64,
    pub(super) to: u64,
    /// Absent for several writers, a nameless one, and one with too long a name.
    pub(super) client_id: Option<&'a str>,
    /// Time from the commit of `to` until the message was packed.
    pub(super) age_ms: u32,
}

/// Why a message cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum Unreadable {
    #[error("it is not base 64")]
    Encoding,
    #[error("it is of version {0}")]
    Version(u8),
    #[error("it ends too early")]
    Truncated,
    #[error("a name in it is not text")]
    Name,
}

/// Packs entries into as few texts as they need; one text at least.
pub(super) fn encode<'a>(header: Header, entries: impl Iterator<Item = Entry<'a>>) -> Vec<String> {
    let mut texts = Vec::new();
    let mut message = begin(header);
    let mut packed = Vec::with_capacity(MAX_ENTRY_BYTES);
    for entry in entries {
        packed.clear();
        entry.put(&mut packed);
        if message.len() + packed.len() > MAX_MESSAGE_BYTES {
            texts.push(BASE64_NOPAD.encode(&message));
            message = begin(header);
        }
        message.extend_from_slice(&packed);
    }
    texts.push(BASE64_NOPAD.encode(&message));
    texts
}

fn begin(header: Header) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_BYTES + MAX_ENTRY_BYTES);
    message.put_u8(VERSION);
    message.put_u64(header.origin);
    message.put_u64(header.serial);
    message
}

impl Entry<'_> {
    fn put(&self, buffer: &mut Vec<u8>) {
        let flags = u8::from(self.nudge) * NUDGE + u8::from(self.run.is_some()) * RUN;
        buffer.put_u8(flags);
        buffer.put_slice(self.tag.as_bytes());
        let Some(run) = self.run else { return };
        // A run told shorter than it is looks like a hole, which names nobody.
        let before = u16::try_from(run.to.saturating_sub(run.from)).unwrap_or(u16::MAX);
        let client_id = run.client_id.filter(|id| id.len() <= MAX_ANNOUNCED_CLIENT_ID_BYTES);
        let client_id = client_id.unwrap_or_default();
        buffer.put_u64(run.to);
        buffer.put_u16(before);
        buffer.put_u32(run.age_ms);
        buffer.put_u8(u8::try_from(client_id.len()).unwrap_or_default());
        buffer.put_slice(client_id.as_bytes());
    }
}

/// A message taken out of its base 64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) header: Header,
    bytes: Vec<u8>,
}

impl Message {
    /// Reads the beginning of a message.
    pub(super) fn decode(text: &str) -> Result<Self, Unreadable> {
        let bytes =
            BASE64_NOPAD.decode(text.as_bytes()).map_err(|_invalid| Unreadable::Encoding)?;
        let mut rest = bytes.as_slice();
        match rest.try_get_u8().map_err(truncated)? {
            VERSION => {}
            version => return Err(Unreadable::Version(version)),
        }
        let origin = rest.try_get_u64().map_err(truncated)?;
        let serial = rest.try_get_u64().map_err(truncated)?;
        Ok(Self { header: Header { origin, serial }, bytes })
    }

    /// The entries, in order; nothing comes after an error.
    pub(super) fn entries(&self) -> impl Iterator<Item = Result<Entry<'_>, Unreadable>> {
        let mut rest = &self.bytes[HEADER_BYTES..];
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let entry = read_entry(&mut rest);
            if entry.is_err() {
                rest = &[];
            }
            Some(entry)
        })
    }
}

fn read_entry<'a>(rest: &mut &'a [u8]) -> Result<Entry<'a>, Unreadable> {
    let flags = rest.try_get_u8().map_err(truncated)?;
    let (tag, after) = rest.split_first_chunk().ok_or(Unreadable::Truncated)?;
    *rest = after;
    let run = if flags & RUN == 0 { None } else { Some(read_run(rest)?) };
    Ok(Entry { tag: UserTag::new(*tag), nudge: flags & NUDGE != 0, run })
}

fn read_run<'a>(rest: &mut &'a [u8]) -> Result<EntryRun<'a>, Unreadable> {
    let to = rest.try_get_u64().map_err(truncated)?;
    let before = rest.try_get_u16().map_err(truncated)?;
    let age_ms = rest.try_get_u32().map_err(truncated)?;
    let length = rest.try_get_u8().map_err(truncated)?;
    let (name, after) = rest.split_at_checked(length.into()).ok_or(Unreadable::Truncated)?;
    *rest = after;
    let name = std::str::from_utf8(name).map_err(|_invalid| Unreadable::Name)?;
    Ok(EntryRun {
        from: to.saturating_sub(before.into()),
        to,
        client_id: Some(name).filter(|name| !name.is_empty()),
        age_ms,
    })
}

fn truncated(_: bytes::TryGetError) -> Unreadable {
    Unreadable::Truncated
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: Header = Header { origin: 7, serial: 9 };

    fn entry(number: u8, client_id: Option<&str>) -> Entry<'_> {
        let run = EntryRun { from: 3, to: 5, client_id, age_ms: 12 };
        Entry { tag: UserTag::new([number; UserTag::BYTES]), nudge: false, run: Some(run) }
    }

    fn decoded(texts: &[String]) -> Vec<Message> {
        texts.iter().map(|text| Message::decode(text).expect("readable")).collect()
    }

    #[test]
    fn entries_come_out_as_they_went_in() {
        let uuid = "0191f3a0-8c1e-7c41-b1a4-5a3f6f0d2b9c";
        let mut nudge = entry(3, None);
        nudge.nudge = true;
        let bare = Entry { run: None, ..nudge };
        let entries = [entry(1, Some(uuid)), entry(2, None), nudge, bare];
        let messages = decoded(&encode(HEADER, entries.into_iter()));
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].header, HEADER);
        let read: Vec<_> = messages[0].entries().map(|entry| entry.expect("readable")).collect();
        assert_eq!(read, entries);
    }

    #[test]
    fn a_message_without_entries_is_one_text() {
        let messages = decoded(&encode(HEADER, std::iter::empty()));
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].entries().count(), 0);
    }

    #[test]
    fn many_entries_are_split_below_what_postgres_takes() {
        let name = "n".repeat(MAX_ANNOUNCED_CLIENT_ID_BYTES);
        let texts = encode(HEADER, (0..255).map(|number| entry(number, Some(&name))));
        assert!(texts.len() > 1);
        assert!(texts.iter().all(|text| text.len() <= MAX_NOTIFY_PAYLOAD_BYTES));
        let messages = decoded(&texts);
        assert_eq!(messages.iter().map(|message| message.entries().count()).sum::<usize>(), 255);
    }

    #[test]
    fn too_long_a_name_is_left_out() {
        let name = "n".repeat(MAX_ANNOUNCED_CLIENT_ID_BYTES + 1);
        let messages = decoded(&encode(HEADER, std::iter::once(entry(1, Some(&name)))));
        let read = messages[0].entries().next().expect("one").expect("readable");
        assert_eq!(read, entry(1, None));
    }

    #[test]
    fn too_long_a_run_is_told_shorter() {
        let long = EntryRun { from: 1, to: 100_000, client_id: None, age_ms: 0 };
        let entry = Entry { run: Some(long), ..entry(1, None) };
        let messages = decoded(&encode(HEADER, std::iter::once(entry)));
        let run = messages[0].entries().next().expect("one").expect("readable").run.expect("a run");
        assert_eq!((run.from, run.to), (100_000 - u64::from(u16::MAX), 100_000));
    }

    #[test]
    fn a_message_of_another_version_is_refused() {
        let text = BASE64_NOPAD.encode(&[2; 40]);
        assert_eq!(Message::decode(&text), Err(Unreadable::Version(2)));
    }

    #[test]
    fn a_message_cut_anywhere_ends_with_an_error_or_between_entries() {
        let text = &encode(HEADER, std::iter::once(entry(1, Some("ab"))))[0];
        let bytes = BASE64_NOPAD.decode(text.as_bytes()).expect("base 64");
        for length in 0..bytes.len() {
            let cut = Message::decode(&BASE64_NOPAD.encode(&bytes[..length]));
            match cut {
                Err(error) => assert_eq!(error, Unreadable::Truncated),
                Ok(message) if length == HEADER_BYTES => assert_eq!(message.entries().count(), 0),
                Ok(message) => {
                    let entries: Vec<_> = message.entries().collect();
                    assert_eq!(entries, [Err(Unreadable::Truncated)], "{length} bytes");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_text_brings_the_reader_down(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            if let Ok(message) = Message::decode(&BASE64_NOPAD.encode(&bytes)) {
                prop_assert!(message.entries().count() <= bytes.len());
            }
        }
    }
}
