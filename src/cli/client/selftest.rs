//! Plays two devices of a new user against a running service: the shortest proof that all of it
//! works, from the load balancer to the database.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use tokio::time::timeout;
use uuid::Uuid;

use super::connect_as;
use crate::{
    cli::Exit,
    client::{AcquireLock, Client, Lock, Record, SetRecord, Signer, Watch, WatchEvent},
    config::ClientConfig,
};

/// Longest wait for a notification. Without announcements between replicas a change is still
/// told within five seconds.
const NOTIFICATION_TIMEOUT: Duration = Duration::from_secs(10);

/// Two devices of one user, each on a connection of its own.
struct Devices {
    one: Client,
    other: Client,
    others_watch: Watch,
}

pub(super) async fn run(config: &ClientConfig, json: bool) -> anyhow::Result<Exit> {
    let signer = Signer::generate();
    let one = connect_as(config, signer.clone()).await?;
    let other = connect_as(config, signer).await?;
    let others_watch = other.watch();
    let mut devices = Devices { one, other, others_watch };

    report(json, "listen", devices.listen().await)?;
    report(json, "write", devices.write().await)?;
    report(json, "notify", devices.notified().await)?;
    report(json, "list", devices.list().await)?;
    report(json, "conflict", devices.conflict().await)?;
    report(json, "lock", devices.lock().await)?;
    Ok(Exit::SUCCESS)
}

/// Prints what became of a step and passes on why it failed.
fn report(json: bool, step: &str, outcome: anyhow::Result<()>) -> anyhow::Result<()> {
    let mut out = io::stdout();
    let ok = outcome.is_ok();
    if json {
        writeln!(out, "{}", serde_json::json!({ "step": step, "ok": ok }))?;
    } else {
        writeln!(out, "{}  {step}", if ok { "ok  " } else { "FAIL" })?;
    }
    outcome.with_context(|| format!("step {step:?} failed"))
}

fn record(revision: u64, data: &'static [u8]) -> Record {
    Record {
        id: "selftest".to_owned(),
        revision,
        schema_version: "1.0.0".to_owned(),
        data: data.into(),
    }
}

impl Devices {
    async fn listen(&mut self) -> anyhow::Result<()> {
        match timeout(NOTIFICATION_TIMEOUT, self.others_watch.next_event()).await {
            Ok(Some(WatchEvent::Live)) => Ok(()),
            Ok(Some(WatchEvent::Lost { error, .. })) => Err(error.into()),
            Ok(other) => bail!("expected the first notification, got {other:?}"),
            Err(_) => bail!("no notification within {NOTIFICATION_TIMEOUT:?}"),
        }
    }

    async fn write(&self) -> anyhow::Result<()> {
        let stored = self.one.set_record(record(0, b"first")).await?;
        ensure!(
            stored == SetRecord::Stored { revision: 1 },
            "not stored as revision 1: {stored:?}"
        );
        Ok(())
    }

    /// The other device hears of the write. A stream that is lost in between begins anew by
    /// being live, which says as much.
    async fn notified(&mut self) -> anyhow::Result<()> {
        let told = async {
            while let Some(event) = self.others_watch.next_event().await {
                if matches!(event, WatchEvent::Changed(_) | WatchEvent::Live) {
                    break;
                }
            }
        };
        timeout(NOTIFICATION_TIMEOUT, told)
            .await
            .with_context(|| format!("no notification within {NOTIFICATION_TIMEOUT:?}"))
    }

    async fn list(&self) -> anyhow::Result<()> {
        let listed = self.other.list_changes(0).await?.records;
        ensure!(listed == [record(1, b"first")], "the other device lists {listed:?}");
        Ok(())
    }

    async fn conflict(&self) -> anyhow::Result<()> {
        let stale = self.other.set_record(record(0, b"second")).await?;
        ensure!(matches!(stale, SetRecord::Conflict { .. }), "a stale write was accepted");
        Ok(())
    }

    async fn lock(&self) -> anyhow::Result<()> {
        let lock = |instance| Lock {
            name: "selftest".to_owned(),
            instance,
            exclusive: true,
            ttl: Some(NOTIFICATION_TIMEOUT),
        };
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let taken = self.one.acquire_lock(&lock(one)).await?;
        ensure!(matches!(taken, AcquireLock::Acquired { .. }), "a free lock was refused");
        let refused = self.other.acquire_lock(&lock(other)).await?;
        ensure!(refused == AcquireLock::Held, "a held lock was given to a second device");
        self.one.release_lock("selftest", one).await?;
        ensure!(!self.other.is_locked("selftest").await?, "a released lock is still held");
        Ok(())
    }
}
