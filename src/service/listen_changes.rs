//! ListenChanges: a stream of hints, from "the subscription is live" to an end that is no success.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    ServiceError, StreamEnd, SyncService,
    call::{Call, Hangup},
    delivery,
    places::Place,
    validate,
};
use crate::{
    auth::{Authenticator, api_key::ApiKey},
    notify::{Hint, Subscription},
    proto,
    telemetry::metrics::Metrics,
};

/// How long streams may live and when the replica wants them gone. Cloning it is cheap.
#[derive(Debug, Clone)]
pub struct StreamLife(Arc<Life>);

#[derive(Debug)]
struct Life {
    max_age: Option<Duration>,
    spread: Duration,
    draining: CancellationToken,
    drain_began: OnceLock<Instant>,
}

impl StreamLife {
    /// Streams end at `max_age` (±20 %; `None` is no limit), or within `spread` after
    /// [`Self::drain`], each at a random moment: clients come back at once and have no jitter of
    /// their own.
    #[must_use]
    pub fn new(max_age: Option<Duration>, spread: Duration) -> Self {
        Self(Arc::new(Life {
            max_age,
            spread,
            draining: CancellationToken::new(),
            drain_began: OnceLock::new(),
        }))
    }

    /// Ends every stream, spread over time, and refuses new ones.
    pub fn drain(&self) {
        self.0.drain_began.get_or_init(Instant::now);
        self.0.draining.cancel();
    }

    /// Whether [`Self::drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.draining.is_cancelled()
    }

    /// When a stream that begins now has reached its age.
    fn age_limit(&self) -> Option<Instant> {
        let max_age = self.0.max_age?;
        Some(Instant::now() + max_age.mul_f64(rand::random_range(0.8..1.2)))
    }

    /// Waits until the replica drains and the stream's `turn` (from 0 to 1) has come.
    async fn drained(&self, turn: f64) {
        self.0.draining.cancelled().await;
        let began = self.0.drain_began.get().copied().unwrap_or_else(Instant::now);
        // Boxed, since all streams have room for it and few ever come here.
        Box::pin(tokio::time::sleep_until(began + self.0.spread.mul_f64(turn))).await;
    }
}

/// Counts one open stream for as long as it lives.
struct OpenStream {
    metrics: Arc<Metrics>,
    /// Set before the stream ends by itself; a client that hangs up or stalls leaves it.
    ended: &'static str,
}

impl OpenStream {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.active_streams.inc();
        Self { metrics: Arc::clone(metrics), ended: "client_gone" }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let ended = if delivery::has_stalled() { StreamEnd::Stalled.as_str() } else { self.ended };
        self.metrics.active_streams.dec();
        self.metrics.streams_ended.with_label_values(&[ended]).inc();
    }
}

type Item = Result<proto::Notification, Status>;

/// One stream between two notifications.
struct Listener {
    subscription: Subscription,
    place: Place,
    auth: Arc<Authenticator>,
    /// Boxed: most deployments ask for none.
    api_key: Option<Box<ApiKey>>,
    hangup: Option<Hangup>,
    life: StreamLife,
    age_limit: Option<Instant>,
    /// When in a drain this stream ends, from 0 (first) to 1 (last).
    drain_turn: f64,
    open: OpenStream,
    stage: Stage,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// Subscribed; the first notification is still to be sent.
    Live,
    /// Waiting for news.
    Waiting,
    /// The last item was sent.
    Ended,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl SyncService {
    pub(super) async fn handle_listen_changes(
        &self,
        call: &Call,
        request: &proto::ListenChangesRequest,
    ) -> Result<impl Stream<Item = Item> + Send + use<>, ServiceError> {
        validate::request_time(request.request_time, self.now_seconds())?;
        let caller = self.authenticate(call, request)?;
        let parts = &self.0;
        if parts.streams.is_draining() {
            leave_connection(call.hangup.as_ref());
            return Err(ServiceError::StreamEnded(StreamEnd::Draining));
        }

        // In this order nothing falls between: whatever commits after the head was read is
        // announced to a subscription that is already registered.
        let mut subscription = parts.hub.subscribe(caller.user);
        let heads = parts.store.heads(&[caller.user], call.deadline).await?;
        // Last: a call that fails must not end another stream.
        let place = parts.places.take(caller.user).ok_or(ServiceError::TooManyStreams)?;
        let open = OpenStream::new(&parts.metrics);
        subscription.start_at(heads.first().copied().unwrap_or_default());

        let listener = Listener {
            subscription,
            place,
            auth: Arc::clone(&parts.auth),
            api_key: caller.api_key.map(Box::new),
            hangup: call.hangup.clone(),
            life: parts.streams.clone(),
            age_limit: parts.streams.age_limit(),
            drain_turn: rand::random_range(0.0..1.0),
            open,
            stage: Stage::Live,
        };
        Ok(futures_util::stream::unfold(listener, Listener::step))
    }
}

/// A client that listens again at once must find another replica, not this connection.
fn leave_connection(hangup: Option<&Hangup>) {
    if let Some(hangup) = hangup {
        hangup.ask();
    }
}

impl Listener {
    /// Produces the next item; `None` after the last.
    #[allow(
        clippy::manual_async_fn,
        reason = "an async fn keeps its argument twice, and every idle stream with it"
    )]
    fn step(mut self) -> impl Future<Output = Option<(Item, Self)>> + Send {
        async move {
            let item = match self.stage {
                Stage::Live => {
                    self.stage = Stage::Waiting;
                    Ok(proto::Notification::default())
                }
                Stage::Waiting => match self.wait().await {
                    Ok(hint) => Ok(self.notification(hint)),
                    Err(error) => {
                        self.stage = Stage::Ended;
                        Err(Status::from(error))
                    }
                },
                Stage::Ended => return None,
            };
            Some((item, self))
        }
    }

    async fn wait(&mut self) -> Result<Hint, ServiceError> {
        let Self { subscription, place, auth, api_key, life, age_limit, drain_turn, open, .. } =
            self;
        let aged = async {
            match age_limit {
                Some(limit) => tokio::time::sleep_until(*limit).await,
                None => std::future::pending().await,
            }
        };
        let (ended, error) = tokio::select! {
            biased;
            error = auth.until_invalid(api_key.as_deref()) => ("api_key", ServiceError::Unauthenticated(error)),
            () = place.displaced() => {
                (StreamEnd::Displaced.as_str(), ServiceError::StreamEnded(StreamEnd::Displaced))
            }
            hint = subscription.next() => return Ok(hint),
            () = aged => (StreamEnd::MaxAge.as_str(), ServiceError::StreamEnded(StreamEnd::MaxAge)),
            () = life.drained(*drain_turn) => {
                (StreamEnd::Draining.as_str(), ServiceError::StreamEnded(StreamEnd::Draining))
            }
        };
        open.ended = ended;
        if life.is_draining() {
            leave_connection(self.hangup.as_ref());
        }
        Err(error)
    }

    fn notification(&self, hint: Hint) -> proto::Notification {
        let metrics = &self.open.metrics;
        metrics.notifications_delivered.inc();
        metrics.notifications_coalesced.inc_by(hint.changes.saturating_sub(1));
        if let Some(committed) = hint.committed {
            metrics.notification_delay_seconds.observe(committed.elapsed().as_secs_f64());
        }
        proto::Notification {
            client_id: hint.client_id.map(|id| id.as_ref().to_owned()),
            revision: hint.revision,
        }
    }
}
