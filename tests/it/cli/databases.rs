//! Commands that open databases, on real ones.

use std::{path::Path, sync::Arc};

use data_sync::{
    clock::{Clock as _, SystemClock},
    config::SqliteConfig,
    notify::{Hub, LocalFeed},
    store::{
        Quotas, RequestDigest, StoreContext, UserId,
        sqlite::{self, SqliteStore},
        transfer::{Transfer as _, TransferLock, TransferRecord},
    },
    telemetry::metrics::Metrics,
};
use uuid::Uuid;

use super::{Said, data_sync, run};
use crate::support::postgres::{Cluster, migrated_database};

/// Users in [`fill`]; more than one write of an import.
const USERS: u8 = 5;
const RECORDS_A_USER: u64 = 20;

/// Makes an SQLite file that holds a little of everything.
async fn fill(directory: &Path) {
    let config = SqliteConfig { path: directory.join("db.sqlite") };
    sqlite::migrate(&config, &SystemClock).expect("a new file");
    let context = StoreContext {
        feed: Arc::new(LocalFeed::new(Arc::new(Hub::new()), &Metrics::new())),
        quotas: Quotas::default(),
        clock: Arc::new(SystemClock),
        metrics: Arc::new(Metrics::new()),
    };
    let store = SqliteStore::open(&config, context).expect("a store");
    for number in 0..USERS {
        let user = UserId::new([number; UserId::BYTES]);
        let records = (1..=RECORDS_A_USER).map(|revision| TransferRecord {
            id: format!("record {revision}"),
            revision,
            schema_version: "1.0.0".to_owned(),
            data: vec![number; 100].into(),
            digest: revision.is_multiple_of(2).then_some(RequestDigest([number; 32])),
        });
        store.put_records(user, records.collect()).await.expect("records");
        store.raise_head(user, 100).await.expect("a head");
        let lock = TransferLock {
            user,
            name: "sweep".to_owned(),
            instance: Uuid::from_u128(7),
            exclusive: true,
            expires_at_ms: SystemClock.now_ms() + 120_000,
            fencing_token: 9,
        };
        store.put_locks(vec![lock]).await.expect("a lock");
    }
    store.raise_fencing_token(9).await.expect("a token");
    data_sync::store::Store::close(&store).await;
}

fn import(from: &str, to: &str) -> Said {
    let mut command = data_sync(&["import"]);
    command.env("IMPORT_FROM", from).env("IMPORT_TO", to).output().expect("it runs").into()
}

#[tokio::test]
async fn a_store_moves_from_sqlite_to_postgres_and_back() {
    let (there, back) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(there.path()).await;
    let database = Cluster::shared().create_database().await;
    let source = format!("sqlite:{}", there.path().display());

    let moved = import(&source, &database.url());
    assert_eq!(moved.exit, Some(0), "{moved:?}");
    assert!(moved.out.contains("moved 5 users (0 had arrived before), 100 records"), "{moved:?}");
    let again = import(&source, &database.url());
    assert!(again.out.contains("moved 0 users (5 had arrived before), 0 records"), "{again:?}");

    let returned = import(&database.url(), &format!("sqlite:{}", back.path().display()));
    assert_eq!(returned.exit, Some(0), "{returned:?}");
    assert!(returned.out.contains("10000 bytes, 5 locks"), "{returned:?}");
}

#[tokio::test]
async fn an_import_does_not_merge() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(one.path()).await;
    let empty = format!("sqlite:{}", other.path().join("empty.sqlite").display());
    let filled = format!("sqlite:{}", one.path().display());
    let created = import(&filled, &empty);
    assert_eq!(created.exit, Some(0), "{created:?}");

    // The other way round nothing is missing, so nothing is refused either.
    let back = import(&empty, &filled);
    assert_eq!(back.exit, Some(0), "{back:?}");

    let blank = format!("sqlite:{}", other.path().join("blank.sqlite").display());
    let path = other.path().join("blank.sqlite");
    sqlite::migrate(&SqliteConfig { path }, &SystemClock).expect("a new file");
    let refused = import(&blank, &filled);
    assert_eq!(refused.exit, Some(1), "{refused:?}");
    assert!(refused.err.contains("not merged"), "{refused:?}");
}

#[test]
fn a_source_that_does_not_exist_is_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing.sqlite");
    let target = directory.path().join("target.sqlite");
    let said =
        import(&format!("sqlite:{}", missing.display()), &format!("sqlite:{}", target.display()));
    assert_eq!(said.exit, Some(1), "{said:?}");
    assert!(said.err.contains("does not exist"), "{said:?}");
    assert!(!missing.exists() && !target.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_restore_refuses_what_is_no_restored_database() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("a UTF-8 path");
    let missing = run(&["after-restore", "--sqlite-dir-path", path]);
    assert_eq!(missing.exit, Some(1), "{missing:?}");
    assert!(missing.err.contains("does not exist"), "{missing:?}");
    assert!(!directory.path().join("db.sqlite").exists());

    let database = Cluster::shared().create_database().await;
    let empty = run(&["after-restore", "--database-url", &database.url()]);
    assert_eq!(empty.exit, Some(1), "{empty:?}");
    assert!(empty.err.contains("data-sync migrate"), "{empty:?}");

    let nothing = run(&["after-restore", "--by", "0", "--sqlite-dir-path", path]);
    assert_eq!(nothing.exit, Some(64), "{nothing:?}");

    fill(directory.path()).await;
    let server = crate::support::server::ServerOptions::sqlite(directory.path()).start();
    let served = run(&["after-restore", "--sqlite-dir-path", path]);
    assert_eq!(served.exit, Some(1), "{served:?}");
    assert!(served.err.contains("another process serves this file"), "{served:?}");
    drop(server);
    let lifted = run(&["after-restore", "--by", "7", "--sqlite-dir-path", path]);
    assert_eq!(lifted.exit, Some(0), "{lifted:?}");
    let expected = "lifted 5 users and 100 records by 7\n\
                    new users begin above revision 7, fencing tokens go on above 16\n\
                    every device lists everything once more\n";
    assert_eq!(lifted.out, expected);
}

#[tokio::test]
async fn migrate_and_check_tell_where_postgres_stands() {
    let database = Cluster::shared().create_database().await;
    let url = database.url();
    let status = || run(&["migrate", "status", "--json", "--database-url", &url]);
    let before = status();
    assert_eq!(before.exit, Some(1), "{before:?}");
    assert!(before.out.contains(r#""ready":false"#), "{before:?}");
    let check = run(&["check", "--database-url", &url]);
    assert_eq!(check.exit, Some(0), "{check:?}");
    assert!(check.out.contains("migrations are missing"), "{check:?}");

    let dry = run(&["migrate", "--dry-run", "--database-url", &url]);
    assert!(dry.out.starts_with("would apply"), "{dry:?}");
    assert_eq!(status().exit, Some(1), "a dry run changes nothing");

    let up = run(&["migrate", "--database-url", &url]);
    assert_eq!(up.exit, Some(0), "{up:?}");
    assert_eq!(status().exit, Some(0));
    let check = run(&["check", "--database-url", &url]);
    assert_eq!(check.exit, Some(0), "{check:?}");
    assert!(check.out.contains("differ by") && !check.out.contains("FAIL"), "{check:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_recounts_what_quotas_count_in_sqlite() {
    let directory = tempfile::tempdir().expect("a directory");
    fill(directory.path()).await;
    let path = directory.path().to_str().expect("a UTF-8 path");
    let check = || run(&["check", "--recount", "--sqlite-dir-path", path]);
    let right = check();
    assert_eq!(right.exit, Some(0), "{right:?}");
    assert!(right.out.contains("right for all 5 users"), "{right:?}");
    let file = rusqlite::Connection::open(directory.path().join("db.sqlite")).expect("opens");
    let sql = "UPDATE data_sync_users SET record_count = 21, byte_count = 7
               WHERE user_id = zeroblob(33)";
    assert_eq!(file.execute(sql, []).expect("runs"), 1);
    drop(file);
    says_which_user_is_wrong(&check());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_recounts_what_quotas_count_in_postgres() {
    let directory = tempfile::tempdir().expect("a directory");
    fill(directory.path()).await;
    let database = migrated_database().await;
    let url = database.url();
    let moved = import(&format!("sqlite:{}", directory.path().display()), &url);
    assert_eq!(moved.exit, Some(0), "{moved:?}");
    let check = || run(&["check", "--recount", "--database-url", &url]);
    let right = check();
    assert_eq!(right.exit, Some(0), "{right:?}");
    assert!(right.out.contains("right for all 5 users"), "{right:?}");
    let sql = "UPDATE data_sync.users SET records = 21, bytes = 7
               WHERE user_id = decode(repeat('00', 33), 'hex')";
    assert_eq!(database.connect().await.execute(sql, &[]).await.expect("runs"), 1);
    says_which_user_is_wrong(&check());
}

fn says_which_user_is_wrong(said: &Said) {
    assert_eq!(said.exit, Some(1), "{said:?}");
    let wrong = "wrong for 1 of 5 users: 00000000… is counted with 21 records of 7 bytes and holds 20 of 2000";
    assert!(said.out.contains(wrong), "{said:?}");
}

#[test]
fn check_fails_for_a_database_out_of_reach_and_keeps_its_password() {
    let url = format!("postgres://user:hunter2@{}/name", super::free_address());
    let said = run(&["check", "--database-url", &url]);
    assert_eq!(said.exit, Some(1), "{said:?}");
    assert!(said.out.contains("FAIL  database"), "{said:?}");
    assert!(!format!("{said:?}").contains("hunter2"), "{said:?}");
}

#[test]
fn check_fails_for_a_revocation_list_out_of_reach() {
    let url = format!("http://{}/serials", super::free_address());
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let ca_cert = data_encoding::BASE64.encode(certificate.der());
    let said = run(&["check", "--ca-cert", &ca_cert, "--crl-url", &url]);
    assert_eq!(said.exit, Some(1), "{said:?}");
    assert!(said.out.contains("ok    authority"), "{said:?}");
    assert!(said.out.contains("FAIL  revocation list"), "{said:?}");
}
