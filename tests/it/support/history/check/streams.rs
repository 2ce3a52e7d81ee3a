//! Rules N1, N2, N3 and N5: what streams were told.

use super::{Context, Nanos, Notified, Report, Rule, Stream, UserEvents, timeline::Timeline};

/// Checks every stream of one user.
pub(super) fn check(
    events: &UserEvents<'_>,
    timeline: &Timeline<'_>,
    context: &Context<'_>,
    report: &mut Report,
) {
    let was_cut = events
        .lists
        .iter()
        .any(|list| matches!(&list.answer, super::Answer::Ok(page) if page.has_more));
    for stream in &events.streams {
        let judge = Judge { stream, timeline, context, own: stream.listen.by.client_id() };
        judge.form(report);
        judge.names(report);
        judge.wakes(report);
        if context.settings.exact_echo && !was_cut {
            judge.echoes(report);
        }
    }
}

/// One stream and what it is held against.
struct Judge<'j, 'h> {
    stream: &'j Stream<'h>,
    timeline: &'j Timeline<'h>,
    context: &'j Context<'h>,
    /// The listener's own client id.
    own: String,
}

impl Judge<'_, '_> {
    fn number(&self) -> u64 {
        self.stream.listen.stream
    }

    /// N2 and N3: the first notification is empty, revisions rise and exist, names are the user's,
    /// the end is no success.
    fn form(&self, report: &mut Report) {
        let number = self.number();
        if let Some(first) = self.stream.told.first()
            && (first.client_id.is_some() || first.revision != 0)
        {
            report.add(Rule::N2, format!("stream {number} does not begin empty"));
        }
        for pair in self.stream.told.windows(2) {
            if pair[1].revision < pair[0].revision {
                let (before, after) = (pair[0].revision, pair[1].revision);
                report.add(Rule::N2, format!("stream {number} goes from {before} to {after}"));
            }
        }
        for told in &self.stream.told {
            let revision = told.revision;
            if revision > self.timeline.head {
                let what = format!("stream {number} was told of {revision}, which never was");
                report.add(Rule::N3, what);
            }
            if self.timeline.at(revision).is_some_and(|version| version.sent > told.at) {
                let what = format!("stream {number} was told of {revision} before it was sent");
                report.add(Rule::N2, what);
            }
            let owner = told.client_id.as_ref().and_then(|id| self.context.client_ids.get(id));
            if let Some(owner) = owner.filter(|owner| **owner != report.user) {
                let what = format!("stream {number} was told of a client of user {owner}");
                report.add(Rule::N3, what);
            }
        }
        if self.stream.ended.is_some_and(|ended| ended.code == "OK") {
            report.add(Rule::N2, format!("stream {number} ended with OK"));
        }
    }

    /// The notifications after the first, each with the greatest revision that the stream had
    /// certainly not been told of before, and the one it had certainly been told of.
    fn covers(&self) -> impl Iterator<Item = (&Notified, u64, u64)> {
        let head_at = |at: Nanos, time: fn(&super::timeline::Version<'_>) -> Nanos| {
            let versions = &self.timeline.versions;
            let count = versions.partition_point(|version| time(version) <= at);
            count.checked_sub(1).map_or(0, |index| versions[index].revision)
        };
        let first = self.stream.told.first();
        let most = first.map_or(0, |first| head_at(first.at, |version| version.earliest));
        let least = head_at(self.stream.listen.invoked, |version| version.latest);
        self.stream.told.windows(2).enumerate().map(move |(index, pair)| {
            let told = pair[0].revision;
            if index == 0 { (pair[1], most, least) } else { (pair[1], told.max(most), told) }
        })
    }

    /// N2: a client is named only if everything told with it is that client's.
    fn names(&self, report: &mut Report) {
        for (told, before, _) in self.covers() {
            let Some(name) = &told.client_id else { continue };
            let range = self.timeline.above(before)..self.timeline.above(told.revision);
            let versions = self.timeline.versions.get(range).unwrap_or_default();
            let other =
                versions.iter().find(|version| version.set.client_id.as_ref() != Some(name));
            if let Some(other) = other {
                let (number, revision, covered) = (self.number(), told.revision, other.revision);
                report.add(
                    Rule::N2,
                    format!(
                        "stream {number} was told of {revision} by {name}, \
                         but {covered} under it is another's"
                    ),
                );
            }
        }
    }

    /// N1: whatever others commit after the first notification makes the listener list in time,
    /// or the stream ends.
    fn wakes(&self, report: &mut Report) {
        let Some(first) = self.stream.told.first() else { return };
        let waking: Vec<&Notified> = self.stream.told[1..]
            .iter()
            .copied()
            .filter(|told| told.client_id.as_deref() != Some(self.own.as_str()))
            .collect();
        let versions = &self.timeline.versions;
        let later = versions.partition_point(|version| version.earliest <= first.at);
        for version in &versions[later..] {
            if version.set.client_id.as_deref() == Some(self.own.as_str()) {
                continue;
            }
            let deadline = self.deadline(version.latest);
            let missed =
                |told: &&Notified| told.revision < version.revision && told.at < version.latest;
            let told = waking.get(waking.partition_point(missed)).map(|told| told.at);
            let ended = self.stream.ended.map(|ended| ended.at);
            let until = [told, ended].into_iter().flatten().min().unwrap_or(self.context.end);
            if until > deadline {
                let (number, revision) = (self.number(), version.revision);
                let late = (until - version.latest) / 1_000_000;
                report.add(
                    Rule::N1,
                    format!("stream {number} was not told of {revision} for {late} ms"),
                );
            }
        }
    }

    /// When a commit of `committed` must have been told: faults stop the clock until they end.
    fn deadline(&self, committed: Nanos) -> Nanos {
        let bound = self.context.settings.wake_bound;
        let mut deadline = committed.saturating_add(bound);
        for fault in &self.context.excuses {
            if fault.from <= deadline && fault.until >= committed {
                deadline = deadline.max(fault.until.saturating_add(bound));
            }
        }
        deadline
    }

    /// N5: nothing but the listener's own writes names the listener, so that it need not list.
    fn echoes(&self, report: &mut Report) {
        for (told, _, before) in self.covers() {
            if told.client_id.as_deref() == Some(self.own.as_str()) {
                continue;
            }
            let range = self.timeline.above(before)..self.timeline.above(told.revision);
            let versions = self.timeline.versions.get(range).unwrap_or_default();
            let own = |version: &super::timeline::Version<'_>| {
                version.set.client_id.as_deref() == Some(self.own.as_str())
            };
            if versions.iter().all(own) {
                let (number, revision) = (self.number(), told.revision);
                let what = format!("stream {number} must list for its own {revision}");
                report.add(Rule::N5, what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::Script, Rule};

    #[test]
    fn n1_wants_every_later_write_of_others_told() {
        let mut script = Script::new();
        let stream = script.listen(1);
        script.set(2, "a", 0).ok(1);
        script.told(stream, Some(2), 1);
        script.wait(2_000);
        script.list(2, 1).shows(&[], 1);
        script.is_correct();
        script.set(2, "b", 0).ok(2);
        script.wait(2_000);
        script.list(2, 2).shows(&[], 2);
        script.breaks(Rule::N1);
    }

    #[test]
    fn n1_takes_a_notification_that_overtakes_the_reply() {
        let mut script = Script::new();
        let stream = script.listen(1);
        script.set(2, "a", 0).between(30, 90).ok(1);
        script.told(stream, Some(2), 1);
        script.wait(2_000);
        script.list(2, 1).shows(&[], 1);
        script.is_correct();
    }

    #[test]
    fn n1_takes_a_late_notification_for_none() {
        let mut script = Script::new();
        let stream = script.listen(1);
        script.set(2, "a", 0).ok(1);
        script.wait(1_500);
        script.told(stream, None, 1);
        script.breaks(Rule::N1);
    }

    #[test]
    fn n1_takes_the_listeners_own_name_for_no_news() {
        let mut script = Script::new();
        let stream = script.listen(1);
        script.set(2, "a", 0).ok(1);
        script.told(stream, Some(1), 1);
        script.wait(2_000);
        script.list(2, 1).shows(&[], 1);
        script.breaks(Rule::N1);
    }

    #[test]
    fn n1_asks_nothing_after_an_end_and_waits_for_faults() {
        let mut ended = Script::new();
        let stream = ended.listen(1);
        ended.set(2, "a", 0).ok(1);
        ended.ended(stream, "UNAVAILABLE");
        ended.wait(2_000);
        ended.list(2, 1).shows(&[], 1);
        ended.is_correct();

        let mut disturbed = Script::new();
        let stream = disturbed.listen(1);
        disturbed.set(2, "a", 0).ok(1);
        disturbed.fault(10, 3_000);
        disturbed.wait(3_500);
        disturbed.told(stream, None, 1);
        disturbed.is_correct();
    }

    #[test]
    fn n1_lets_the_first_notification_stand_for_all_before() {
        let mut script = Script::new();
        script.set(2, "a", 0).ok(1);
        script.listen(1);
        script.wait(2_000);
        script.list(2, 1).shows(&[], 1);
        script.is_correct();
    }

    #[test]
    fn n1_learns_from_a_page_that_a_write_came_later() {
        // The write overlaps the first notification, but the page asked for after that lacks it.
        let mut script = Script::new();
        script.set(2, "a", 0).between(5, 90).ok(1);
        script.listen(1);
        script.list(1, 0).between(70, 80).shows(&[], 0);
        script.wait(2_000);
        script.list(2, 1).shows(&[], 1);
        script.breaks(Rule::N1);
    }

    #[test]
    fn n2_wants_an_empty_beginning() {
        let mut script = Script::new();
        script.set(2, "a", 0).ok(1);
        script.listen(1);
        script.is_correct();
        let stream = script.subscribe(3);
        script.told(stream, None, 1);
        script.breaks(Rule::N2);
    }

    #[test]
    fn n2_wants_revisions_to_rise() {
        let mut script = Script::new();
        let stream = script.listen(1);
        script.set(2, "a", 0).ok(1);
        script.set(2, "b", 0).ok(2);
        script.told(stream, Some(2), 2);
        script.is_correct();
        script.told(stream, Some(2), 1);
        script.breaks(Rule::N2);
    }

    #[test]
    fn n2_names_a_client_only_for_its_own_writes() {
        let mut script = Script::new();
        let stream = script.listen(1);
        script.set(2, "a", 0).ok(1);
        script.set(3, "b", 0).ok(2);
        let mut merged = script.clone();
        merged.told(stream, None, 2);
        merged.is_correct();
        script.told(stream, Some(3), 2);
        script.breaks(Rule::N2);
    }

    #[test]
    fn n2_knows_no_notification_before_its_write() {
        let mut script = Script::new();
        let stream = script.listen(1);
        script.told(stream, None, 1);
        script.set(2, "a", 0).ok(1);
        script.breaks(Rule::N2);
    }

    #[test]
    fn n2_wants_no_stream_to_end_with_ok() {
        let mut script = Script::new();
        let stream = script.listen(1);
        script.ended(stream, "OK");
        script.breaks(Rule::N2);
    }

    #[test]
    fn n3_wants_nothing_of_other_users() {
        let mut script = Script::new();
        let tag = script.set(101, "a", 0).ok(1);
        script.set(2, "a", 0).ok(1);
        let mut listed = script.clone();
        listed.list(2, 0).shows(&[("a", 1, tag)], 1);
        listed.breaks(Rule::N3);

        let stream = script.listen(1);
        script.set(2, "a", 1).ok(2);
        script.told(stream, Some(2), 2);
        script.is_correct();
        let mut named = script.clone();
        named.told(stream, Some(101), 2);
        named.breaks(Rule::N3);
        script.told(stream, None, 3);
        script.breaks(Rule::N3);
    }

    #[test]
    fn n5_wants_own_writes_to_name_their_writer() {
        let mut script = Script::new();
        let stream = script.listen(1);
        script.set(1, "a", 0).ok(1);
        let mut named = script.clone();
        named.told(stream, Some(1), 1);
        named.is_correct();
        script.told(stream, None, 1);
        script.breaks(Rule::N5);
        script.edit_settings(|settings| settings.exact_echo = false);
        script.is_correct();
    }
}
