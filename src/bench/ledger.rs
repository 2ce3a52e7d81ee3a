//! Accounting of a listen run, after the fact: which write did which stream hear of, and when.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::{report::approximate, tally::Times};

/// A write that was acknowledged. Times count from the run's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) user: usize,
    /// The write's number, carried by its client id.
    pub(super) number: u64,
    pub(super) revision: u64,
    pub(super) sent: Duration,
    pub(super) acknowledged: Duration,
}

/// What a stream said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// It is live: its first notification. A client lists changes when it hears this.
    Live { revision: u64 },
    /// Something changed. `writer` is the write's number, where the notification names one;
    /// `revision` is 0 where it tells none, as with the Go server.
    Changed { writer: Option<u64>, revision: u64 },
}

/// One thing that a stream said, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) at: Duration,
    pub(super) said: Said,
}

/// What one logical stream heard, over all its connections.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) user: usize,
    pub(super) events: Vec<Event>,
    pub(super) ended: BTreeMap<String, u64>,
    /// How long each opening took until the stream was live.
    pub(super) opened: Vec<Duration>,
}

/// The sums of a listen run.
#[derive(Debug, Clone, Default)]
pub(super) struct ListenTally {
    pub(super) streams: u64,
    pub(super) open: Times,
    pub(super) reopened: u64,
    pub(super) ended: BTreeMap<String, u64>,
    pub(super) expected: u64,
    pub(super) delivered: u64,
    pub(super) merged: u64,
    pub(super) caught_up: u64,
    pub(super) lost: u64,
    pub(super) spare: u64,
    pub(super) after_ack: Times,
    pub(super) after_send: Times,
    /// What the server's memory grew by while the streams opened, where that is known.
    pub(super) stream_bytes: Option<u64>,
}

impl ListenTally {
    pub(super) fn bytes_each(&self) -> Option<f64> {
        let bytes = self.stream_bytes.filter(|_| self.streams > 0)?;
        Some(approximate(bytes) / approximate(self.streams))
    }

    /// Counts what every stream heard of the `writes`.
    pub(super) fn count(heard: &[Heard], writes: &[Write]) -> Self {
        let mut by_user: HashMap<usize, Vec<Write>> = HashMap::new();
        for write in writes {
            by_user.entry(write.user).or_default().push(*write);
        }
        let books: HashMap<usize, Book> =
            by_user.into_iter().map(|(user, writes)| (user, Book::new(writes))).collect();
        let none = Book::default();
        let mut tally = Self { streams: heard.len() as u64, ..Self::default() };
        for stream in heard {
            stream.opened.iter().for_each(|time| tally.open.record(*time));
            for (kind, count) in &stream.ended {
                *tally.ended.entry(kind.clone()).or_default() += count;
            }
            Reading::new(books.get(&stream.user).unwrap_or(&none)).read(&stream.events, &mut tally);
        }
        tally
    }
}

/// One user's writes in the order of their revisions.
#[derive(Debug, Default)]
struct Book {
    writes: Vec<Write>,
    place: HashMap<u64, usize>,
}

impl Book {
    fn new(mut writes: Vec<Write>) -> Self {
        writes.sort_unstable_by_key(|write| write.revision);
        let place = writes.iter().enumerate().map(|(place, write)| (write.number, place)).collect();
        Self { writes, place }
    }
}

/// One stream's way through its user's book.
struct Reading<'a> {
    book: &'a Book,
    told: Vec<bool>,
    /// Everything before this place is told.
    next: usize,
    lives: u64,
}

impl<'a> Reading<'a> {
    fn new(book: &'a Book) -> Self {
        Self { book, told: vec![false; book.writes.len()], next: 0, lives: 0 }
    }

    fn read(mut self, events: &[Event], tally: &mut ListenTally) {
        for event in events {
            match event.said {
                Said::Live { revision } => self.live(event.at, revision, tally),
                Said::Changed { writer, revision } => {
                    let news = self.changed(event.at, writer, revision, tally);
                    tally.delivered += news;
                    tally.merged += if news > 1 { news } else { 0 };
                    tally.spare += u64::from(news == 0);
                }
            }
        }
        tally.expected += self.told.len() as u64;
        tally.lost += self.told.iter().filter(|told| !**told).count() as u64;
        tally.reopened += self.lives.saturating_sub(1);
    }

    /// The client lists now: whatever was there by then, it learns.
    fn live(&mut self, at: Duration, revision: u64, tally: &mut ListenTally) {
        self.lives += 1;
        for (place, write) in self.book.writes.iter().enumerate().skip(self.next) {
            let there = write.acknowledged <= at || write.revision <= revision;
            if there && !self.told[place] {
                self.told[place] = true;
                tally.caught_up += 1;
            }
        }
        self.advance();
    }

    fn changed(
        &mut self,
        at: Duration,
        writer: Option<u64>,
        revision: u64,
        tally: &mut ListenTally,
    ) -> u64 {
        let mut news = 0;
        if revision > 0 {
            let mut place = self.next;
            while self.book.writes.get(place).is_some_and(|write| write.revision <= revision) {
                news += self.tell(place, at, tally);
                place += 1;
            }
        } else if let Some(&place) = writer.and_then(|number| self.book.place.get(&number)) {
            news += self.tell(place, at, tally);
        }
        self.advance();
        news
    }

    fn tell(&mut self, place: usize, at: Duration, tally: &mut ListenTally) -> u64 {
        if std::mem::replace(&mut self.told[place], true) {
            return 0;
        }
        let write = &self.book.writes[place];
        tally.after_ack.record(at.saturating_sub(write.acknowledged));
        tally.after_send.record(at.saturating_sub(write.sent));
        1
    }

    fn advance(&mut self) {
        while self.told.get(self.next) == Some(&true) {
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Write n is sent at 10 n ms, acknowledged 2 ms later as revision n.
    fn writes(count: u64) -> Vec<Write> {
        let write = |number| Write {
            user: 0,
            number,
            revision: number,
            sent: ms(10 * number),
            acknowledged: ms(10 * number + 2),
        };
        (1..=count).map(write).collect()
    }

    fn live(at: u64, revision: u64) -> Event {
        Event { at: ms(at), said: Said::Live { revision } }
    }

    fn changed(at: u64, writer: Option<u64>, revision: u64) -> Event {
        Event { at: ms(at), said: Said::Changed { writer, revision } }
    }

    fn count(events: Vec<Event>, writes: &[Write]) -> ListenTally {
        ListenTally::count(&[Heard { events, ..Heard::default() }], writes)
    }

    #[test]
    fn each_write_is_told_once_and_timed() {
        let tally =
            count(vec![live(0, 0), changed(13, Some(1), 1), changed(21, Some(2), 2)], &writes(2));
        assert_eq!((tally.expected, tally.delivered, tally.lost), (2, 2, 0));
        assert_eq!((tally.merged, tally.spare, tally.reopened), (0, 0, 0));
        assert!((tally.after_send.max_ms() - 3.0).abs() < 0.01);
        // The second came a millisecond before its acknowledgement: counted as none.
        assert!(tally.after_ack.quantile_ms(0.0) < 0.001);
        assert!((tally.after_ack.max_ms() - 1.0).abs() < 0.01);
    }

    #[test]
    fn a_merged_notification_tells_all_it_covers() {
        let tally = count(vec![live(0, 0), changed(40, None, 3)], &writes(3));
        assert_eq!((tally.delivered, tally.merged, tally.lost), (3, 3, 0));
    }

    #[test]
    fn without_revisions_the_writer_is_what_counts_and_a_gap_is_a_loss() {
        let tally =
            count(vec![live(0, 0), changed(33, Some(3), 0), changed(34, Some(1), 0)], &writes(3));
        assert_eq!((tally.delivered, tally.merged, tally.lost), (2, 0, 1));
    }

    #[test]
    fn what_was_written_while_a_stream_was_away_is_caught_up() {
        let tally = count(
            vec![live(0, 0), changed(13, Some(1), 0), live(25, 0), changed(33, Some(3), 0)],
            &writes(3),
        );
        assert_eq!((tally.delivered, tally.caught_up, tally.lost), (2, 1, 0));
        assert_eq!(tally.reopened, 1);
    }

    #[test]
    fn a_notification_that_tells_nothing_new_is_spare() {
        let tally = count(
            vec![
                live(0, 0),
                changed(13, Some(1), 1),
                changed(14, Some(1), 1),
                changed(15, None, 0),
            ],
            &writes(1),
        );
        assert_eq!((tally.delivered, tally.spare), (1, 2));
    }

    #[test]
    fn streams_of_other_users_expect_nothing() {
        let heard = Heard { user: 7, events: vec![live(0, 0)], ..Heard::default() };
        let tally = ListenTally::count(&[heard], &writes(3));
        assert_eq!((tally.streams, tally.expected, tally.lost), (1, 0, 0));
    }
}
