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
/// Calls of one kind waiting to share a round trip to Postgres; further ones are turned away.
pub const MAX_QUEUED_GROUPED_CALLS: usize = 4_096;
/// Most calls of one kind in one round trip.
pub const MAX_GROUPED_CALLS: usize = 64;
/// Round trips of one kind of call that run at once, on a pooled connection each.
pub const GROUP_TASKS: usize = 2;
/// A group waits at least this long for a connection, however long its calls waited.
pub const GROUP_LEND_GRACE: Duration = Duration::from_millis(100);
/// Longest wait to take or release a lock with others before it is done alone.
pub const GROUPED_LOCK_PATIENCE: Duration = Duration::from_millis(100);
/// Longest wait of a group for one user's locks, after which each of its calls is made alone:
/// nobody waits for strangers.
pub const GROUPED_LOCK_TIMEOUT: Duration = Duration::from_millis(50);
/// Most records of a page that is read with others.
pub const BATCHED_PAGE_RECORDS: usize = 32;
/// Most encoded bytes of such a page (64 KiB), unless its one record is larger.
pub const BATCHED_PAGE_BYTES: usize = 64 * 1024;
/// Longest wait for a row lock in Postgres; whoever holds one for longer has stopped.
pub const POSTGRES_LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time past its statement timeout that a Postgres call may stay unanswered.
pub const POSTGRES_ANSWER_GRACE: Duration = Duration::from_secs(1);
/// First and longest pause of a user whose rows other replicas keep changing.
pub const CONTENTION_BACKOFF: (Duration, Duration) =
    (Duration::from_millis(2), Duration::from_millis(50));
/// First and longest pause between attempts to reach a lost database.
pub const RECONNECT_BACKOFF: (Duration, Duration) =
    (Duration::from_millis(25), Duration::from_millis(1_000));
/// Connections on which a read or a lock is tried before the database counts as unavailable.
pub const MAX_CONNECTIONS_TRIED: u32 = 3;
/// Longest attempt to cancel a statement that nobody waits for any more.
pub const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time one statement of a transfer may take.
pub const TRANSFER_STATEMENT_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest time that lifting all revisions after a restore may take: each record is written anew.
pub const LIFT_TIMEOUT: Duration = Duration::from_secs(3_600);
/// Revisions that a restore skips unless told otherwise: more than one user writes between two
/// backups, and little beside the 2^31 revisions of a user that the Go server can count.
pub const DEFAULT_LIFT_REVISIONS: u64 = 1_000_000;
/// Most revisions that one restore may skip; browsers count exactly up to 2^53.
pub const MAX_LIFT_REVISIONS: u64 = 1_000_000_000_000;
/// Longest wait for another process that migrates, or for the writers of a table to be altered.
pub const MIGRATION_LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// Times an adoption is begun anew because it and a writer waited for each other.
pub const MAX_ADOPTION_ATTEMPTS: u32 = 5;
/// Longest time a closing store is given for the writes that wait.
pub const STORE_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most operations in one SQLite commit.
pub const MAX_SQLITE_BATCH_ROWS: usize = 128;
/// Connections that read from SQLite.
pub const SQLITE_READERS: usize = 4;
/// Most reads waiting for or using a SQLite connection; further ones are turned away.
pub const MAX_QUEUED_SQLITE_READS: usize = 4_096;
/// Longest wait for another process that writes to the same SQLite file.
pub const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for another process that migrates the same SQLite file.
pub const SQLITE_MIGRATION_TIMEOUT: Duration = Duration::from_secs(60);
/// Pages of the SQLite log that are moved into the file at once (16 MiB): fewer, larger moves
/// keep commits even.
pub const SQLITE_CHECKPOINT_PAGES: u32 = 4_096;
/// The SQLite log is cut back to this size once it is empty, in bytes.
pub const SQLITE_LOG_BYTES: u64 = 64 * 1024 * 1024;
/// Expired locks of any user that each lock request removes from SQLite, besides the user's own.
pub const SQLITE_LOCK_SWEEP_ROWS: u32 = 16;
/// Longest time that closing SQLite waits for what was queued.
pub const SQLITE_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time of one read of a transfer between stores.
pub const TRANSFER_READ_TIMEOUT: Duration = Duration::from_secs(60);

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
/// request head is complete; the header of the PROXY protocol has as long before that.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest header of the PROXY protocol after its first 16 bytes: addresses and extensions.
pub const MAX_PROXY_HEADER_BYTES: usize = 4 * 1024;
/// Open connections to the admin port.
pub const MAX_ADMIN_CONNECTIONS: usize = 64;
/// Pause after the operating system refused a connection for want of resources.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// Files and sockets that are open besides those of callers: the store's, the feed's, the log's.
pub const RESERVED_DESCRIPTORS: u64 = 128;
/// Time between two warnings that connections cannot be accepted.
pub const ACCEPT_WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// Longest time a unary call may take when its caller set no deadline.
pub const UNARY_TIMEOUT: Duration = Duration::from_secs(10);

// Process: stopping.

/// Tasks get this long to end by themselves once everything else is drained.
pub const TASK_JOIN_TIMEOUT: Duration = Duration::from_secs(5);

// Service: rates and streams.

/// Requests a second from one client address or IPv6 /64.
pub const RATE_LIMIT_PER_ADDRESS: u64 = 10_000;
/// Requests a second of one user.
pub const RATE_LIMIT_PER_USER: u64 = 2_000;
/// Largest rate that may be set, in requests a second.
pub const MAX_RATE_LIMIT: u64 = 1_000_000;
/// Time whose requests may come all at once after a pause that long.
pub const RATE_LIMIT_BURST: Duration = Duration::from_secs(30);
/// Callers whose rate is remembered, of addresses and of users each (16 bytes a caller).
pub const RATE_LIMIT_BUCKETS: usize = 64 * 1024;
/// Open ListenChanges streams of one replica.
pub const MAX_STREAMS: u64 = 50_000;
/// Open ListenChanges streams of one user on one replica.
pub const MAX_STREAMS_PER_USER: u64 = 32;

// Service: nudges after cut pages.

/// Reports of cut pages, and nudges planned for later, that may wait.
pub const MAX_QUEUED_NUDGES: usize = 10_000;
/// Cut pages remembered to tell a client that moves on from one that is stuck.
pub const MAX_TRACKED_CUT_PAGES: usize = 100_000;
/// How long a cut page is remembered after it was last listed.
pub const NUDGE_MEMORY: Duration = Duration::from_secs(1_800);
/// Pause before a client that listed the same page twice is woken.
pub const NUDGE_FIRST_DELAY: Duration = Duration::from_secs(1);
/// Longest pause before such a client is woken.
pub const NUDGE_MAX_DELAY: Duration = Duration::from_secs(600);

// Notifications across replicas.

/// Users whose announcements to other replicas may wait; those of further users are left to the
/// comparison of heads.
pub const MAX_QUEUED_ANNOUNCEMENTS: usize = 65_536;
/// Most users announced in one transaction.
pub const MAX_ANNOUNCEMENTS_PER_NOTIFY: usize = 1_000;
/// Largest payload of one NOTIFY, in bytes of text; Postgres takes less than 8,000.
pub const MAX_NOTIFY_PAYLOAD_BYTES: usize = 7_900;
/// Longest `client_id` told to other replicas, in bytes; they leave a longer one out.
pub const MAX_ANNOUNCED_CLIENT_ID_BYTES: usize = 64;
/// Shortest time between the beginnings of two announcing transactions of a replica.
pub const NOTIFY_INTERVAL: Duration = Duration::from_millis(5);
/// Longest time an announcing transaction may take.
pub const NOTIFY_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time that a stopping replica spends on its last announcements.
pub const NOTIFY_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Time between two proofs that announcements are heard.
pub const LISTEN_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
/// Longest wait for a LISTEN connection to answer, and for an announcement of our own to be heard.
pub const LISTEN_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// First and longest pause between attempts to make the LISTEN connection anew.
pub const LISTEN_BACKOFF: (Duration, Duration) =
    (Duration::from_millis(50), Duration::from_secs(2));
/// A LISTEN connection over which nothing is heard any more is given up within this time: a
/// heartbeat, its proof and its answer, and some more.
pub const LISTEN_LOSS_FOUND_WITHIN: Duration = Duration::from_secs(10);
/// Time until LISTEN is tried again where it is in force and yet nothing is heard.
pub const LISTEN_RETEST_INTERVAL: Duration = Duration::from_secs(60);
/// Shortest and longest time between two comparisons of heads. With [`RECONCILE_SECOND_LOOK`] and
/// the reading of heads a lost announcement is made up for within five seconds.
pub const RECONCILE_INTERVAL: (Duration, Duration) =
    (Duration::from_millis(3_200), Duration::from_millis(4_000));
/// The same while nothing is heard of other replicas: then a comparison is all there is.
pub const RECONCILE_DEAF_INTERVAL: (Duration, Duration) =
    (Duration::from_millis(1_000), Duration::from_millis(1_400));
/// How long a head may be ahead of what was announced before the announcement counts as lost: one
/// on its way names its writer, a comparison of heads cannot.
pub const RECONCILE_SECOND_LOOK: Duration = Duration::from_millis(300);
/// Users whose heads are read at once.
pub const RECONCILE_CHUNK_USERS: usize = 1_000;
/// Longest time of one such reading.
pub const RECONCILE_READ_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after such a reading failed.
pub const RECONCILE_RETRY_PAUSE: Duration = Duration::from_millis(500);

/// How long a nudge stands in the database for replicas that did not hear it.
pub const NUDGE_LOG_TIME: Duration = Duration::from_secs(600);
/// A nudge may come to stand there this much later than the time it bears.
pub const NUDGE_LOG_MARGIN: Duration = Duration::from_secs(3);
/// Most nudges read there at once, 24 bytes each; the newest count.
pub const MAX_MISSED_NUDGES: usize = 50_000;

// Server: connections that stay.

/// Silence on an HTTP/2 connection after which the server asks whether the peer is there. Native
/// clients ask every five seconds themselves.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long the peer may take to answer that.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// A peer that takes nothing of what it is sent for this long loses the stream, or where its socket
/// takes nothing the connection.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest piece of a reply that is handed to HTTP/2 at once, in bytes: so much of a reply to a
/// peer that does not read escapes the watch over it.
pub const MAX_BODY_PIECE_BYTES: usize = 64 * 1024;
/// Buffer of an HTTP/1 connection, in bytes; bounds a request's head.
pub const MAX_HTTP1_BUFFER_BYTES: usize = 64 * 1024;

// Telemetry.

/// Finished spans that may wait for the trace collector; further ones are dropped.
pub const MAX_QUEUED_SPANS: usize = 4_096;
/// Time between two messages to the trace collector.
pub const TRACE_EXPORT_INTERVAL: Duration = Duration::from_secs(2);
/// Longest wait for a connection to the trace collector.
pub const TRACE_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the trace collector to take one message.
pub const TRACE_EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait at the end of the process for the last spans to be taken.
pub const TRACE_FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest request id taken from a caller, in bytes.
pub const MAX_REQUEST_ID_BYTES: usize = 64;
/// Largest body of a request to the admin port, in bytes.
pub const MAX_ADMIN_BODY_BYTES: usize = 4 * 1024;
/// Longest time that the admin port waits for all checks of `/readyz?verbose` and `/statusz`.
pub const ADMIN_CHECK_TIMEOUT: Duration = Duration::from_secs(2);

// Client library: defaults, and bounds of what it does by itself.

/// Longest time a client gives one call, all its attempts together.
pub const CLIENT_CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time a client waits for a connection to be made.
pub const CLIENT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Most attempts at one call, the first included.
pub const CLIENT_CALL_ATTEMPTS: u32 = 4;
/// Times that a call is made again which its connection refused unsent.
pub const CLIENT_UNSENT_RETRIES: u32 = 3;
/// Upper end of the pause before a client's second attempt; doubles with each further one.
pub const CLIENT_RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause before a client's next attempt at a call.
pub const CLIENT_MAX_RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Upper end of the pause before a client subscribes again; doubles with each failure.
pub const CLIENT_RESUBSCRIBE_PAUSE: Duration = Duration::from_secs(1);
/// Life of a subscription after which the pauses before the next ones start over.
pub const CLIENT_SUBSCRIPTION_SETTLES: Duration = Duration::from_secs(5);
/// Longest pause before a client subscribes again.
pub const CLIENT_MAX_RESUBSCRIBE_PAUSE: Duration = Duration::from_secs(30);
/// Silence on a connection after which a client asks whether the server is still there.
pub const CLIENT_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// Longest wait for the answer to that question.
pub const CLIENT_KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

// Server: opening the store.

/// Pause before the second attempt to prepare a database at start; doubles with each further one.
pub const STORE_OPEN_FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause between two such attempts.
pub const STORE_OPEN_MAX_PAUSE: Duration = Duration::from_secs(5);

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
