//! A subscription that comes back by itself.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::{Backoff, Client, Error, timed_out, unsent::until_sent};
use crate::{
    limits,
    proto::{ListenChangesRequest, Notification},
};

/// What a [`Watch`] tells.
#[derive(Debug)]
pub enum WatchEvent {
    /// The subscription is live, for the first time or again: changes from now on are told.
    /// List what changed before it, or while it was lost.
    Live,
    /// Something changed: list the changes since the last revision you know. If the notification
    /// bears your own client id, all it stands for is your own writes.
    Changed(Notification),
    /// The subscription ended. It is made anew after a pause, for ever.
    Lost {
        /// Why.
        error: Error,
        /// The pause.
        retry_in: Duration,
    },
}

/// An endless stream of [`WatchEvent`]s. Waiting for one may be given up and taken up again at
/// any time; dropping the stream ends the subscription.
pub struct Watch(Pin<Box<dyn Stream<Item = WatchEvent> + Send>>);

impl Watch {
    pub(super) fn new(client: Client) -> Self {
        let backoff =
            Backoff::new(limits::CLIENT_RESUBSCRIBE_PAUSE, limits::CLIENT_MAX_RESUBSCRIBE_PAUSE);
        let start = Subscriber { client, backoff, state: State::Pausing(Duration::ZERO) };
        Self(Box::pin(stream::unfold(start, |mut subscriber| async move {
            let event = subscriber.next_event().await;
            Some((event, subscriber))
        })))
    }

    /// Waits for the next event.
    pub async fn next_event(&mut self) -> Option<WatchEvent> {
        self.0.next().await
    }
}

impl Stream for Watch {
    type Item = WatchEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<WatchEvent>> {
        self.0.as_mut().poll_next(context)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

enum State {
    Pausing(Duration),
    Subscribed { notifications: Box<Streaming<Notification>>, since: Instant },
}

struct Subscriber {
    client: Client,
    backoff: Backoff,
    state: State,
}

impl Subscriber {
    async fn next_event(&mut self) -> WatchEvent {
        let error = match &mut self.state {
            State::Pausing(pause) => {
                tokio::time::sleep(*pause).await;
                match self.subscribe().await {
                    Ok(notifications) => {
                        let notifications = Box::new(notifications);
                        self.state = State::Subscribed { notifications, since: Instant::now() };
                        return WatchEvent::Live;
                    }
                    Err(error) => error,
                }
            }
            State::Subscribed { notifications, since } => {
                let message = notifications.message().await;
                let lived = since.elapsed();
                let error = match message {
                    Ok(Some(notification)) => return WatchEvent::Changed(notification),
                    Ok(None) => ended(),
                    Err(status) => status.into(),
                };
                self.backoff.succeeded_for(lived, limits::CLIENT_SUBSCRIPTION_SETTLES);
                error
            }
        };
        let retry_in = self.backoff.next_pause();
        self.state = State::Pausing(retry_in);
        WatchEvent::Lost { error, retry_in }
    }

    /// Subscribes and waits for the first notification, which says that the subscription is live.
    async fn subscribe(&self) -> Result<Streaming<Notification>, Error> {
        let request = self.client.signed(ListenChangesRequest {
            request_time: self.client.request_time(),
            signature: String::new(),
        });
        let subscribing = async {
            let answer = until_sent(|| {
                let request = self.client.request(request.clone());
                let mut rpc = self.client.0.rpc.clone();
                async move { rpc.listen_changes(request).await }
            });
            let mut notifications = answer.await?.into_inner();
            match notifications.message().await? {
                Some(_) => Ok(notifications),
                None => Err(ended()),
            }
        };
        let limit = self.client.0.options.timeout;
        tokio::time::timeout(limit, subscribing).await.unwrap_or_else(|_| Err(timed_out(limit)))
    }
}

fn ended() -> Error {
    Status::unavailable("the server ended the subscription").into()
}
