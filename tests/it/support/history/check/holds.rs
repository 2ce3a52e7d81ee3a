//! When a lock is certainly held, and when it may be.

use std::collections::BTreeMap;

use super::{Answer, Lock, Nanos, Settings, UserEvents};
use crate::support::history::event::{LockAction, LockReply};

/// One granted or perhaps granted lock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hold<'h> {
    pub(super) lock: &'h Lock,
    pub(super) exclusive: bool,
    /// Its fencing token, if the grant was answered.
    pub(super) token: Option<u64>,
    /// Certainly held from here; granted earlier, but not before it was asked for.
    pub(super) from: Nanos,
    /// Certainly held up to here; not after `from` where nothing is certain.
    pub(super) until: Nanos,
    /// Possibly held up to here, from the time it was asked for.
    pub(super) perhaps_until: Nanos,
}

impl Hold<'_> {
    pub(super) const fn is_certain(&self) -> bool {
        self.from < self.until
    }

    /// Held at every instant from `from` to `until`.
    pub(super) const fn covers(&self, from: Nanos, until: Nanos) -> bool {
        self.is_certain() && self.from <= from && until <= self.until
    }

    /// Perhaps held at some instant from `from` to `until`.
    pub(super) const fn may_touch(&self, from: Nanos, until: Nanos) -> bool {
        self.lock.invoked <= until && from <= self.perhaps_until
    }
}

/// Every hold of one lock, by the time it was asked for.
pub(super) type Holds<'h> = BTreeMap<&'h str, Vec<Hold<'h>>>;

/// The holds of one user's locks, by lock name.
pub(super) fn of<'h>(events: &UserEvents<'h>, settings: &Settings) -> Holds<'h> {
    let mut calls = BTreeMap::<(&str, &str), Vec<&Lock>>::new();
    for lock in &events.locks {
        calls.entry((&lock.name, &lock.holder)).or_default().push(lock);
    }
    let mut holds = Holds::new();
    for ((name, _), calls) in &calls {
        let named = holds.entry(name).or_default();
        named.extend(calls.iter().filter_map(|lock| hold(lock, calls, settings)));
    }
    for named in holds.values_mut() {
        named.sort_by_key(|hold| hold.lock.invoked);
    }
    holds
}

/// What `lock` gives its holder, whose calls for this lock are `calls`.
fn hold<'h>(lock: &'h Lock, calls: &[&Lock], settings: &Settings) -> Option<Hold<'h>> {
    let LockAction::Acquire { exclusive, ttl } = lock.action else { return None };
    let slack = settings.lock_slack;
    match (&lock.answer, lock.returned) {
        (Answer::Ok(LockReply::Acquired(token)), Some(from)) => Some(Hold {
            lock,
            exclusive,
            token: Some(*token),
            from,
            until: certain_end(lock, exclusive, ttl, calls, settings),
            perhaps_until: last_end(from, ttl + slack, calls),
        }),
        (Answer::Unknown(_), _) => Some(Hold {
            lock,
            exclusive,
            token: None,
            from: Nanos::MAX,
            until: 0,
            perhaps_until: lock.invoked + settings.zombie_bound + ttl + slack,
        }),
        _ => None,
    }
}

/// When the holder may lose what `lock` gave it: at the expiry, or when another call of its own
/// may have taken effect.
fn certain_end(
    lock: &Lock,
    exclusive: bool,
    ttl: Nanos,
    calls: &[&Lock],
    settings: &Settings,
) -> Nanos {
    let slack = settings.lock_slack;
    let mut end = (lock.invoked + ttl).saturating_sub(slack);
    for other in calls.iter().filter(|other| !std::ptr::eq(**other, lock)) {
        let was_before = match (&other.answer, other.returned) {
            (Answer::Ok(LockReply::Held | LockReply::OverQuota) | Answer::Refused(_), _) => true,
            (Answer::Ok(_), Some(returned)) => returned <= lock.invoked,
            _ => other.invoked + settings.zombie_bound <= lock.invoked,
        };
        if was_before {
            continue;
        }
        let lost = match other.action {
            LockAction::Acquire { exclusive: kind, ttl } if kind || !exclusive => {
                (other.invoked.max(lock.invoked) + ttl).saturating_sub(slack)
            }
            _ => other.invoked,
        };
        end = end.min(lost);
    }
    end
}

/// When an answered hold has certainly ended: at its expiry, or at an answered release after it.
fn last_end(granted: Nanos, ttl: Nanos, calls: &[&Lock]) -> Nanos {
    let releases = calls
        .iter()
        .filter(|call| call.invoked >= granted && call.answer == Answer::Ok(LockReply::Released));
    let released = releases.filter_map(|release| release.returned).min();
    (granted + ttl).min(released.unwrap_or(Nanos::MAX))
}
