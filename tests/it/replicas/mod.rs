//! Several replicas over one Postgres cannot be told from one.

use std::time::Duration;

use data_sync::proto::Notification;
use tokio::time::{Instant, timeout};
use tonic::Streaming;

use crate::support::{
    client::{Wallet, next},
    http::{get, metric},
    postgres::{Database, migrated_database},
    server::{Server, ServerOptions},
    wait::until,
};

mod contention;
mod faults;
mod notifications;
mod nudges;
mod pooler;
mod rolling;

/// A change is told within this time, whatever happens to the announcements.
const RECONCILE_BOUND: Duration = Duration::from_secs(5);
/// A change that is announced is told within this time, on however busy a machine.
const ANNOUNCED_BOUND: Duration = Duration::from_secs(1);

const CONNECTED: &str = "data_sync_listener_connected";

/// Replicas over one database.
struct Replicas {
    servers: Vec<Server>,
    database: Database<'static>,
}

impl Replicas {
    /// Three replicas that hear each other.
    async fn start() -> Self {
        let database = migrated_database().await;
        let options = ServerOptions::postgres(&database.url());
        let replicas = Self::start_each(database, &[options.clone(), options.clone(), options]);
        replicas.all_hear().await;
        replicas
    }

    /// A replica for each of the settings.
    fn start_each(database: Database<'static>, options: &[ServerOptions]) -> Self {
        Self { servers: options.iter().map(ServerOptions::start).collect(), database }
    }

    async fn all_hear(&self) {
        for server in &self.servers {
            hears(server, true).await;
        }
    }

    /// The instance `wallet` belongs to, seen from replica `number`: same key, same client id.
    async fn at(&self, number: usize, wallet: &Wallet) -> Wallet {
        wallet.connected_to(self.servers[number].grpc).await
    }

    /// A new instance of a new user at replica `number`.
    async fn wallet(&self, number: usize) -> Wallet {
        Wallet::connect(self.servers[number].grpc, crate::support::client::fresh_key()).await
    }
}

/// Waits until a replica hears the others at once, or knows that it does not.
async fn hears(server: &Server, hears: bool) {
    until(&format!("{CONNECTED} is {hears}"), async || {
        (metric(server, CONNECTED).await > 0.0) == hears
    })
    .await;
}

/// What `/readyz?verbose` says about hearing others. It never makes a replica unready.
async fn listen_check(server: &Server) -> String {
    let (status, text) = get(server, "/readyz?verbose").await;
    assert_eq!(status, 200, "{text}");
    let line = text.lines().find(|line| line.contains(" listen "));
    line.unwrap_or_else(|| panic!("no such check in\n{text}")).to_owned()
}

/// The next notification, which must come within `bound`; and how long it took.
async fn told_within(
    bound: Duration,
    stream: &mut Streaming<Notification>,
) -> (Notification, Duration) {
    let began = Instant::now();
    let told = timeout(bound, next(stream)).await;
    let told = told.unwrap_or_else(|_| panic!("nothing was told within {bound:?}"));
    (told, began.elapsed())
}
