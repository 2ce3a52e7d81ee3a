//! `sslmode` against a server with a certificate.

use std::path::Path;

use data_sync::{
    config::PostgresConfig,
    store::{Quotas, Store, StoreError, conformance::soon},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::open;
use crate::support::postgres::{Cluster, Database, config};

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

fn settings(database: &Database<'_>, host: &str, mode: &str, ca: Option<&Path>) -> PostgresConfig {
    let url = database
        .url()
        .replace("127.0.0.1", host)
        .replace("sslmode=disable", &format!("sslmode={mode}"));
    let mut config = config(&url);
    config.ca_file = ca.map(Path::to_owned);
    config
}

async fn reach(config: &PostgresConfig) -> Result<(), StoreError> {
    let opened = open(config, Quotas::default());
    opened.store.heads(&[], soon()).await?;
    opened.store.status(soon()).await.map(drop)
}

#[tokio::test]
async fn each_ssl_mode_checks_what_it_promises() {
    let ours = authority("ours");
    let key = KeyPair::generate().expect("a key");
    let leaf = CertificateParams::new(vec!["localhost".to_owned()])
        .expect("a name")
        .signed_by(&key, &ours)
        .expect("a certificate");
    let cluster = Cluster::start_with_files(
        &[("ssl", "on"), ("ssl_cert_file", "tls.crt"), ("ssl_key_file", "tls.key")],
        &[("tls.crt", &leaf.pem()), ("tls.key", &key.serialize_pem())],
    );
    let database = cluster.create_migrated_database().await;
    let directory = tempfile::tempdir().expect("a directory");
    let [our_file, their_file] =
        [("ours.pem", &ours), ("theirs.pem", &authority("theirs"))].map(|(name, authority)| {
            let path = directory.path().join(name);
            std::fs::write(&path, authority.pem()).expect("a file");
            path
        });

    let (right, wrong) = (Some(our_file.as_path()), Some(their_file.as_path()));
    for (host, mode, ca, allowed) in [
        ("127.0.0.1", "disable", wrong, true),
        ("127.0.0.1", "prefer", None, true),
        ("127.0.0.1", "require", None, true),
        ("127.0.0.1", "require", right, true),
        ("127.0.0.1", "require", wrong, false),
        ("127.0.0.1", "verify-ca", right, true),
        ("127.0.0.1", "verify-ca", wrong, false),
        ("127.0.0.1", "verify-ca", None, false),
        ("localhost", "verify-full", right, true),
        ("127.0.0.1", "verify-full", right, false),
        ("localhost", "verify-full", wrong, false),
        ("localhost", "verify-full", None, false),
    ] {
        let result = reach(&settings(&database, host, mode, ca)).await;
        assert_eq!(result.is_ok(), allowed, "{host} {mode} {ca:?}: {result:?}");
        assert!(allowed || matches!(result, Err(StoreError::Unavailable(_))), "{result:?}");
    }
}

#[tokio::test]
async fn requiring_encryption_of_a_server_without_it_fails() {
    let database = Cluster::shared().create_migrated_database().await;
    let result = reach(&settings(&database, "127.0.0.1", "require", None)).await;
    assert!(matches!(result, Err(StoreError::Unavailable(_))), "{result:?}");
    assert_eq!(reach(&settings(&database, "127.0.0.1", "prefer", None)).await, Ok(()));
}
