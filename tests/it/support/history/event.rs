//! The events of a history and their form as JSON lines.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Nanoseconds since the history began, on one monotonic clock for all clients.
pub(crate) type Nanos = u64;

/// The schema version of every record that tests write.
pub(crate) const SCHEMA_VERSION: &str = "1.0.0";

/// One client instance, and whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Instance {
    /// The user, by number.
    pub(crate) user: u32,
    /// The instance, by number; unique over all users.
    pub(crate) client: u32,
}

impl Instance {
    /// What this instance calls itself in writes, and ignores in notifications.
    pub(crate) fn uuid(self) -> Uuid {
        Uuid::from_u128(self.client.into())
    }

    /// [`Self::uuid`] as sent.
    pub(crate) fn client_id(self) -> String {
        self.uuid().to_string()
    }
}

/// What an answer said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer<T> {
    /// A reply.
    Ok(T),
    /// An error, by its gRPC code, that promises that nothing happened.
    Refused(String),
    /// No answer, or an error that leaves open whether anything happened.
    Unknown(String),
}

/// How much a user may hold and where pages are cut; what the checker must know of the settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Most records on a page.
    pub(crate) page_records: u64,
    /// Most bytes on a page, as the store counts them.
    pub(crate) page_bytes: u64,
    /// Most records of a user.
    pub(crate) max_records: Option<u64>,
    /// Most data bytes of a user.
    pub(crate) max_bytes: Option<u64>,
    /// Most live locks of a user.
    pub(crate) max_locks: Option<u64>,
}

/// What holds for the whole history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// The seed that made it.
    pub(crate) seed: u64,
    /// Longest time from an acknowledged write to a notification on every stream of the user.
    pub(crate) wake_bound: Nanos,
    /// Longest time after its first send that a request without an answer may still take effect.
    pub(crate) zombie_bound: Nanos,
    /// How much shorter than asked a lock may seem to live, for rounding.
    pub(crate) lock_slack: Nanos,
    /// No announcement was lost, late or out of order: rule N5 applies.
    pub(crate) exact_echo: bool,
    /// Limits of the service.
    pub(crate) limits: Limits,
}

/// A record as a client was shown it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Listed {
    /// The record's id.
    pub(crate) id: String,
    /// Its revision.
    pub(crate) revision: u64,
    /// The tag that its data carries.
    pub(crate) tag: u64,
    /// Length of its data.
    pub(crate) bytes: u64,
}

/// One send of a SetRecord request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Send {
    /// When it was sent.
    pub(crate) invoked: Nanos,
    /// When its answer came, if one came.
    pub(crate) returned: Option<Nanos>,
    /// The answer.
    pub(crate) answer: Answer<SetReply>,
}

/// What SetRecord answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SetReply {
    /// Stored at this revision.
    Written(u64),
    /// CONFLICT, with the record as stored where it was asked for.
    Conflict(Option<Listed>),
    /// Refused because the user holds as much as allowed of this.
    OverQuota(String),
}

/// One write, however often its bytes were sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Set {
    #[serde(flatten)]
    pub(crate) by: Instance,
    /// The record's id.
    pub(crate) id: String,
    /// The revision the writer knew.
    pub(crate) base: u64,
    /// In the record's data; no other write of the history has it.
    pub(crate) tag: u64,
    /// Length of the data.
    pub(crate) bytes: u64,
    /// The client id sent along.
    pub(crate) client_id: Option<String>,
    /// At least one.
    pub(crate) sends: Vec<Send>,
}

impl Set {
    /// When it was first sent.
    pub(crate) fn invoked(&self) -> Nanos {
        self.sends.iter().map(|send| send.invoked).min().unwrap_or_default()
    }

    /// The revision some send was answered with.
    pub(crate) fn written(&self) -> Option<u64> {
        self.sends.iter().find_map(|send| match send.answer {
            Answer::Ok(SetReply::Written(revision)) => Some(revision),
            _ => None,
        })
    }

    /// Nobody was told whether it happened.
    pub(crate) fn is_open(&self) -> bool {
        self.written().is_none()
            && self.sends.iter().any(|send| matches!(send.answer, Answer::Unknown(_)))
    }
}

/// One page.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Page {
    /// In the order they came.
    pub(crate) records: Vec<Listed>,
    /// The head the reply named.
    pub(crate) head: u64,
    /// Whether the reply named more.
    pub(crate) has_more: bool,
}

/// One ListChanges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct List {
    #[serde(flatten)]
    pub(crate) by: Instance,
    pub(crate) since: u64,
    pub(crate) invoked: Nanos,
    pub(crate) returned: Option<Nanos>,
    pub(crate) answer: Answer<Page>,
}

/// What SetLock asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LockAction {
    /// Take it.
    Acquire {
        /// Alone.
        exclusive: bool,
        /// For how long.
        ttl: Nanos,
    },
    /// Give it back.
    Release,
}

/// What SetLock answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LockReply {
    /// Taken, with this fencing token.
    Acquired(u64),
    /// Not held any more.
    Released,
    /// Another instance holds it.
    Held,
    /// The user holds as many as allowed.
    OverQuota,
}

/// One SetLock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lock {
    #[serde(flatten)]
    pub(crate) by: Instance,
    pub(crate) name: String,
    /// The holder it names.
    pub(crate) holder: String,
    pub(crate) action: LockAction,
    pub(crate) invoked: Nanos,
    pub(crate) returned: Option<Nanos>,
    pub(crate) answer: Answer<LockReply>,
}

/// One GetLock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Locked {
    #[serde(flatten)]
    pub(crate) by: Instance,
    pub(crate) name: String,
    pub(crate) invoked: Nanos,
    pub(crate) returned: Option<Nanos>,
    pub(crate) answer: Answer<bool>,
}

/// One ListenChanges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listen {
    #[serde(flatten)]
    pub(crate) by: Instance,
    /// The stream's number.
    pub(crate) stream: u64,
    pub(crate) invoked: Nanos,
}

/// One notification; the first of a stream says that the subscription is live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notified {
    pub(crate) stream: u64,
    pub(crate) at: Nanos,
    pub(crate) client_id: Option<String>,
    pub(crate) revision: u64,
}

/// The end of a stream, by its gRPC code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) stream: u64,
    pub(crate) at: Nanos,
    pub(crate) code: String,
}

/// A fault that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    /// What was done, for people.
    pub(crate) what: String,
    pub(crate) from: Nanos,
    pub(crate) until: Nanos,
    /// Notifications may wait for its end: the bound counts from there.
    pub(crate) excuses_delay: bool,
}

/// Everything of one user, listed after the last fault was healed and the last write answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) user: u32,
    pub(crate) at: Nanos,
    pub(crate) head: u64,
    /// In ascending revision.
    pub(crate) records: Vec<Listed>,
    /// The store's own counters of records and of data bytes, where they can be read.
    pub(crate) counters: Option<(u64, u64)>,
}

/// What a client held in the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClientState {
    #[serde(flatten)]
    pub(crate) by: Instance,
    /// The revision it would list from.
    pub(crate) cursor: u64,
    /// Its records in ascending id, with the data they have at the server.
    pub(crate) records: Vec<Listed>,
    /// Its own rules never skip what others wrote. Not so with one shipped client, whose cursor
    /// moves with its own writes.
    pub(crate) complete: bool,
}

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    Settings(Settings),
    Set(Set),
    List(List),
    Lock(Lock),
    Locked(Locked),
    Listen(Listen),
    Notified(Notified),
    Ended(Ended),
    Fault(Fault),
    State(State),
    Client(ClientState),
}

/// All that clients did and saw, in no order but that of their times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct History {
    pub(crate) settings: Settings,
    pub(crate) events: Vec<Event>,
}

impl History {
    /// One JSON object a line, the settings first.
    pub(crate) fn to_json_lines(&self) -> String {
        let settings = Event::Settings(self.settings);
        let events = std::iter::once(&settings).chain(&self.events);
        events.fold(String::new(), |mut lines, event| {
            lines.push_str(&serde_json::to_string(event).expect("an event has a JSON form"));
            lines.push('\n');
            lines
        })
    }

    /// Reads what [`Self::to_json_lines`] wrote.
    pub(crate) fn from_json_lines(text: &str) -> serde_json::Result<Self> {
        let mut history = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            match serde_json::from_str(line)? {
                Event::Settings(settings) => history.settings = settings,
                event => history.events.push(event),
            }
        }
        Ok(history)
    }
}

mod tests {
    use super::*;

    #[test]
    fn a_history_survives_its_text_form() {
        let by = Instance { user: 1, client: 2 };
        let listed = Listed { id: "é\"".into(), revision: 3, tag: u64::MAX, bytes: 9 };
        let send = |answer| Send { invoked: 1, returned: Some(2), answer };
        let history = History {
            settings: Settings { seed: 7, wake_bound: 5, exact_echo: true, ..Default::default() },
            events: vec![
                Event::Set(Set {
                    by,
                    id: String::new(),
                    base: u64::MAX,
                    tag: 4,
                    bytes: 0,
                    client_id: Some(by.client_id()),
                    sends: vec![
                        send(Answer::Unknown("UNAVAILABLE".into())),
                        send(Answer::Ok(SetReply::Conflict(Some(listed.clone())))),
                        send(Answer::Ok(SetReply::Written(5))),
                    ],
                }),
                Event::List(List {
                    by,
                    since: 0,
                    invoked: 1,
                    returned: None,
                    answer: Answer::Ok(Page { records: vec![listed], head: 3, has_more: false }),
                }),
                Event::Lock(Lock {
                    by,
                    name: "lock".into(),
                    holder: "a".into(),
                    action: LockAction::Acquire { exclusive: true, ttl: 1 },
                    invoked: 1,
                    returned: Some(2),
                    answer: Answer::Ok(LockReply::Acquired(1)),
                }),
                Event::Ended(Ended { stream: 1, at: 2, code: "OK".into() }),
            ],
        };
        let text = history.to_json_lines();
        assert_eq!(text.lines().count(), 1 + history.events.len());
        assert_eq!(History::from_json_lines(&text).expect("valid"), history);
    }

    #[test]
    fn a_line_that_is_no_event_is_an_error() {
        assert!(History::from_json_lines("{\"event\":\"other\"}").is_err());
    }
}
