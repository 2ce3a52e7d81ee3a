//! Hears the other replicas: one connection of its own, past any pooler, that does nothing else.
//!
//! LISTEN fails silently: behind a transaction pooler it is in force on a connection that nobody
//! reads, and a connection that a firewall forgot looks idle. So an announcement of our own, sent
//! by the notifier over another connection, must come back: at the start, and again and again.
//! Streams never depend on it; while nothing is heard, the comparison of heads carries on.

use std::{future::poll_fn, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{AsyncMessage, Client};
use tokio_util::sync::CancellationToken;

use super::{
    CHANNEL,
    outbox::Outbox,
    payload::{Entry, Message},
    reconcile::Resync,
};
use crate::{
    limits::{
        LISTEN_ANSWER_TIMEOUT, LISTEN_BACKOFF, LISTEN_HEARTBEAT_INTERVAL, LISTEN_RETEST_INTERVAL,
    },
    notify::{Hub, ListenState, run::Run},
    store::postgres::{Connection, Connector, jittered},
    telemetry::metrics::Metrics,
};

/// The task that listens.
pub(super) struct Listener {
    pub(super) connector: Connector,
    pub(super) outbox: Arc<Outbox>,
    pub(super) ears: Ears,
    pub(super) resync: Resync,
    pub(super) state: watch::Sender<ListenState>,
    pub(super) metrics: Arc<Metrics>,
}

/// What a message does on its arrival.
pub(super) struct Ears {
    hub: Arc<Hub>,
    origin: u64,
    /// Serial number of the newest message of our own that came back.
    echo: watch::Sender<u64>,
}

/// Why a connection was given up.
enum End {
    /// It broke, or is about to.
    Lost(String),
    /// LISTEN is in force, and yet nothing is heard.
    Deaf,
}

/// How a proof went.
#[derive(Debug, PartialEq, Eq)]
enum Proof {
    Heard,
    /// It was sent and did not come back.
    NotHeard,
    /// It could not be sent.
    NotSent,
}

impl Listener {
    /// Works until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        // Dropped at whatever it does: nothing here needs an orderly end.
        stop.run_until_cancelled(self.listen_for_ever()).await;
        self.metrics.listener_connected.set(0);
    }

    async fn listen_for_ever(&self) {
        let mut pause = LISTEN_BACKOFF.0;
        let mut attempts = 0_u64;
        loop {
            if attempts > 0 {
                self.metrics.listener_reconnects.inc();
            }
            attempts += 1;
            let end = self.listen().await;
            if *self.state.borrow() == ListenState::Hearing {
                pause = LISTEN_BACKOFF.0;
            }
            match end {
                End::Lost(reason) => {
                    self.enter(ListenState::Lost, &reason);
                    sleep(jittered(pause)).await;
                    pause = LISTEN_BACKOFF.1.min(pause * 2);
                }
                End::Deaf => {
                    self.enter(ListenState::Deaf, "");
                    sleep(jittered(LISTEN_RETEST_INTERVAL)).await;
                }
            }
        }
    }

    /// Makes a connection and listens until it is of no more use.
    async fn listen(&self) -> End {
        let (client, connection) = match self.connector.connect_apart().await {
            Ok(connected) => connected,
            Err(error) => return End::Lost(error.to_string()),
        };
        tokio::select! {
            reason = self.ears.hear_all(connection) => End::Lost(reason),
            end = self.supervise(&client) => end,
        }
    }

    /// Sets LISTEN up, and finds out again and again whether anything is heard.
    async fn supervise(&self, client: &Client) -> End {
        let listen = format!("LISTEN {CHANNEL}");
        if let Err(reason) = answered(client, &listen).await {
            return End::Lost(reason);
        }
        self.resync.connected();
        loop {
            let alive = answered(client, "");
            let (proof, ()) = match tokio::try_join!(async { Ok(self.prove().await) }, alive) {
                Ok(both) => both,
                Err(reason) => return End::Lost(reason),
            };
            let proven_before = *self.state.borrow() == ListenState::Hearing;
            match proof {
                Proof::Heard => self.enter(ListenState::Hearing, ""),
                // Whatever changed, a new connection and its proof will tell.
                Proof::NotHeard if proven_before => {
                    return End::Lost("an announcement did not come back".to_owned());
                }
                Proof::NotHeard => return End::Deaf,
                // Nothing is known, for want of the other connection.
                Proof::NotSent => {}
            }
            sleep(LISTEN_HEARTBEAT_INTERVAL).await;
        }
    }

    /// Has an announcement sent and waits until it is heard.
    async fn prove(&self) -> Proof {
        let mut committed = self.outbox.watch_committed();
        let before = *committed.borrow_and_update();
        self.outbox.want_proof();
        let sent = timeout(LISTEN_ANSWER_TIMEOUT, committed.wait_for(|serial| *serial > before));
        let Ok(Ok(serial)) = sent.await.map(|sent| sent.map(|serial| *serial)) else {
            return Proof::NotSent;
        };
        let mut echo = self.ears.echo.subscribe();
        let heard = timeout(LISTEN_ANSWER_TIMEOUT, echo.wait_for(|heard| *heard >= serial)).await;
        if matches!(heard, Ok(Ok(_))) { Proof::Heard } else { Proof::NotHeard }
    }

    /// Goes over to another state, and says so.
    fn enter(&self, state: ListenState, reason: &str) {
        let changed = self.state.send_if_modified(|current| {
            let changed = *current != state;
            *current = state;
            changed
        });
        self.metrics.listener_connected.set((state == ListenState::Hearing).into());
        if !changed {
            tracing::debug!(?state, reason, "changes of other replicas: no news");
            return;
        }
        match state {
            ListenState::Starting => {}
            ListenState::Hearing => tracing::info!("changes of other replicas are heard at once"),
            ListenState::Lost => tracing::warn!(
                reason,
                "the LISTEN connection is lost; comparing heads until it is back"
            ),
            ListenState::Deaf => tracing::error!(
                "LISTEN is in force but nothing is heard: LISTEN_DATABASE_URL must lead past \
                 transaction poolers, to the server of DATABASE_URL; changes of other replicas \
                 are found by comparing heads, seconds late"
            ),
        }
    }
}

/// Runs a statement without parameters or rows on a connection that others read.
async fn answered(client: &Client, statement: &str) -> Result<(), String> {
    match timeout(LISTEN_ANSWER_TIMEOUT, client.batch_execute(statement)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_elapsed) => Err("it does not answer".to_owned()),
    }
}

impl Ears {
    pub(super) fn new(hub: Arc<Hub>, origin: u64) -> Self {
        Self { hub, origin, echo: watch::Sender::new(0) }
    }

    /// Drives a connection to its end, and tells what ended it.
    async fn hear_all(&self, mut connection: Connection) -> String {
        loop {
            match poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(notification))) => {
                    if notification.channel() == CHANNEL {
                        self.hear(notification.payload());
                    }
                }
                Some(Ok(_notice)) => {}
                Some(Err(error)) => return error.to_string(),
                None => return "it was closed".to_owned(),
            }
        }
    }

    /// Passes one message on to the streams it concerns.
    fn hear(&self, payload: &str) {
        let message = match Message::decode(payload) {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(%error, "a message on the channel is left out");
                return;
            }
        };
        if message.header.origin == self.origin {
            self.echo.send_replace(message.header.serial);
            return;
        }
        let now = Instant::now();
        for entry in message.entries() {
            match entry {
                Ok(entry) => self.pass_on(&entry, now),
                Err(error) => tracing::debug!(%error, "the rest of a message is left out"),
            }
        }
    }

    fn pass_on(&self, entry: &Entry<'_>, now: Instant) {
        if !self.hub.has_streams(entry.tag) {
            return;
        }
        if let Some(run) = entry.run {
            let age = Duration::from_millis(run.age_ms.into());
            let committed = now.checked_sub(age).unwrap_or(now);
            let client_id = run.client_id.map(Arc::from);
            let run = Run { from: run.from, to: run.to, client_id };
            self.hub.announce_run(entry.tag, &run, committed);
        }
        if entry.nudge {
            self.hub.nudge_tag(entry.tag);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        notify::{
            UserTag,
            postgres::payload::{EntryRun, Header, encode},
        },
        store::UserId,
    };

    const USER: UserId = UserId::new([2; UserId::BYTES]);
    const OURS: u64 = 1;
    const THEIRS: u64 = 2;

    fn text(origin: u64, nudge: bool, client_id: Option<&str>) -> String {
        let run = EntryRun { from: 4, to: 5, client_id, age_ms: 20 };
        let entry = Entry { tag: UserTag::of(USER), nudge, run: Some(run) };
        encode(Header { origin, serial: 6 }, std::iter::once(entry)).remove(0)
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_announce_is_told_with_its_writer_and_its_age() {
        let hub = Arc::new(Hub::new());
        let ears = Ears::new(Arc::clone(&hub), OURS);
        let mut stream = hub.subscribe(USER);
        stream.start_at(3);
        ears.hear(&text(THEIRS, false, Some("a")));
        let hint = stream.next().await;
        assert_eq!((hint.client_id.as_deref(), hint.revision), (Some("a"), 5));
        let age = hint.committed.map(|committed| committed.elapsed());
        assert_eq!(age, Some(Duration::from_millis(20)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_nudge_of_others_wakes_without_a_writer() {
        let hub = Arc::new(Hub::new());
        let ears = Ears::new(Arc::clone(&hub), OURS);
        let mut stream = hub.subscribe(USER);
        stream.start_at(5);
        ears.hear(&text(THEIRS, true, Some("a")));
        let hint = stream.next().await;
        assert_eq!((hint.client_id, hint.changes), (None, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn our_own_messages_and_garbage_wake_nobody() {
        let hub = Arc::new(Hub::new());
        let ears = Ears::new(Arc::clone(&hub), OURS);
        let mut stream = hub.subscribe(USER);
        stream.start_at(3);
        ears.hear(&text(OURS, true, Some("a")));
        ears.hear("");
        ears.hear("not base 64!");
        let waited = timeout(Duration::from_secs(1), stream.next()).await;
        assert!(waited.is_err());
        assert_eq!(*ears.echo.borrow(), 6);
    }
}
