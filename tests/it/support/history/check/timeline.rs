//! One user's accepted writes in the order of their revisions, and when each was committed.

use std::collections::{BTreeMap, BTreeSet};

use super::{Context, Nanos, Report, Rule, UserEvents};
use crate::support::history::event::{Answer, Listed, Set, SetReply};

/// One accepted write, answered or seen.
#[derive(Debug)]
pub(super) struct Version<'h> {
    pub(super) revision: u64,
    pub(super) set: &'h Set,
    /// Not committed before this: no write of this or a lower revision was sent later.
    pub(super) sent: Nanos,
    /// Committed by then: this or a higher revision was answered or shown.
    pub(super) seen: Nanos,
    /// As `sent`, and no page that was asked for later had a lower head.
    pub(super) earliest: Nanos,
    /// As `seen`, and some page returned by then had this head or a higher one.
    pub(super) latest: Nanos,
    /// The record's next version, as an index into the timeline.
    pub(super) next: Option<usize>,
    /// The record's version before, likewise.
    pub(super) previous: Option<usize>,
}

/// One user's history of records.
#[derive(Debug, Default)]
pub(super) struct Timeline<'h> {
    /// In ascending revision.
    pub(super) versions: Vec<Version<'h>>,
    /// The versions of each record, as indices in ascending revision.
    pub(super) by_id: BTreeMap<&'h str, Vec<usize>>,
    /// The greatest revision that anybody was told of.
    pub(super) head: u64,
    /// When each head was first known, by descending head and falling time.
    heads_seen: Vec<(u64, Nanos)>,
}

/// Somebody was shown that a write has a revision.
struct Sighting<'h> {
    revision: u64,
    tag: u64,
    /// What was shown; nothing where the writer was answered.
    shown: Option<&'h Listed>,
    at: Nanos,
}

impl<'h> Timeline<'h> {
    /// Reads the timeline from all that was answered and shown. Reports L1, L2, L7 and N3 where
    /// that cannot be put together.
    pub(super) fn read(
        events: &UserEvents<'h>,
        context: &Context<'h>,
        report: &mut Report,
    ) -> Self {
        let mut timeline = Self { heads_seen: heads_seen(events), ..Self::default() };
        timeline.place(sightings(events), context, report);
        timeline.bound(events, report);
        timeline.chain();
        let last = timeline.versions.last().map_or(0, |version| version.revision);
        let most = timeline.heads_seen.first().map_or(0, |(head, _)| *head);
        timeline.head = last.max(most);
        timeline
    }

    fn place(&mut self, mut seen: Vec<Sighting<'h>>, context: &Context<'h>, report: &mut Report) {
        seen.sort_by_key(|sighting| (sighting.revision, sighting.at));
        let mut placed = BTreeMap::<u64, u64>::new();
        for Sighting { revision, tag, shown, at } in seen {
            let Some(set) = known(tag, shown, context, report) else { continue };
            if revision == 0 {
                report.add(Rule::L1, format!("the write of {:?} has revision 0", set.id));
                continue;
            }
            match self.versions.last_mut() {
                Some(last) if last.revision == revision && last.set.tag == tag => {
                    last.seen = last.seen.min(at);
                    continue;
                }
                Some(last) if last.revision == revision => {
                    let (one, other) = (&last.set.id, &set.id);
                    let what = format!("revision {revision} belongs to {one:?} and {other:?}");
                    report.add(Rule::L1, what);
                    continue;
                }
                _ => {}
            }
            if let Some(first) = placed.insert(tag, revision) {
                let id = &set.id;
                let what = format!("one write of {id:?} has revisions {first} and {revision}");
                report.add(Rule::L7, what);
            }
            if set.written().is_none() && !set.is_open() {
                let id = &set.id;
                let what = format!("a refused write of {id:?} is there as revision {revision}");
                report.add(Rule::L7, what);
            }
            self.versions.push(Version {
                revision,
                set,
                sent: set.invoked(),
                seen: at,
                earliest: 0,
                latest: 0,
                next: None,
                previous: None,
            });
        }
    }

    /// Carries the bounds over: revisions are committed in their order.
    fn bound(&mut self, events: &UserEvents<'h>, report: &mut Report) {
        let mut latest_sent = (0, 0);
        for version in &mut self.versions {
            if version.seen < latest_sent.0 {
                let (later, earlier) = (version.revision, latest_sent.1);
                let what = format!("revision {later} was answered before {earlier} was sent");
                report.add(Rule::L2, what);
            }
            latest_sent = latest_sent.max((version.sent, version.revision));
            version.sent = latest_sent.0;
        }
        let mut seen = Nanos::MAX;
        for version in self.versions.iter_mut().rev() {
            seen = seen.min(version.seen);
            version.seen = seen;
        }
        for version in &mut self.versions {
            version.earliest = version.sent;
        }
        for (head, asked) in pages(events).map(|(list, head, _)| (head, list)) {
            let above = self.above(head);
            if let Some(version) = self.versions.get_mut(above) {
                version.earliest = version.earliest.max(asked);
            }
        }
        let mut earliest = 0;
        for version in &mut self.versions {
            earliest = earliest.max(version.earliest);
            version.earliest = earliest;
        }
        for index in 0..self.versions.len() {
            let known = self.head_seen(self.versions[index].revision);
            let version = &mut self.versions[index];
            version.latest = version.seen.min(known.unwrap_or(Nanos::MAX));
        }
    }

    fn chain(&mut self) {
        for index in 0..self.versions.len() {
            let id = self.versions[index].set.id.as_str();
            let versions = self.by_id.entry(id).or_default();
            let previous = versions.last().copied();
            versions.push(index);
            self.versions[index].previous = previous;
            if let Some(previous) = previous {
                self.versions[previous].next = Some(index);
            }
        }
    }

    /// Index of the first version above `revision`.
    pub(super) fn above(&self, revision: u64) -> usize {
        self.versions.partition_point(|version| version.revision <= revision)
    }

    /// The version with exactly this revision.
    pub(super) fn at(&self, revision: u64) -> Option<&Version<'h>> {
        let index = self.above(revision).checked_sub(1)?;
        Some(&self.versions[index]).filter(|version| version.revision == revision)
    }

    /// The revision of the version at `index`; that of the head beyond the last.
    pub(super) fn revision(&self, index: usize) -> u64 {
        self.versions[index].revision
    }

    /// When a page with at least this head had been returned, if ever.
    pub(super) fn head_seen(&self, head: u64) -> Option<Nanos> {
        let covering = self.heads_seen.partition_point(|(seen, _)| *seen >= head);
        Some(self.heads_seen[covering.checked_sub(1)?].1)
    }

    /// The versions of a record that may have been current at some instant of the interval, and
    /// whether it may have been absent.
    pub(super) fn current_between(
        &self,
        id: &str,
        from: Nanos,
        until: Nanos,
    ) -> (impl Iterator<Item = &Version<'h>>, bool) {
        let indices = self.by_id.get(id).map_or(&[][..], Vec::as_slice);
        let before = indices.partition_point(|index| self.versions[*index].latest < from);
        let begun = indices.partition_point(|index| self.versions[*index].earliest <= until);
        let first = before.saturating_sub(1);
        let may_be_current = indices[first..begun.max(first)].iter();
        (may_be_current.map(|index| &self.versions[*index]), before == 0)
    }

    /// Writes that nobody was told of and nobody saw.
    pub(super) fn unseen<'e>(
        &self,
        events: &'e UserEvents<'h>,
    ) -> impl Iterator<Item = &'h Set> + use<'h, 'e> {
        let seen: BTreeSet<u64> = self.versions.iter().map(|version| version.set.tag).collect();
        events.sets.iter().copied().filter(move |set| set.is_open() && !seen.contains(&set.tag))
    }
}

/// The write that was shown; reports what cannot be one of this user's.
fn known<'h>(
    tag: u64,
    shown: Option<&Listed>,
    context: &Context<'h>,
    report: &mut Report,
) -> Option<&'h Set> {
    let Some(set) = context.by_tag.get(&tag).copied() else {
        report.add(Rule::L5, format!("a record was shown that nobody wrote: {shown:?}"));
        return None;
    };
    if set.by.user != report.user {
        let what = format!("a record of user {} was shown: {:?}", set.by.user, set.id);
        report.add(Rule::N3, what);
        return None;
    }
    if let Some(shown) = shown
        && (shown.id != set.id || shown.bytes != set.bytes)
    {
        let (id, bytes) = (&set.id, set.bytes);
        let what = format!("a record was shown as {shown:?} but written as {id:?}, {bytes} bytes");
        report.add(Rule::L5, what);
        return None;
    }
    Some(set)
}

/// Answered pages: when asked, their head, when returned.
fn pages<'e>(events: &'e UserEvents<'_>) -> impl Iterator<Item = (Nanos, u64, Nanos)> + 'e {
    let lists = events.lists.iter().filter_map(|list| match &list.answer {
        Answer::Ok(page) => Some((list.invoked, page.head, list.returned?)),
        Answer::Refused(_) | Answer::Unknown(_) => None,
    });
    lists.chain(events.state.map(|state| (state.at, state.head, state.at)))
}

/// When each head was first known to be reached: descending heads, falling times.
fn heads_seen(events: &UserEvents<'_>) -> Vec<(u64, Nanos)> {
    let mut heads: Vec<_> = pages(events).map(|(_, head, returned)| (head, returned)).collect();
    heads.sort_unstable_by(|one, other| other.cmp(one));
    let mut earliest = Nanos::MAX;
    for (_, returned) in &mut heads {
        earliest = earliest.min(*returned);
        *returned = earliest;
    }
    heads
}

fn sightings<'h>(events: &UserEvents<'h>) -> Vec<Sighting<'h>> {
    let mut seen = Vec::new();
    for set in &events.sets {
        for send in &set.sends {
            let Some(at) = send.returned else { continue };
            match &send.answer {
                Answer::Ok(SetReply::Written(revision)) => {
                    seen.push(Sighting { revision: *revision, tag: set.tag, shown: None, at });
                }
                Answer::Ok(SetReply::Conflict(Some(current))) => seen.push(sighting(current, at)),
                _ => {}
            }
        }
    }
    for list in &events.lists {
        if let (Answer::Ok(page), Some(at)) = (&list.answer, list.returned) {
            seen.extend(page.records.iter().map(|record| sighting(record, at)));
        }
    }
    if let Some(state) = events.state {
        seen.extend(state.records.iter().map(|record| sighting(record, state.at)));
    }
    seen
}

const fn sighting(shown: &Listed, at: Nanos) -> Sighting<'_> {
    Sighting { revision: shown.revision, tag: shown.tag, shown: Some(shown), at }
}
