//! Every metric by name, once. `docs/metrics.md` is generated from here.
//!
//! Handles are resolved at start-up, so that counting on the hot path is one atomic addition.
//! No label ever holds a user, a key or anything else a caller chooses.

use prometheus::{
    Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder,
};

mod calls;
mod inventory;
mod registrar;
mod runtime;

pub use calls::CallMetrics;
use registrar::{Entry, Registrar};

use super::rpc::{RPCS, Rpc};
use crate::store::Quota;

/// Buckets of server latencies, in seconds.
const LATENCY_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// Buckets of batch sizes, in rows.
const BATCH_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// All metrics of one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    inventory: Vec<Entry>,
    /// The `grpc_server_*` family, resolved for each entry of [`RPCS`].
    calls: Vec<CallMetrics>,

    /// `grpc_server_started_total{grpc_type,grpc_service,grpc_method}`
    pub rpc_started: IntCounterVec,
    /// `grpc_server_handled_total{grpc_type,grpc_service,grpc_method,grpc_code}`
    pub rpc_handled: IntCounterVec,
    /// `grpc_server_handling_seconds{grpc_type,grpc_service,grpc_method}`, unary calls only
    pub rpc_seconds: HistogramVec,
    /// `grpc_server_msg_received_total{grpc_type,grpc_service,grpc_method}`
    pub rpc_messages_received: IntCounterVec,
    /// `grpc_server_msg_sent_total{grpc_type,grpc_service,grpc_method}`
    pub rpc_messages_sent: IntCounterVec,
    /// `data_sync_panics_total`
    pub panics: IntCounter,

    /// `data_sync_connections{listener}`
    pub connections: IntGaugeVec,
    /// `data_sync_connections_refused_total{listener,reason}`
    pub connections_refused: IntCounterVec,
    /// `data_sync_active_streams`
    pub active_streams: IntGauge,
    /// `data_sync_streams_ended_total{reason}`
    pub streams_ended: IntCounterVec,
    /// `data_sync_notifications_published_total`
    pub notifications_published: IntCounter,
    /// `data_sync_notifications_delivered_total`
    pub notifications_delivered: IntCounter,
    /// `data_sync_notifications_coalesced_total`
    pub notifications_coalesced: IntCounter,
    /// `data_sync_notifications_dropped_total`
    pub notifications_dropped: IntCounter,
    /// `data_sync_notification_delay_seconds`
    pub notification_delay_seconds: Histogram,
    /// `data_sync_nudges_total`
    pub nudges: IntCounter,
    /// `data_sync_record_conflicts_total`
    pub record_conflicts: IntCounter,
    /// `data_sync_record_repeats_total`
    pub record_repeats: IntCounter,
    /// `data_sync_locks_denied_total`
    pub locks_denied: IntCounter,
    /// `data_sync_quota_exceeded_total{quota}`
    pub quota_exceeded: IntCounterVec,
    /// `data_sync_rate_limited_total{scope}`
    pub rate_limited: IntCounterVec,

    /// `data_sync_listener_connected`
    pub listener_connected: IntGauge,
    /// `data_sync_listener_reconnects_total`
    pub listener_reconnects: IntCounter,
    /// `data_sync_resyncs_total{reason}`
    pub resyncs: IntCounterVec,
    /// `data_sync_reconciled_users_total`
    pub reconciled_users: IntCounter,
    /// `data_sync_missed_nudges_total`
    pub missed_nudges: IntCounter,

    /// `data_sync_store_operation_seconds{op,outcome}`
    pub store_seconds: HistogramVec,
    /// `data_sync_store_retries_total{op,reason}`
    pub store_retries: IntCounterVec,
    /// `data_sync_store_batch_rows`
    pub store_batch_rows: Histogram,
    /// `data_sync_store_queue_length`
    pub store_queue_length: IntGauge,
    /// `data_sync_pool_connections{state}`
    pub pool_connections: IntGaugeVec,
    /// `data_sync_pool_wait_seconds`
    pub pool_wait_seconds: Histogram,
    /// `data_sync_schema_version`
    pub schema_version: IntGauge,
    /// `data_sync_schema_latest_version`
    pub schema_latest_version: IntGauge,

    /// `data_sync_auth_failures_total{reason}`
    pub auth_failures: IntCounterVec,
    /// `data_sync_revocation_list_entries`
    pub revocation_list_entries: IntGauge,
    /// `data_sync_revocation_list_last_success_timestamp_seconds`
    pub revocation_list_last_success: Gauge,
    /// `data_sync_revocation_fetch_failures_total`
    pub revocation_fetch_failures: IntCounter,

    /// `data_sync_build_info{version,revision}`, always 1
    pub build_info: IntGaugeVec,
    /// `data_sync_ready`
    pub ready: IntGauge,
    /// `data_sync_draining`
    pub draining: IntGauge,
}

/// Values of `listener`.
const LISTENERS: &[&str] = &["grpc", "web", "admin"];
/// Why a connection is refused, or ended by a fault.
const CONNECTION_REFUSALS: &[&str] =
    &["total_limit", "address_limit", "proxy_header", "failed", "accept"];
/// Why a ListenChanges stream ends.
const STREAM_ENDS: &[&str] =
    &["client_gone", "max_age", "draining", "api_key", "stalled", "displaced"];
/// What may be used up.
const QUOTAS: &[&str] = &[Quota::Records.as_str(), Quota::Bytes.as_str(), Quota::Locks.as_str()];
/// Whose rate is limited.
const RATE_SCOPES: &[&str] = &["ip", "user"];
/// What makes a replica compare heads.
const RESYNC_REASONS: &[&str] = &["periodic", "connected", "retry"];
/// Why a caller is not who it says.
const AUTH_FAILURES: &[&str] = &[
    "api_key_missing",
    "api_key_scheme",
    "api_key_too_long",
    "api_key_encoding",
    "api_key_malformed",
    "api_key_unknown_authority",
    "api_key_signature",
    "api_key_algorithm",
    "api_key_usage",
    "api_key_critical_extension",
    "api_key_policy",
    "api_key_names",
    "api_key_not_yet_valid",
    "api_key_expired",
    "api_key_revoked",
    "api_key_revocation_unknown",
    "signature_malformed",
    "signature_unrecoverable",
];
/// What is tried again, and why.
const STORE_RETRIES: &[(&str, &[&str])] = &[
    ("set_record", &["serialization", "deadlock", "lock_timeout", "split", "connection"]),
    ("set_lock", &["serialization", "deadlock", "lock_timeout", "split", "connection"]),
    ("batch", &["split"]),
];
/// What a pooled connection does.
const POOL_STATES: &[&str] = &["idle", "used"];

const RPC: &[&str] = &["grpc_type", "grpc_service", "grpc_method"];
const RPC_CODE: &[&str] = &["grpc_type", "grpc_service", "grpc_method", "grpc_code"];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers every metric in a registry of its own.
    #[must_use]
    #[rustfmt::skip]
    pub fn new() -> Self {
        let r = Registrar::new();
        let mut metrics = Self {
            rpc_started: r.counters("grpc_server_started_total", "RPCs started.", RPC),
            rpc_handled: r.counters("grpc_server_handled_total", "RPCs completed, by status code.", RPC_CODE),
            rpc_seconds: r.histograms("grpc_server_handling_seconds", "Time to answer unary RPCs, in seconds.", RPC),
            rpc_messages_received: r.counters("grpc_server_msg_received_total", "Messages received.", RPC),
            rpc_messages_sent: r.counters("grpc_server_msg_sent_total", "Messages sent.", RPC),
            panics: r.counter("data_sync_panics_total", "Calls answered INTERNAL because their handler panicked."),

            connections: r.gauges("data_sync_connections", "Open connections.", &["listener"]),
            connections_refused: r.counters("data_sync_connections_refused_total", "Connections refused, or ended by a fault.", &["listener", "reason"]),
            active_streams: r.gauge("data_sync_active_streams", "Open ListenChanges streams."),
            streams_ended: r.counters("data_sync_streams_ended_total", "ListenChanges streams ended, by cause.", &["reason"]),
            notifications_published: r.counter("data_sync_notifications_published_total", "Committed changes announced by this replica."),
            notifications_delivered: r.counter("data_sync_notifications_delivered_total", "Notifications sent on streams of this replica."),
            notifications_coalesced: r.counter("data_sync_notifications_coalesced_total", "Changes that shared a notification with another."),
            notifications_dropped: r.counter("data_sync_notifications_dropped_total", "Announcements to other replicas given up because too many waited; a comparison of heads makes up for them."),
            notification_delay_seconds: r.histogram("data_sync_notification_delay_seconds", "Time from the commit of the newest write that a notification covers until a stream took it, in seconds; unknown for those that a comparison of heads found.", LATENCY_BUCKETS),
            nudges: r.counter("data_sync_nudges_total", "Empty notifications sent because a page was cut."),
            record_conflicts: r.counter("data_sync_record_conflicts_total", "Writes answered CONFLICT."),
            record_repeats: r.counter("data_sync_record_repeats_total", "Writes that had been stored before and were answered SUCCESS again."),
            locks_denied: r.counter("data_sync_locks_denied_total", "SetLock calls refused because another instance holds the lock."),
            quota_exceeded: r.counters("data_sync_quota_exceeded_total", "Requests refused because of a quota.", &["quota"]),
            rate_limited: r.counters("data_sync_rate_limited_total", "Requests refused because of a rate.", &["scope"]),

            listener_connected: r.gauge("data_sync_listener_connected", "1 while changes of other replicas are heard at once (with SQLite there are none), 0 while only a comparison of heads finds them."),
            listener_reconnects: r.counter("data_sync_listener_reconnects_total", "Times the LISTEN connection was made anew."),
            resyncs: r.counters("data_sync_resyncs_total", "Comparisons of heads with what streams were told.", &["reason"]),
            reconciled_users: r.counter("data_sync_reconciled_users_total", "Users whose streams were woken by a comparison of heads."),
            missed_nudges: r.counter("data_sync_missed_nudges_total", "Users whose streams were woken for a nudge that was not heard and found in the database."),

            store_seconds: r.histograms("data_sync_store_operation_seconds", "Time of store operations, in seconds.", &["op", "outcome"]),
            store_retries: r.counters("data_sync_store_retries_total", "Store operations tried again.", &["op", "reason"]),
            store_batch_rows: r.histogram("data_sync_store_batch_rows", "Writes that shared one commit.", BATCH_BUCKETS),
            store_queue_length: r.gauge("data_sync_store_queue_length", "Writes waiting for a writer."),
            pool_connections: r.gauges("data_sync_pool_connections", "Pooled database connections.", &["state"]),
            pool_wait_seconds: r.histogram("data_sync_pool_wait_seconds", "Time waited for a pooled connection, in seconds.", LATENCY_BUCKETS),
            schema_version: r.gauge("data_sync_schema_version", "Newest migration applied to the database."),
            schema_latest_version: r.gauge("data_sync_schema_latest_version", "Newest migration that this program knows."),

            auth_failures: r.counters("data_sync_auth_failures_total", "Requests refused as unauthenticated.", &["reason"]),
            revocation_list_entries: r.gauge("data_sync_revocation_list_entries", "Serial numbers on the revocation list."),
            revocation_list_last_success: r.float_gauge("data_sync_revocation_list_last_success_timestamp_seconds", "When the revocation list was last fetched, in seconds since 1970-01-01 UTC; 0 before the first time."),
            revocation_fetch_failures: r.counter("data_sync_revocation_fetch_failures_total", "Failed fetches of the revocation list."),

            build_info: r.gauges("data_sync_build_info", "What is running; always 1.", &["version", "revision"]),
            ready: r.gauge("data_sync_ready", "1 while the readiness probe succeeds."),
            draining: r.gauge("data_sync_draining", "1 after the process was asked to stop."),
            calls: Vec::new(),
            registry: r.registry().clone(),
            inventory: { r.add_process(); r.add_runtime(); r.finish() },
        };
        metrics.calls = RPCS.iter().map(|rpc| CallMetrics::resolve(&metrics, rpc)).collect();
        metrics.start_at_zero();
        metrics
    }

    /// Makes the series of label values that are known beforehand, so that a rate has a start
    /// even if the first event is the only one.
    fn start_at_zero(&self) {
        for listener in LISTENERS {
            self.connections.with_label_values(&[listener]);
            for reason in CONNECTION_REFUSALS {
                self.connections_refused.with_label_values(&[listener, reason]);
            }
        }
        let known: [(&IntCounterVec, &[&str]); 5] = [
            (&self.streams_ended, STREAM_ENDS),
            (&self.quota_exceeded, QUOTAS),
            (&self.rate_limited, RATE_SCOPES),
            (&self.resyncs, RESYNC_REASONS),
            (&self.auth_failures, AUTH_FAILURES),
        ];
        for (counters, values) in known {
            for value in values {
                counters.with_label_values(&[value]);
            }
        }
        for (op, reasons) in STORE_RETRIES {
            for reason in *reasons {
                self.store_retries.with_label_values(&[op, reason]);
            }
        }
        for state in POOL_STATES {
            self.pool_connections.with_label_values(&[state]);
        }
    }

    /// The handles of one RPC, resolved at start-up.
    #[must_use]
    pub fn call(&self, rpc: &Rpc) -> &CallMetrics {
        &self.calls[rpc.index]
    }

    /// Everything in the Prometheus text format.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be encoded");
        }
        text
    }

    /// The page `docs/metrics.md`.
    #[must_use]
    pub fn inventory_markdown(&self) -> String {
        inventory::markdown(&self.inventory)
    }

    /// Where everything is registered.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::rpc::UNKNOWN;

    #[test]
    fn known_series_are_there_before_anything_happened() {
        let text = Metrics::new().encode();
        for series in [
            r#"grpc_server_started_total{grpc_method="SetRecord",grpc_service="sync.Syncer",grpc_type="unary"} 0"#,
            r#"grpc_server_handled_total{grpc_code="Unavailable",grpc_method="ListenChanges",grpc_service="sync.Syncer",grpc_type="server_stream"} 0"#,
            r#"grpc_server_handling_seconds_count{grpc_method="GetLock",grpc_service="sync.Syncer",grpc_type="unary"} 0"#,
            r#"data_sync_quota_exceeded_total{quota="records"} 0"#,
            r#"data_sync_connections{listener="web"} 0"#,
            r#"data_sync_store_retries_total{op="set_record",reason="serialization"} 0"#,
        ] {
            assert!(text.contains(series), "{series} is missing in\n{text}");
        }
    }

    #[test]
    fn streams_have_no_latency() {
        let text = Metrics::new().encode();
        let stream = r#"grpc_server_handling_seconds_count{grpc_method="ListenChanges""#;
        assert!(!text.contains(stream));
    }

    #[test]
    fn counting_a_call_reaches_the_exposition() {
        let metrics = Metrics::new();
        metrics.call(UNKNOWN).handled(tonic::Code::Unimplemented).inc();
        let series = r#"grpc_server_handled_total{grpc_code="Unimplemented",grpc_method="unknown",grpc_service="unknown",grpc_type="unary"} 1"#;
        assert!(metrics.encode().contains(series));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_process_and_its_runtime_are_measured() {
        let text = Metrics::new().encode();
        for name in ["process_resident_memory_bytes ", "process_open_fds ", "tokio_workers 1\n"] {
            assert!(text.contains(name), "{name} is missing in\n{text}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_page_of_metrics_is_up_to_date() {
        let committed = include_str!("../../docs/metrics.md");
        assert!(
            committed == Metrics::new().inventory_markdown(),
            "docs/metrics.md is stale; run `data-sync docs metrics > docs/metrics.md`"
        );
    }
}
