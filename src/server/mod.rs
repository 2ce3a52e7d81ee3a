//! Listeners, and the life of connections and of the replica.

use std::{future::Future, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use http::Request;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::ServiceExt as _;

use crate::{
    clock::{Clock, SystemClock},
    config::Config,
    limits,
    notify::{ChangeFeed, Hub, ListenState},
    service::{
        ServiceParts, StreamLife, SyncService, nudge::Nudger, places::StreamPlaces,
        rate::RateLimits,
    },
    store::{Instrumented, Store, deferred::DeferredStore},
    tasks::Tasks,
    telemetry::{LogControl, metrics::Metrics},
};

mod accept;
pub mod admin;
mod admin_view;
mod client_address;
mod connection;
mod descriptors;
mod drain;
mod ending;
mod feed;
mod grpc;
mod guard;
mod health;
pub mod layers;
mod opening;
mod proxy_header;
mod stall;
mod web;

use accept::{Connections, Listener};
use admin::AdminState;
use admin_view::ReplicaView;
use connection::{ConnectionEnd, ConnectionSettings, Protocol};
use drain::Drain;
use guard::GuardLimits;
use health::Health;

/// The addresses a server listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// gRPC.
    pub grpc: SocketAddr,
    /// gRPC-Web.
    pub web: SocketAddr,
    /// Metrics, probes, status.
    pub admin: SocketAddr,
}

/// The three sockets, bound and not yet served.
#[derive(Debug)]
struct Sockets {
    grpc: TcpListener,
    web: TcpListener,
    admin: TcpListener,
}

impl Sockets {
    async fn bind(config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            grpc: bind("GRPC_LISTEN_ADDRESS", config.grpc_address).await?,
            web: bind("GRPC_WEB_LISTEN_ADDRESS", config.web_address).await?,
            admin: bind("ADMIN_LISTEN_ADDRESS", config.admin_address).await?,
        })
    }

    fn addresses(&self) -> anyhow::Result<Addresses> {
        Ok(Addresses {
            grpc: self.grpc.local_addr()?,
            web: self.web.local_addr()?,
            admin: self.admin.local_addr()?,
        })
    }
}

async fn bind(setting: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} ({setting}); is it in use?"))
}

/// What a running replica is made of.
struct Replica {
    config: Config,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    log: LogControl,
    hub: Arc<Hub>,
    feed: Arc<dyn ChangeFeed>,
    /// Whether other replicas are heard, where there may be any.
    listening: Option<watch::Receiver<ListenState>>,
    store: Arc<DeferredStore>,
    /// The same with its operations timed.
    timed_store: Arc<dyn Store>,
    health: Health,
    streams: StreamLife,
    connections: Arc<Connections>,
    connection_end: ConnectionEnd,
    connection_tasks: Tasks,
    stop_accepting: CancellationToken,
    nudges: Tasks,
    background: Tasks,
}

/// Serves until `shutdown` resolves, then drains.
///
/// `listening` is told the addresses once all three ports accept connections.
///
/// # Errors
/// If an address cannot be bound, the configuration's certificate cannot be used, or the store
/// cannot be opened for a reason that waiting does not cure.
pub async fn run(
    config: Config,
    metrics: Arc<Metrics>,
    log: LogControl,
    listening: impl FnOnce(Addresses) + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    descriptors::allow_for(config.max_connections);
    let sockets = Sockets::bind(&config).await?;
    let addresses = sockets.addresses()?;
    let replica = Replica::new(config, metrics, log).await?;
    replica.serve(sockets).await?;
    let mut shutdown = std::pin::pin!(shutdown);
    tokio::select! {
        opened = replica.open_store() => {
            opened?;
            listening(addresses);
            shutdown.await;
        }
        () = &mut shutdown => {}
    }
    replica.drain().await;
    Ok(())
}

impl Replica {
    async fn new(config: Config, metrics: Arc<Metrics>, log: LogControl) -> anyhow::Result<Self> {
        let hub = Arc::new(Hub::new());
        let background = Tasks::new();
        let store = Arc::new(DeferredStore::default());
        let timed_store: Arc<dyn Store> =
            Arc::new(Instrumented::new(Arc::clone(&store) as _, Arc::clone(&metrics)));
        let engine = &config.store.engine;
        let (feed, listening) =
            feed::start(engine, &hub, Arc::clone(&timed_store), &metrics, &background)
                .context("cannot prepare the notifications")?;
        let streams = StreamLife::new(config.stream_max_age, config.shutdown.spread);
        Ok(Self {
            clock: Arc::new(SystemClock),
            feed,
            listening,
            hub,
            store,
            timed_store,
            health: Health::new(Arc::clone(&metrics)).await,
            streams,
            connections: Arc::new(Connections::new(
                config.max_connections,
                config.max_connections_per_address,
            )),
            connection_end: ConnectionEnd::default(),
            connection_tasks: Tasks::new(),
            stop_accepting: CancellationToken::new(),
            nudges: Tasks::new(),
            background,
            metrics,
            log,
            config,
        })
    }

    /// Starts all three listeners. The store may still be closed.
    async fn serve(&self, sockets: Sockets) -> anyhow::Result<()> {
        let (nudger, nudge_task) = Nudger::new(Arc::clone(&self.feed), Arc::clone(&self.metrics));
        self.nudges.spawn("nudges", nudge_task.run(self.nudges.stop_signal()));

        let service = SyncService::new(ServiceParts {
            store: Arc::clone(&self.timed_store),
            feed: Arc::clone(&self.feed),
            hub: Arc::clone(&self.hub),
            auth: self.authenticator().await?,
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
            nudger,
            streams: self.streams.clone(),
            places: Arc::new(StreamPlaces::new(
                self.config.max_streams,
                self.config.max_streams_per_user,
            )),
            rates: RateLimits::new(self.config.rates),
            request_timeout: self.config.request_timeout,
        });
        let hang_up = &self.connection_end.hang_up;
        let services = grpc::services(service, &self.health, self.config.reflection, hang_up)?;
        let grpc = layers::stack(services, &self.metrics, self.config.request_timeout);
        let web = web::service(grpc.clone(), &self.config.cors_origins);

        let admin = admin::router(self.admin_state(&sockets)?);
        let admin = admin.map_request(|request: Request<Body>| request.map(axum::body::Body::new));

        let public = |name, socket, protocol| self.listener(name, socket, protocol);
        let admin_listener = self.admin_listener(sockets.admin);
        self.background
            .spawn("grpc listener", public("grpc", sockets.grpc, Protocol::Http2).run(grpc));
        self.background.spawn("web listener", public("web", sockets.web, Protocol::Any).run(web));
        self.background.spawn("admin listener", admin_listener.run(admin));
        Ok(())
    }

    fn listener(&self, name: &'static str, socket: TcpListener, protocol: Protocol) -> Listener {
        Listener {
            name,
            socket,
            settings: ConnectionSettings {
                protocol,
                max_concurrent_streams: self.config.max_concurrent_streams,
                max_age: self.config.connection_max_age,
                guard: GuardLimits {
                    handshake: self.config.handshake_timeout,
                    stall: self.config.stall_timeout,
                },
                proxy_protocol: self.config.proxy_protocol,
                trusted_hops: self.config.trusted_proxy_hops,
            },
            connections: Arc::clone(&self.connections),
            stop: self.stop_accepting.clone(),
            end: self.connection_end.clone(),
            tasks: self.connection_tasks.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// Serves to the very end: a drain wants to be watched.
    fn admin_listener(&self, socket: TcpListener) -> Listener {
        let stop = self.background.stop_signal();
        let public = self.listener("admin", socket, Protocol::Any);
        Listener {
            // Whoever may reach this port reaches it directly.
            settings: ConnectionSettings {
                proxy_protocol: false,
                trusted_hops: 0,
                ..public.settings
            },
            connections: Arc::new(Connections::new(limits::MAX_ADMIN_CONNECTIONS, usize::MAX)),
            stop: stop.clone(),
            end: ConnectionEnd { hang_up: stop.clone(), cut: stop },
            tasks: self.background.clone(),
            ..public
        }
    }

    fn admin_state(&self, sockets: &Sockets) -> anyhow::Result<AdminState> {
        let Addresses { grpc, web, admin } = sockets.addresses()?;
        let view = ReplicaView {
            health: self.health.clone(),
            store: Arc::clone(&self.store),
            hub: Arc::clone(&self.hub),
            listening: self.listening.clone(),
            metrics: Arc::clone(&self.metrics),
            clock: Arc::clone(&self.clock),
            revocation_refresh: self.config.revocation_refresh(),
            listeners: vec![("grpc", grpc), ("web", web), ("admin", admin)],
            streams: self.streams.clone(),
        };
        let (metrics, clock) = (Arc::clone(&self.metrics), Arc::clone(&self.clock));
        Ok(AdminState::new(Arc::new(view), metrics, self.log.clone(), clock))
    }

    async fn drain(&self) {
        let drain = Drain {
            times: self.config.shutdown,
            health: &self.health,
            metrics: &self.metrics,
            streams: &self.streams,
            stop_accepting: &self.stop_accepting,
            connections: &self.connection_end,
            connection_tasks: &self.connection_tasks,
            nudges: &self.nudges,
            background: &self.background,
            store: self.store.as_ref(),
        };
        drain.run().await;
    }
}
