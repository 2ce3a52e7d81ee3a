//! The whole service over a store in memory, for what looks at it without a socket.

use std::{sync::Arc, time::Duration};

use data_sync::{
    auth::Authenticator,
    clock::{Clock, ManualClock},
    notify::{Hub, LocalFeed},
    service::{
        ServiceParts, StreamLife, SyncService,
        nudge::Nudger,
        places::StreamPlaces,
        rate::{RateLimits, Rates},
    },
    store::{Quotas, StoreContext, memory::MemoryStore},
    telemetry::metrics::Metrics,
};

/// Streams of the service, and of one user of it.
const MAX_STREAMS: usize = 1_000;

/// An empty service whose clock stands at `now_seconds`; a call may take `request_timeout`.
pub(crate) fn service(
    metrics: Arc<Metrics>,
    now_seconds: u32,
    request_timeout: Duration,
) -> SyncService {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(u64::from(now_seconds) * 1_000));
    let hub = Arc::new(Hub::new());
    let feed = Arc::new(LocalFeed::new(Arc::clone(&hub), &metrics));
    let store = MemoryStore::new(StoreContext {
        feed: feed.clone(),
        quotas: Quotas::default(),
        clock: Arc::clone(&clock),
        metrics: Arc::clone(&metrics),
    });
    let auth = Authenticator::new(None, &clock, Arc::clone(&metrics)).expect("no key is asked for");
    let (nudger, _task) = Nudger::new(feed.clone(), Arc::clone(&metrics));
    SyncService::new(ServiceParts {
        store: Arc::new(store),
        feed,
        hub,
        auth: Arc::new(auth),
        clock,
        metrics,
        nudger,
        streams: StreamLife::new(None, Duration::ZERO),
        places: Arc::new(StreamPlaces::new(MAX_STREAMS, MAX_STREAMS)),
        rates: RateLimits::new(Rates::default()),
        request_timeout,
    })
}
