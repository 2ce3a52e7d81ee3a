//! Every limit of the protocol and of the process, by name and with its unit.
//!
//! The protocol's limits are fixed by the clients in the field; the process's own limits are the
//! defaults of settings in [`crate::config`] wherever an operator may need another value.

use std::time::Duration;

// Protocol: what a request may hold.

/// Longest record id, in bytes. Shipped clients use exactly this many.
pub const MAX_RECORD_ID_BYTES: usize = 64;
/// Largest record data, in bytes.
pub const MAX_RECORD_DATA_BYTES: usize = 65_536;
/// Longest schema version, in bytes.
pub const MAX_SCHEMA_VERSION_BYTES: usize = 15;
/// Longest lock name, in bytes. The shortest is one byte.
pub const MAX_LOCK_NAME_BYTES: usize = 256;
/// Longest text taken as an instance id, in bytes; the longest UUID notation has 45.
pub const MAX_INSTANCE_ID_BYTES: usize = 64;
/// Longest `client_id` kept for notifications, in bytes; a longer one counts as absent.
pub const MAX_CLIENT_ID_BYTES: usize = 256;
/// Length of a signature in its text form, in bytes: 65 bytes in base 32.
pub const SIGNATURE_TEXT_BYTES: usize = 104;
/// How far a request's time may lie from the server's, either way, in seconds.
pub const MAX_CLOCK_SKEW_SECONDS: u64 = 300;
/// Largest message a client may send, in bytes.
pub const MAX_REQUEST_MESSAGE_BYTES: usize = 256 * 1024;

// Protocol: pages of ListChanges.

/// Most records on one page.
pub const MAX_PAGE_RECORDS: usize = 1_000;
/// Most encoded bytes on one page (3.5 MiB): clients refuse messages over 4 MiB.
pub const MAX_PAGE_BYTES: usize = 3_670_016;
/// Encoded bytes a record may take on a page beyond its texts and data: tags and lengths of the
/// record and its four fields, and a ten-byte revision.
pub const RECORD_OVERHEAD_BYTES: usize = 28;

// Protocol: locks.

/// Time to live of a lock when the request names none, in seconds.
pub const DEFAULT_LOCK_TTL_SECONDS: u32 = 30;
/// Longest time to live of a lock, in seconds; more is cut to this.
pub const MAX_LOCK_TTL_SECONDS: u32 = 300;

// Authentication.

/// Largest API key, in bytes of base 64 text; such a key is an X.509 certificate.
pub const MAX_API_KEY_TEXT_BYTES: usize = 12 * 1024;
/// Most verified API keys remembered.
pub const MAX_CACHED_API_KEYS: usize = 10_000;
/// Largest revocation list, in bytes.
pub const MAX_REVOCATION_LIST_BYTES: usize = 16 * 1024 * 1024;
/// Longest wait for a revocation list.
pub const REVOCATION_FETCH_TIMEOUT: Duration = Duration::from_secs(15);
/// Most redirects followed on the way to a revocation list.
pub const MAX_REVOCATION_REDIRECTS: usize = 3;
/// Pause after the first failure while no revocation list was ever fetched; doubles with each
/// further one up to the refresh time.
pub const REVOCATION_FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest time until the API key of an open stream is looked at again.
pub const API_KEY_RECHECK_INTERVAL: Duration = Duration::from_secs(300);

// Store: write batches.

/// Most requests waiting for a writer, over all users; further ones are turned away.
pub const MAX_QUEUED_WRITES: usize = 4_096;
/// Most record writes in one Postgres batch.
pub const MAX_POSTGRES_BATCH_ROWS: usize = 32;
/// Most data bytes in one Postgres batch.
pub const MAX_POSTGRES_BATCH_BYTES: usize = 1024 * 1024;
/// Most operations in one SQLite commit.
pub const MAX_SQLITE_BATCH_ROWS: usize = 128;
/// Connections that read from SQLite.
pub const SQLITE_READERS: usize = 4;

// Server: connections.

/// Largest header list of a request, in bytes; a certificate as bearer fits.
pub const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
/// HTTP/2 flow-control window of a stream and of a connection, in bytes.
pub const HTTP2_WINDOW_BYTES: u32 = 1024 * 1024;
/// Streams that one HTTP/2 connection may hold open.
pub const MAX_CONCURRENT_STREAMS: u32 = 100;
/// Streams reset by the peer that may wait to be accepted (rapid reset guard).
pub const MAX_PENDING_ACCEPT_RESET_STREAMS: usize = 100;
/// Streams reset by the server because of the peer's faults before the connection is cut.
pub const MAX_LOCAL_ERROR_RESET_STREAMS: usize = 1_024;
/// Longest silence before the first byte of a connection, and longest time until its preface or
/// request head is complete.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after the operating system refused a connection for want of resources.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// Longest time a unary call may take when its caller set no deadline.
pub const UNARY_TIMEOUT: Duration = Duration::from_secs(10);

// Process: stopping.

/// Tasks get this long to end by themselves once everything else is drained.
pub const TASK_JOIN_TIMEOUT: Duration = Duration::from_secs(5);

// Load generator.

/// Longest wait for a connection to a server under load.
pub const BENCH_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most requests signed ahead for one round, about 0.5 KiB each.
pub const BENCH_MAX_ROUND_REQUESTS: u64 = 200_000;
/// Most calls the load generator keeps running at once; each is a task.
pub const BENCH_MAX_IN_FLIGHT: usize = 100_000;
/// Most kinds of error told apart in a report; the rest is counted together.
pub const BENCH_MAX_ERROR_KINDS: usize = 32;
/// Longest error text in a report, in characters.
pub const BENCH_MAX_ERROR_TEXT_CHARS: usize = 120;
/// Most notifications that one listen run may expect, 32 bytes each until they are counted.
pub const BENCH_MAX_DELIVERIES: u64 = 50_000_000;
/// Streams of a listen run opened at the same time.
pub const BENCH_STREAMS_OPENING: usize = 64;
/// Longest time until all streams of a listen run must be live.
pub const BENCH_STREAMS_OPEN_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause before a stream that failed is opened again, at least; doubled at most by chance.
pub const BENCH_STREAM_RETRY_DELAY: Duration = Duration::from_millis(500);
/// Attempts at each record that must be there before a run begins.
pub const BENCH_PRELOAD_ATTEMPTS: u32 = 100;
