//! Shows changes as they happen.

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::Args;
use futures_util::TryStreamExt as _;

use super::{
    Exit,
    render::{self, Style},
};
use crate::client::{Client, Error, WatchEvent};

/// A revision beyond every head: lists nothing but tells the head.
const BEYOND_EVERY_HEAD: u64 = i64::MAX as u64;

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// Begin with what changed after this revision [default: only what changes from now on].
    #[arg(long, value_name = "REVISION")]
    since: Option<u64>,

    /// Show only the notifications, without fetching what changed.
    #[arg(long, conflicts_with = "since")]
    no_list: bool,

    /// Show all of the data, however long.
    #[arg(long)]
    full: bool,
}

pub(super) async fn run(client: &Client, args: &WatchArgs, style: Style) -> anyhow::Result<Exit> {
    let style = Style { full: args.full, ..style };
    tokio::select! {
        ended = watch(client, args, style) => ended,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("cannot listen for Ctrl-C")?;
            Ok(Exit::SUCCESS)
        }
    }
}

async fn watch(client: &Client, args: &WatchArgs, style: Style) -> anyhow::Result<Exit> {
    // The head is read before the subscription is live, so that no change falls between them.
    let mut seen = match args.since {
        Some(revision) => revision,
        None if args.no_list => 0,
        None => head(client).await?,
    };
    let mut events = client.watch();
    while let Some(event) = events.next_event().await {
        io::stdout().write_all(render::event(&event, style)?.as_bytes())?;
        if args.no_list || matches!(event, WatchEvent::Lost { .. }) {
            continue;
        }
        match list(client, &mut seen, style).await {
            Ok(()) => {}
            // Made good when the next event comes, be it the subscription's return.
            Err(error) if error.is::<Error>() => {
                writeln!(io::stderr(), "data-sync: warning: cannot list changes: {error:#}")?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Exit::SUCCESS)
}

/// Prints what changed after revision `seen`, and raises it.
async fn list(client: &Client, seen: &mut u64, style: Style) -> anyhow::Result<()> {
    let mut pages = std::pin::pin!(client.changes_since(*seen));
    while let Some(page) = pages.try_next().await? {
        io::stdout().write_all(render::records(&page.records, style, false)?.as_bytes())?;
        *seen = page.records.last().map_or(*seen, |record| record.revision.max(*seen));
    }
    Ok(())
}

async fn head(client: &Client) -> Result<u64, Error> {
    let page = client.list_changes(BEYOND_EVERY_HEAD).await?;
    if page.head_revision > 0 {
        return Ok(page.head_revision);
    }
    // A user without records, or a server that does not tell the head.
    let mut pages = std::pin::pin!(client.changes_since(0));
    let mut head = 0;
    while let Some(page) = pages.try_next().await? {
        head = page.records.last().map_or(head, |record| record.revision.max(head));
    }
    Ok(head)
}
