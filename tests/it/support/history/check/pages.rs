//! Rule L5: every page is a prefix of one state.

use super::{Context, List, Nanos, Report, Rule, UserEvents, timeline::Timeline};
use crate::support::history::event::{Answer, Limits, Listed, Page};

/// Checks each page, and the last state as if it were one without a cut.
pub(super) fn check(
    events: &UserEvents<'_>,
    timeline: &Timeline<'_>,
    context: &Context<'_>,
    report: &mut Report,
) {
    for list in &events.lists {
        let (Answer::Ok(page), Some(returned)) = (&list.answer, list.returned) else { continue };
        if let Err(what) = page_fits(list, page, returned, timeline, &context.settings.limits) {
            let (since, head, user) = (list.since, page.head, list.by.client);
            let what = format!("client {user} listed from {since}, head {head}: {what}");
            report.add(Rule::L5, what);
        }
    }
    if let Some(state) = events.state {
        let end = State { since: 0, until: state.head, head: state.head };
        let state = head_fits(state.head, state.at, state.at, timeline)
            .and_then(|()| records_fit(&state.records, end, timeline));
        if let Err(what) = state {
            report.add(Rule::L5, format!("the last state: {what}"));
        }
    }
}

/// What a page shows: the records of the state at `head` with revisions above `since` and up to
/// `until`.
#[derive(Debug, Clone, Copy)]
struct State {
    since: u64,
    until: u64,
    head: u64,
}

fn page_fits(
    list: &List,
    page: &Page,
    returned: Nanos,
    timeline: &Timeline<'_>,
    limits: &Limits,
) -> Result<(), String> {
    head_fits(page.head, list.invoked, returned, timeline)?;
    let last = page.records.last().map(|record| record.revision);
    let until = match (page.has_more, last) {
        (true, Some(last)) => last,
        (true, None) => return Err("an empty page names more".to_owned()),
        (false, _) => page.head,
    };
    let state = State { since: list.since, until, head: page.head };
    records_fit(&page.records, state, timeline)?;
    cut_fits(page, timeline, limits)
}

/// The head is of an instant within the call.
fn head_fits(
    head: u64,
    invoked: Nanos,
    returned: Nanos,
    timeline: &Timeline<'_>,
) -> Result<(), String> {
    let above = timeline.above(head);
    if let Some(version) = timeline.versions.get(above).filter(|version| version.seen < invoked) {
        let revision = version.revision;
        return Err(format!(
            "the page is stale, revision {revision} was there before it was asked"
        ));
    }
    let newest = above.checked_sub(1).map(|index| &timeline.versions[index]);
    if let Some(version) = newest.filter(|version| version.sent > returned) {
        let revision = version.revision;
        return Err(format!("revision {revision} was sent only after the page was there"));
    }
    Ok(())
}

/// The records are exactly those of the state, in ascending revision.
fn records_fit(records: &[Listed], state: State, timeline: &Timeline<'_>) -> Result<(), String> {
    if !records.is_sorted_by(|one, other| one.revision < other.revision) {
        return Err("revisions do not rise".to_owned());
    }
    let outside =
        |record: &&Listed| record.revision <= state.since || record.revision > state.until;
    if let Some(record) = records.iter().find(outside) {
        return Err(format!("revision {} does not belong here", record.revision));
    }
    let mut shown = records.iter().map(|record| record.revision).peekable();
    let range = timeline.above(state.since)..timeline.above(state.until);
    for version in timeline.versions.get(range).unwrap_or_default() {
        let superseded = version.next.is_some_and(|next| timeline.revision(next) <= state.head);
        let is_shown = shown.next_if(|revision| *revision <= version.revision).is_some();
        if superseded && is_shown {
            return Err(format!("revision {} was superseded already", version.revision));
        }
        if !superseded && !is_shown {
            let (id, revision) = (&version.set.id, version.revision);
            return Err(format!("revision {revision} of {id:?} is missing"));
        }
    }
    Ok(())
}

/// The page is cut where the limits say, and no earlier.
fn cut_fits(page: &Page, timeline: &Timeline<'_>, limits: &Limits) -> Result<(), String> {
    let records = page.records.len() as u64;
    let bytes: u64 = page.records.iter().map(Listed::page_bytes).sum();
    if records > limits.page_records {
        return Err(format!("{records} records are more than a page holds"));
    }
    if records > 1 && bytes > limits.page_bytes {
        return Err(format!("{bytes} bytes are more than a page holds"));
    }
    let last = page.records.last().filter(|_| page.has_more);
    let Some(last) = last.map(|record| record.revision) else { return Ok(()) };
    let current = |next: Option<usize>| next.is_none_or(|next| timeline.revision(next) > page.head);
    let range = timeline.above(last)..timeline.above(page.head);
    let mut rest = timeline.versions.get(range).unwrap_or_default().iter();
    let Some(next) = rest.find(|version| current(version.next)) else {
        return Err("the page names more, but there is no more".to_owned());
    };
    let next = Listed {
        id: next.set.id.clone(),
        revision: next.revision,
        tag: next.set.tag,
        bytes: next.set.bytes,
    };
    if records < limits.page_records && bytes + next.page_bytes() <= limits.page_bytes {
        return Err(format!("the page is cut at {records} records and {bytes} bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::testing::Script, Rule};

    /// Records "a" at 2 (once at 1) and "b" at 3, written by clients 1 and 2; their tags.
    fn three_writes() -> (Script, [u64; 3]) {
        let mut script = Script::new();
        let one = script.set(1, "a", 0).ok(1);
        let two = script.set(2, "a", 1).ok(2);
        let three = script.set(1, "b", 0).ok(3);
        (script, [one, two, three])
    }

    #[test]
    fn a_page_shows_the_newest_of_each_record() {
        let (mut script, [_, two, three]) = three_writes();
        script.list(2, 0).shows(&[("a", 2, two), ("b", 3, three)], 3);
        script.list(2, 2).shows(&[("b", 3, three)], 3);
        script.list(2, 3).shows(&[], 3);
        script.list(2, 99).shows(&[], 3);
        script.is_correct();
    }

    #[test]
    fn a_page_leaves_nothing_out() {
        let (mut script, [_, two, _]) = three_writes();
        script.list(2, 0).shows(&[("a", 2, two)], 3);
        script.breaks(Rule::L5);
    }

    #[test]
    fn a_page_shows_nothing_superseded() {
        let (mut script, [one, _, three]) = three_writes();
        script.list(2, 0).shows(&[("a", 1, one), ("b", 3, three)], 3);
        script.breaks(Rule::L5);
    }

    #[test]
    fn a_page_is_not_stale() {
        let (mut script, [_, two, _]) = three_writes();
        script.list(2, 0).between(45, 65).shows(&[("a", 2, two)], 2);
        script.is_correct();
        script.list(2, 0).shows(&[("a", 2, two)], 2);
        script.breaks(Rule::L5);
    }

    #[test]
    fn a_page_is_not_from_the_future() {
        let (mut script, [_, two, three]) = three_writes();
        script.list(2, 0).between(1, 45).shows(&[("a", 2, two), ("b", 3, three)], 3);
        script.breaks(Rule::L5);
    }

    #[test]
    fn a_page_ascends() {
        let (mut script, [_, two, three]) = three_writes();
        script.list(2, 0).shows(&[("b", 3, three), ("a", 2, two)], 3);
        script.breaks(Rule::L5);
    }

    #[test]
    fn a_page_shows_what_was_written() {
        let (mut script, [_, _, three]) = three_writes();
        script.list(2, 2).shows(&[("b", 3, three)], 3);
        script.is_correct();
        script.list(2, 2).shows(&[("b", 3, 999)], 3);
        script.breaks(Rule::L5);
    }

    #[test]
    fn a_page_is_cut_at_its_limits_and_not_before() {
        let mut script = Script::new();
        let tags: Vec<u64> = ["a", "b", "c", "d"]
            .iter()
            .zip(1..)
            .map(|(id, at)| script.set(1, id, 0).ok(at))
            .collect();
        let page = [("a", 1, tags[0]), ("b", 2, tags[1]), ("c", 3, tags[2]), ("d", 4, tags[3])];
        let mut correct = script.clone();
        correct.list(2, 0).cut(&page[..3], 4);
        correct.list(2, 3).shows(&page[3..], 4);
        correct.is_correct();

        let mut short = script.clone();
        short.list(2, 0).cut(&page[..2], 4);
        short.breaks(Rule::L5);
        let mut long = script.clone();
        long.list(2, 0).shows(&page, 4);
        long.breaks(Rule::L5);
        let mut boundless = script.clone();
        boundless.edit_settings(|settings| settings.limits.page_bytes = 50);
        boundless.list(2, 0).cut(&page[..2], 4);
        boundless.breaks(Rule::L5);
        script.list(2, 1).cut(&page[1..], 4);
        script.breaks(Rule::L5);
    }

    #[test]
    fn the_last_state_is_whole() {
        let (mut script, [_, two, three]) = three_writes();
        let mut whole = script.clone();
        whole.state(&[("a", 2, two), ("b", 3, three)], 3);
        whole.is_correct();
        script.state(&[("a", 2, two)], 3);
        script.breaks(Rule::L5);
    }
}
