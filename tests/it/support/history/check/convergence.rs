//! Rule N4: in the end every client holds what the server holds.

use std::collections::BTreeMap;

use super::{ClientState, Report, Rule, State, UserEvents, timeline::Timeline};

/// Compares what each client held with the last state.
pub(super) fn check(events: &UserEvents<'_>, timeline: &Timeline<'_>, report: &mut Report) {
    let Some(state) = events.state else { return };
    for client in &events.clients {
        let number = client.by.client;
        if let Some(revision) = behind(client, state, timeline) {
            let cursor = client.cursor;
            let what = format!("client {number} stayed at {cursor}, short of {revision}");
            report.add(Rule::N4, what);
        }
        if client.complete
            && let Some(id) = difference(client, state)
        {
            report.add(Rule::N4, format!("client {number} does not hold {id:?} as the server"));
        }
    }
}

/// The first current revision above the client's cursor that is not its own.
fn behind(client: &ClientState, state: &State, timeline: &Timeline<'_>) -> Option<u64> {
    let own = client.by.client_id();
    let others = |revision: u64| {
        let version = timeline.at(revision);
        version.is_none_or(|version| version.set.client_id.as_ref() != Some(&own))
    };
    let mut revisions = state.records.iter().map(|record| record.revision);
    revisions.find(|revision| *revision > client.cursor && others(*revision))
}

fn difference<'s>(client: &'s ClientState, state: &'s State) -> Option<&'s str> {
    fn by_id(records: &[super::super::event::Listed]) -> BTreeMap<&str, (u64, u64)> {
        records.iter().map(|record| (record.id.as_str(), (record.revision, record.tag))).collect()
    }
    let (held, wanted) = (by_id(&client.records), by_id(&state.records));
    let ids = held.keys().chain(wanted.keys());
    ids.copied().find(|id| held.get(id) != wanted.get(id))
}

#[cfg(test)]
mod tests {
    use super::{super::testing::Script, Rule};

    fn two_records() -> (Script, [(&'static str, u64, u64); 2]) {
        let mut script = Script::new();
        let a = script.set(1, "a", 0).ok(1);
        let b = script.set(2, "b", 0).ok(2);
        let records = [("a", 1, a), ("b", 2, b)];
        script.state(&records, 2);
        (script, records)
    }

    #[test]
    fn n4_wants_every_client_to_hold_the_last_state() {
        let (script, records) = two_records();
        let mut same = script.clone();
        same.client(3, 2, &records);
        same.is_correct();
        let mut less = script.clone();
        less.client(3, 2, &records[..1]);
        less.breaks(Rule::N4);
        let mut other = script;
        other.client(3, 2, &[("a", 1, 99), records[1]]);
        other.breaks(Rule::N4);
    }

    #[test]
    fn n4_lets_a_cursor_stay_behind_own_writes_only() {
        let (script, records) = two_records();
        let mut own = script.clone();
        own.client(2, 1, &records);
        own.is_correct();
        let mut others = script;
        others.client(1, 1, &records);
        others.breaks(Rule::N4);
    }
}
