//! Restored backups, by the very commands of the book, and what devices then find.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use data_sync::proto::SetRecordStatus;
use tempfile::TempDir;

use crate::support::{
    book::{block, shell},
    client::{Wallet, fresh_key, next},
    postgres::{Cluster, Database},
    server::{Server, ServerOptions},
};

const PAGE: &str = "backup.md";

/// A service whose database is backed up, lost and restored.
trait Place {
    fn options(&self) -> ServerOptions;
    fn back_up(&self);
    /// What the book's commands print.
    fn restore(&mut self) -> String;
}

struct InPostgres {
    current: Database<'static>,
    spare: Database<'static>,
    files: TempDir,
}

impl Place for InPostgres {
    fn options(&self) -> ServerOptions {
        ServerOptions::postgres(&self.current.url())
    }

    fn back_up(&self) {
        let environment = [("DATABASE_URL", &*self.current.url())];
        shell(&block(PAGE, "postgres-backup"), self.files.path(), &environment);
    }

    fn restore(&mut self) -> String {
        std::mem::swap(&mut self.current, &mut self.spare);
        let environment = [("DATABASE_URL", &*self.current.url())];
        shell(&block(PAGE, "postgres-restore"), self.files.path(), &environment)
    }
}

struct InSqlite {
    data: TempDir,
    files: TempDir,
}

impl InSqlite {
    fn shell(&self, name: &str) -> String {
        let data = self.data.path().to_str().expect("a UTF-8 path");
        shell(&block(PAGE, name), self.files.path(), &[("SQLITE_DIR_PATH", data)])
    }
}

impl Place for InSqlite {
    fn options(&self) -> ServerOptions {
        ServerOptions::sqlite(self.data.path())
    }

    fn back_up(&self) {
        self.shell("sqlite-backup");
    }

    fn restore(&mut self) -> String {
        self.shell("sqlite-restore")
    }
}

/// Two devices of one user, and one of a user that comes after the backup.
struct Devices {
    phone: Wallet,
    tablet: Wallet,
    newcomer: Wallet,
}

impl Devices {
    async fn at(&self, server: &Server) -> Self {
        Self {
            phone: self.phone.connected_to(server.grpc).await,
            tablet: self.tablet.connected_to(server.grpc).await,
            newcomer: self.newcomer.connected_to(server.grpc).await,
        }
    }
}

async fn devices_lose_nothing_that_is_written_after_a_restore(mut place: impl Place) {
    let mut server = place.options().start();
    let phone = Wallet::connect(server.grpc, fresh_key()).await;
    let newcomer = Wallet::connect(server.grpc, fresh_key()).await;
    let devices = Devices { tablet: phone.sibling(), phone, newcomer };
    devices.phone.must_set("kept", 0, b"old").await;
    devices.phone.must_set("rewritten", 0, b"old").await;
    place.back_up();

    // All of this is lost, but the devices remember the revisions.
    let lost = devices.phone.must_set("rewritten", 2, b"lost").await;
    for number in 0..5 {
        devices.phone.must_set(&format!("lost {number}"), 0, b"lost").await;
    }
    let remembered = devices.tablet.list(0).await.expect("lists").head_revision;
    assert_eq!((lost, remembered), (3, 8));
    let newcomer_remembers = devices.newcomer.must_set("first", 0, b"lost").await;
    let token = devices.phone.lock("sweep", true, None).await.expect("locks").fencing_token;
    server.kill();

    let said = place.restore();
    assert!(said.contains("lifted 1 users and 2 records by 1000000"), "{said}");
    let server = place.options().start();
    let Devices { phone, tablet, newcomer } = devices.at(&server).await;

    // The tablet asks for what is newer than it remembers, and gets all that there is.
    let page = tablet.list(remembered).await.expect("lists");
    let found: Vec<_> = page.changes.iter().map(|r| (r.id.as_str(), &r.data[..])).collect();
    assert_eq!(found, [("kept", &b"old"[..]), ("rewritten", b"old")]);

    // The phone writes on a revision that is lost: one conflict, one list, and it goes on.
    let refused = phone.set("rewritten", lost, b"new").await.expect("answers");
    assert_eq!(refused.status(), SetRecordStatus::Conflict);
    let page = phone.list(remembered).await.expect("lists");
    let base = page.changes.iter().find(|r| r.id == "rewritten").expect("listed").revision;
    let mut stream = tablet.listening().await;
    let written = phone.must_set("rewritten", base, b"new").await;
    assert_eq!(next(&mut stream).await.revision, written);
    // A record that the backup does not hold is taken at any revision.
    phone.must_set("lost 0", 4, b"again").await;
    let news = tablet.list(page.head_revision).await.expect("lists").changes;
    assert_eq!(news.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(), ["rewritten", "lost 0"]);

    // Nobody restored the newcomer, but its other devices see what it writes now.
    let revision = newcomer.must_set("second", 0, b"new").await;
    let news = newcomer.sibling().list(newcomer_remembers).await.expect("lists").changes;
    assert_eq!(news.iter().map(|r| r.revision).collect::<Vec<_>>(), [revision]);
    // Work done under the lock from before is told from work under the lock of now.
    let again = phone.lock("sweep", true, None).await.expect("locks").fencing_token;
    assert!(again > token, "{again} after {token}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_postgres_database_is_ahead_of_every_device() {
    let cluster = Cluster::shared();
    let current = cluster.create_database().await;
    let spare = cluster.create_database().await;
    let files = tempfile::tempdir().expect("a directory");
    devices_lose_nothing_that_is_written_after_a_restore(InPostgres { current, spare, files })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_sqlite_file_is_ahead_of_every_device() {
    let [data, files] = [(), ()].map(|()| tempfile::tempdir().expect("a directory"));
    devices_lose_nothing_that_is_written_after_a_restore(InSqlite { data, files }).await;
}

/// Replicas may serve meanwhile: streams stay, and are told to list.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_serving_replicas_hear_of_a_lift() {
    let database = Cluster::shared().create_database().await;
    let url = database.url();
    let server = ServerOptions::postgres(&url).start();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    wallet.must_set("r", 0, b"x").await;
    let mut stream = wallet.listening().await;
    let environment = [("DATABASE_URL", &*url)];
    let planned = shell("data-sync after-restore --by 10 --dry-run", Path::new("/"), &environment);
    assert_eq!(planned, "would lift 1 users and 1 records by 10\n");
    let done = shell("data-sync after-restore --by 10", Path::new("/"), &environment);
    assert!(done.contains("above revision 10,"), "{done}");
    assert_eq!(next(&mut stream).await.revision, 12);
    assert_eq!(wallet.must_set("r", 12, b"y").await, 13);
}

/// Writers go on during a lift; none of their writes is lost, and revisions only rise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_beside_a_lift_are_kept() {
    let database = Cluster::shared().create_database().await;
    let url = database.url();
    let server = ServerOptions::postgres(&url).start();
    let wallet = Wallet::connect(server.grpc, fresh_key()).await;
    let writer = wallet.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let writing = tokio::spawn(async move {
        let mut revisions = Vec::new();
        while !stopped.load(Ordering::SeqCst) {
            let id = format!("r{}", revisions.len());
            revisions.push(writer.must_set(&id, 0, b"x").await);
        }
        revisions
    });
    let environment = [("DATABASE_URL".to_owned(), url)];
    let lifts = tokio::task::spawn_blocking(move || {
        let environment = environment.each_ref().map(|(name, url)| (name.as_str(), url.as_str()));
        for _ in 0..3 {
            shell("data-sync after-restore --by 1000", Path::new("/"), &environment);
        }
    });
    lifts.await.expect("lifted");
    stop.store(true, Ordering::SeqCst);
    let revisions = writing.await.expect("written");
    assert!(revisions.is_sorted_by(|one, next| one < next), "{revisions:?}");
    let last = *revisions.last().expect("some writes");
    assert!(last > 3_000, "{last}");
    let records = wallet.list_all().await;
    assert_eq!(records.len(), revisions.len());
    let expected = (0..revisions.len()).map(|number| format!("r{number}"));
    assert!(records.iter().map(|record| record.id.clone()).eq(expected), "in their old order");
    assert_eq!(records.last().expect("a record").revision, last);
}
