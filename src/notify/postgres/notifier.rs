//! Tells the other replicas: one connection, one small transaction at a time.
//!
//! A transaction that notifies holds a lock of the whole cluster until it is flushed, so the
//! writing transactions do not notify; this one does, after them, and waits for no flush. It goes
//! over the URL of the writes: whoever can write can announce, and a transaction pooler may stand
//! between, since nothing here outlives its transaction.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until, timeout};
use tokio_postgres::{Client, Row, types::Type};
use tokio_util::sync::CancellationToken;

use super::{
    CHANNEL,
    outbox::{Outbox, Waiting},
    payload::{self, Entry, EntryRun, Header},
};
use crate::{
    limits::{
        MAX_ANNOUNCEMENTS_PER_NOTIFY, NOTIFY_FLUSH_TIMEOUT, NOTIFY_INTERVAL, NOTIFY_TIMEOUT,
        NUDGE_LOG_TIME, RECONNECT_BACKOFF,
    },
    notify::UserTag,
    store::{
        StoreError,
        postgres::{Connector, jittered, transact},
    },
};

const NOTIFY: &str = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload";

/// The same, and the nudges among it are noted for whoever does not hear them; see [`super::missed`].
const NOTIFY_AND_NOTE: &str = "SELECT data_sync.note_nudges_v1($3, $4, $5), \
                               count(pg_notify($1, payload)) FROM unnest($2::text[]) AS payload";

/// The task that empties the outbox.
pub(super) struct Notifier {
    connector: Connector,
    outbox: Arc<Outbox>,
    origin: u64,
    /// Of the newest message sent.
    serial: u64,
    begin: String,
    client: Option<Client>,
    /// The last attempt failed, and that was said.
    warned: bool,
}

impl Notifier {
    pub(super) fn new(connector: Connector, outbox: Arc<Outbox>, origin: u64) -> Self {
        let begin = format!(
            "BEGIN; SET LOCAL synchronous_commit = off; SET LOCAL statement_timeout = {}",
            NOTIFY_TIMEOUT.as_millis()
        );
        Self { connector, outbox, origin, serial: 0, begin, client: None, warned: false }
    }

    /// Works until `stop`, and then sends what is left.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut pause = RECONNECT_BACKOFF.0;
        while stop.run_until_cancelled(self.outbox.filled()).await.is_some() {
            // At once when idle; what comes in until the next one shares it.
            let mut next = Instant::now() + NOTIFY_INTERVAL;
            match stop.run_until_cancelled(self.connected()).await {
                None => break,
                Some(connected) => {
                    let sent = match connected {
                        Ok(()) => self.send().await,
                        Err(error) => Err(error),
                    };
                    if self.note(&sent) {
                        pause = RECONNECT_BACKOFF.0;
                    } else {
                        next = Instant::now() + jittered(pause);
                        pause = RECONNECT_BACKOFF.1.min(pause * 2);
                        self.outbox.look_again();
                    }
                }
            }
            if stop.run_until_cancelled(sleep_until(next)).await.is_none() {
                break;
            }
        }
        if timeout(NOTIFY_FLUSH_TIMEOUT, self.flush()).await.is_err() {
            tracing::debug!("the last announcements could not be sent in time");
        }
    }

    async fn flush(&mut self) {
        while self.outbox.users() > 0 {
            let sent = match self.connected().await {
                Ok(()) => self.send().await,
                Err(error) => Err(error),
            };
            if !self.note(&sent) {
                return;
            }
        }
    }

    async fn connected(&mut self) -> Result<(), StoreError> {
        if self.client.as_ref().is_none_or(Client::is_closed) {
            self.client = None;
            self.client = Some(self.connector.connect().await?);
        }
        Ok(())
    }

    /// Sends one message over the connection, which is there.
    async fn send(&mut self) -> Result<(), StoreError> {
        let Some(client) = self.client.take() else {
            return Err(StoreError::Unavailable("there is no connection".to_owned()));
        };
        let Some(batch) = self.outbox.take(MAX_ANNOUNCEMENTS_PER_NOTIFY) else {
            self.client = Some(client);
            return Ok(());
        };
        self.serial += 1;
        let header = Header { origin: self.origin, serial: self.serial };
        let now = Instant::now();
        let texts = payload::encode(header, batch.iter().map(|news| entry(news, now)));
        match self.announce(&client, &texts, &batch).await {
            Ok(_) => {
                self.outbox.message_committed(self.serial);
                self.client = Some(client);
                if self.outbox.users() > 0 {
                    self.outbox.look_again();
                }
                Ok(())
            }
            Err(error) => {
                // It may have been sent nonetheless: hearing it twice is no news.
                self.outbox.give_back(batch);
                Err(error)
            }
        }
    }

    /// Makes the transaction that announces `texts`, which tell of `batch`.
    async fn announce(
        &self,
        client: &Client,
        texts: &[String],
        batch: &[(UserTag, Waiting)],
    ) -> Result<Vec<Row>, StoreError> {
        let nudged = batch.iter().filter(|(_, news)| news.nudge);
        let nudged: Vec<&[u8]> = nudged.map(|(tag, _)| tag.as_bytes().as_slice()).collect();
        let origin = self.origin.cast_signed();
        let keep_ms = i64::try_from(NUDGE_LOG_TIME.as_millis()).unwrap_or(i64::MAX);
        let parameters = [
            (&CHANNEL as _, Type::TEXT),
            (&texts as _, Type::TEXT_ARRAY),
            (&nudged as _, Type::BYTEA_ARRAY),
            (&origin as _, Type::INT8),
            (&keep_ms as _, Type::INT8),
        ];
        let (statement, parameters) = if nudged.is_empty() {
            (NOTIFY, &parameters[..2])
        } else {
            (NOTIFY_AND_NOTE, &parameters[..])
        };
        transact(client, &self.begin, statement, parameters, NOTIFY_TIMEOUT).await
    }

    /// Says how it went, once; whether it went well.
    fn note(&mut self, sent: &Result<(), StoreError>) -> bool {
        match sent {
            Ok(()) if self.warned => {
                tracing::info!("other replicas are told of changes again");
                self.warned = false;
            }
            Ok(()) => {}
            Err(error) if !self.warned => {
                tracing::warn!(%error, "other replicas cannot be told of changes at once");
                self.warned = true;
            }
            Err(error) => tracing::debug!(%error, "other replicas still cannot be told"),
        }
        sent.is_ok()
    }
}

fn entry((tag, news): &(UserTag, Waiting), now: Instant) -> Entry<'_> {
    let age = now.saturating_duration_since(news.committed).as_millis();
    let run = news.run.as_ref().map(|run| EntryRun {
        from: run.from,
        to: run.to,
        client_id: run.client_id.as_deref(),
        age_ms: u32::try_from(age).unwrap_or(u32::MAX),
    });
    Entry { tag: *tag, nudge: news.nudge, run }
}
