//! Uses the service as an app does.

use std::{
    fs::File,
    io::{self, Read, Write as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use futures_util::TryStreamExt as _;
use uuid::Uuid;

use super::{Exit, block_on, output};
use crate::{
    client::{AcquireLock, Client, Error, Lock, Options, Record, SetRecord, Signer},
    config::{ClientArgs, ClientConfig, KeySource},
    limits::MAX_RECORD_DATA_BYTES,
};

mod key;
mod render;
mod selftest;
mod watch;

use render::Style;

pub(super) const AFTER_HELP: &str = "\
Examples:
  data-sync client keygen                         make a user, once
  data-sync client set note-1 'hello'             store a record, whatever is there now
  data-sync client set note-1 'hi' --revision 1   store it only over revision 1
  data-sync client set photo --file photo.bin     store a file (up to 64 KiB)
  data-sync client list --since 5 --json          what changed after revision 5
  data-sync client watch                          changes as they happen, until Ctrl-C
  data-sync client lock sweep --ttl 1m            take a lock
  data-sync client selftest                       try everything with a new user
  DATA_SYNC_URL=https://sync.example.org data-sync client list

Exit status:
  0   success
  1   failure, a conflict, or a lock that another instance holds
  64  a command line or settings that cannot be used; every problem is listed";

/// Tries to replace a record that others keep changing.
const MAX_SET_ATTEMPTS: u32 = 5;

#[derive(Debug, Args)]
pub(super) struct ClientCommand {
    #[command(subcommand)]
    action: Action,

    /// Write one JSON object a line.
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    settings: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a user: write a new secret key to the key file.
    Keygen,
    /// Store a record.
    Set(SetArgs),
    /// List records that changed after a revision.
    List(ListArgs),
    /// Show changes as they happen, until Ctrl-C.
    Watch(watch::WatchArgs),
    /// Take a lock.
    Lock(LockArgs),
    /// Give a lock back.
    Unlock(UnlockArgs),
    /// Tell whether any instance holds a lock.
    Locked(LockedArgs),
    /// Play two devices of a new user: write, notification, list, conflict, lock.
    Selftest,
}

#[derive(Debug, Args)]
struct SetArgs {
    /// Name of the record, at most 64 bytes.
    id: String,

    /// What to store, as text.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    data: Option<String>,

    /// Store the content of this file instead; - is standard input.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// Store only over this revision; 0 where there is no record yet
    /// [default: the one the server holds].
    #[arg(long, value_name = "REVISION")]
    revision: Option<u64>,

    /// Version of the data's form, told to the apps that read it.
    #[arg(long, value_name = "VERSION", default_value = "1.0.0")]
    schema_version: String,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// List what changed after this revision.
    #[arg(long, value_name = "REVISION", default_value_t = 0)]
    since: u64,

    /// Show all of the data, however long.
    #[arg(long)]
    full: bool,
}

#[derive(Debug, Args)]
struct LockArgs {
    /// Name of the lock, 1 to 256 bytes.
    name: String,

    /// Tolerate other instances that share it.
    #[arg(long)]
    shared: bool,

    /// Time until it expires by itself, from 1s to 5m [default: the server's, 30s].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,

    /// The holder; the same one may take the lock again [default: a new one].
    #[arg(long, value_name = "UUID")]
    instance: Option<Uuid>,
}

#[derive(Debug, Args)]
struct UnlockArgs {
    /// Name of the lock.
    name: String,

    /// The holder, as `lock` printed it.
    #[arg(long, value_name = "UUID")]
    instance: Uuid,
}

#[derive(Debug, Args)]
struct LockedArgs {
    /// Name of the lock.
    name: String,
}

pub(super) fn run(command: &ClientCommand) -> anyhow::Result<Exit> {
    let config = command.settings.resolve()?;
    if let Action::Keygen = command.action {
        return keygen(&config, command.json);
    }
    let style = Style { json: command.json, full: false };
    if let Action::Selftest = command.action {
        return block_on(selftest::run(&config, command.json)).map_err(explain);
    }
    block_on(async {
        let client = connect_as(&config, key::read(&config.key)?).await?;
        let outcome = match &command.action {
            Action::Keygen | Action::Selftest => Ok(Exit::SUCCESS),
            Action::Set(args) => set(&client, args, style).await,
            Action::List(args) => list(&client, args, style).await,
            Action::Watch(args) => watch::run(&client, args, style).await,
            Action::Lock(args) => lock(&client, args, style).await,
            Action::Unlock(args) => unlock(&client, args, style).await,
            Action::Locked(args) => locked(&client, args, style).await,
        };
        outcome.map_err(explain)
    })
}

/// Names the fields that the server finds fault with.
fn explain(error: anyhow::Error) -> anyhow::Error {
    let details = error.downcast_ref::<Error>().map(Error::details).unwrap_or_default();
    let violations = details.bad_request().map(|request| request.field_violations.as_slice());
    let fields = violations.unwrap_or_default().iter().map(|violation| {
        let text = format!("{} {}", violation.field, violation.description);
        output::printable(&text).into_owned()
    });
    let fields: Vec<String> = fields.collect();
    if fields.is_empty() { error } else { error.context(fields.join(", ")) }
}

fn keygen(config: &ClientConfig, json: bool) -> anyhow::Result<Exit> {
    let KeySource::File(path) = &config.key else {
        bail!("DATA_SYNC_KEY is set, so a key file would not be used; unset it first");
    };
    let user = key::make(path)?.user_id();
    let mut out = io::stdout();
    if json {
        writeln!(out, "{}", serde_json::json!({ "key_file": path, "user_id": user }))?;
    } else {
        writeln!(out, "user {user}\nkey  {}", path.display())?;
        writeln!(
            out,
            "Keep a copy of the key: whoever has it is the user, and nobody can make it again."
        )?;
    }
    Ok(Exit::SUCCESS)
}

async fn connect_as(config: &ClientConfig, signer: Signer) -> anyhow::Result<Client> {
    let ca_pem = config
        .ca_file
        .as_ref()
        .map(|path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display())));
    let mut options = Options {
        api_key: config.api_key.as_ref().map(|key| key.expose().to_owned()),
        timeout: config.timeout,
        ca_pem: ca_pem.transpose()?,
        ..Options::default()
    };
    if let Some(client_id) = &config.client_id {
        options.client_id = Some(client_id.clone());
    }
    Client::connect(&config.url, signer, options).await.map_err(|error| {
        let hint = "is the server running, and is DATA_SYNC_URL its gRPC port?";
        if let Error::Connect { .. } = error {
            anyhow::Error::from(error).context(hint)
        } else {
            error.into()
        }
    })
}

async fn set(client: &Client, args: &SetArgs, style: Style) -> anyhow::Result<Exit> {
    let mut record = Record {
        id: args.id.clone(),
        revision: args.revision.unwrap_or(0),
        schema_version: args.schema_version.clone(),
        data: read_data(args)?.into(),
    };
    let mut attempts = 1;
    let revision = loop {
        let current = match client.set_record(record.clone()).await? {
            SetRecord::Stored { revision } => break revision,
            SetRecord::Conflict { current } => current,
        };
        let held = match current {
            Some(current) => current.revision,
            None => current_revision(client, &args.id).await?,
        };
        if args.revision.is_some() || attempts == MAX_SET_ATTEMPTS {
            bail!(
                "conflict: the server holds {:?} at revision {held}; look at it with \
                 `data-sync client list`, then set it with --revision {held}",
                args.id
            );
        }
        record.revision = held;
        attempts += 1;
    };
    let mut out = io::stdout();
    if style.json {
        writeln!(out, "{}", serde_json::json!({ "id": args.id, "revision": revision }))?;
    } else {
        let id = output::printable(&args.id);
        writeln!(out, "stored {id} as revision {revision}")?;
    }
    Ok(Exit::SUCCESS)
}

/// The revision of a record, for servers that do not send it with a conflict.
async fn current_revision(client: &Client, id: &str) -> Result<u64, Error> {
    let mut pages = std::pin::pin!(client.changes_since(0));
    while let Some(page) = pages.try_next().await? {
        if let Some(record) = page.records.iter().find(|record| record.id == id) {
            return Ok(record.revision);
        }
    }
    Err(Error::Protocol("a conflict about a record that is not listed"))
}

fn read_data(args: &SetArgs) -> anyhow::Result<Vec<u8>> {
    let Some(path) = &args.file else {
        return Ok(args.data.clone().unwrap_or_default().into_bytes());
    };
    let name = path.display();
    let source: Box<dyn Read> = if path.as_os_str() == "-" {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).with_context(|| format!("cannot open {name}"))?)
    };
    let mut data = Vec::new();
    // One byte more than is allowed tells whether there is more.
    let limit = MAX_RECORD_DATA_BYTES as u64 + 1;
    source.take(limit).read_to_end(&mut data).with_context(|| format!("cannot read {name}"))?;
    if data.len() > MAX_RECORD_DATA_BYTES {
        bail!("{name} is larger than the {MAX_RECORD_DATA_BYTES} bytes a record may hold");
    }
    Ok(data)
}

async fn list(client: &Client, args: &ListArgs, style: Style) -> anyhow::Result<Exit> {
    let style = Style { full: args.full, ..style };
    let mut pages = std::pin::pin!(client.changes_since(args.since));
    let mut heading = true;
    while let Some(page) = pages.try_next().await? {
        let text = render::records(&page.records, style, heading)?;
        io::stdout().write_all(text.as_bytes())?;
        heading = false;
    }
    Ok(Exit::SUCCESS)
}

async fn lock(client: &Client, args: &LockArgs, style: Style) -> anyhow::Result<Exit> {
    let lock = Lock {
        name: args.name.clone(),
        instance: args.instance.unwrap_or_else(Uuid::new_v4),
        exclusive: !args.shared,
        ttl: args.ttl,
    };
    let AcquireLock::Acquired { fencing_token, expires_at_ms } = client.acquire_lock(&lock).await?
    else {
        bail!("another instance holds {:?}; it frees itself when it expires", args.name);
    };
    let Lock { name, instance, .. } = lock;
    let mut out = io::stdout();
    if style.json {
        let lock = serde_json::json!({
            "name": name,
            "instance": instance.to_string(),
            "fencing_token": fencing_token,
            "expires_at_ms": expires_at_ms,
        });
        writeln!(out, "{lock}")?;
    } else {
        let name = output::printable(&name);
        writeln!(out, "locked {name}, fencing token {fencing_token}")?;
        writeln!(out, "free it with: data-sync client unlock '{name}' --instance {instance}")?;
    }
    Ok(Exit::SUCCESS)
}

async fn unlock(client: &Client, args: &UnlockArgs, style: Style) -> anyhow::Result<Exit> {
    client.release_lock(&args.name, args.instance).await?;
    let mut out = io::stdout();
    if style.json {
        writeln!(
            out,
            "{}",
            serde_json::json!({ "name": args.name, "instance": args.instance.to_string() })
        )?;
    } else {
        writeln!(out, "{} is not held by {}", output::printable(&args.name), args.instance)?;
    }
    Ok(Exit::SUCCESS)
}

async fn locked(client: &Client, args: &LockedArgs, style: Style) -> anyhow::Result<Exit> {
    let locked = client.is_locked(&args.name).await?;
    let mut out = io::stdout();
    if style.json {
        writeln!(out, "{}", serde_json::json!({ "name": args.name, "locked": locked }))?;
    } else {
        writeln!(out, "{}", if locked { "locked" } else { "free" })?;
    }
    Ok(Exit::SUCCESS)
}
