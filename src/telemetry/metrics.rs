//! Every metric by name, once. `docs/metrics.md` is generated from here.
//!
//! Handles are resolved at start-up, so that counting on the hot path is one atomic addition.
//! No label ever holds a user, a key or anything else a caller chooses.

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, core::Collector,
};

/// Buckets of server latencies, in seconds.
const LATENCY_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// Buckets of batch sizes, in rows.
const BATCH_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// All metrics of one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,

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

/// Registers what the constructors below make; a name used twice is a fault of this file.
struct Registrar(Registry);

impl Registrar {
    #[allow(clippy::expect_used, reason = "names are fixed above and covered by a test")]
    fn add<C: Collector + Clone + 'static>(&self, metric: prometheus::Result<C>) -> C {
        let metric = metric.expect("metric options are valid");
        self.0.register(Box::new(metric.clone())).expect("metric names are unique");
        metric
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(Histogram::with_opts(options))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec());
        self.add(HistogramVec::new(options, labels))
    }
}

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
        let r = Registrar(Registry::new());
        Self {
            rpc_started: r.counters("grpc_server_started_total", "RPCs started.", RPC),
            rpc_handled: r.counters("grpc_server_handled_total", "RPCs completed, by status code.", RPC_CODE),
            rpc_seconds: r.histograms("grpc_server_handling_seconds", "Time to answer unary RPCs, in seconds.", RPC),
            rpc_messages_received: r.counters("grpc_server_msg_received_total", "Messages received.", RPC),
            rpc_messages_sent: r.counters("grpc_server_msg_sent_total", "Messages sent.", RPC),

            connections: r.gauges("data_sync_connections", "Open connections.", &["listener"]),
            connections_refused: r.counters("data_sync_connections_refused_total", "Connections closed before they carried a request.", &["listener", "reason"]),
            active_streams: r.gauge("data_sync_active_streams", "Open ListenChanges streams."),
            streams_ended: r.counters("data_sync_streams_ended_total", "ListenChanges streams ended, by cause.", &["reason"]),
            notifications_published: r.counter("data_sync_notifications_published_total", "Committed changes announced by this replica."),
            notifications_delivered: r.counter("data_sync_notifications_delivered_total", "Notifications sent on streams of this replica."),
            notifications_coalesced: r.counter("data_sync_notifications_coalesced_total", "Changes that shared a notification with another."),
            notification_delay_seconds: r.histogram("data_sync_notification_delay_seconds", "Time from a write's commit until a stream took its notification, in seconds.", LATENCY_BUCKETS),
            nudges: r.counter("data_sync_nudges_total", "Empty notifications sent because a page was cut."),
            record_conflicts: r.counter("data_sync_record_conflicts_total", "Writes answered CONFLICT."),
            record_repeats: r.counter("data_sync_record_repeats_total", "Writes that had been stored before and were answered SUCCESS again."),
            locks_denied: r.counter("data_sync_locks_denied_total", "SetLock calls refused because another instance holds the lock."),
            quota_exceeded: r.counters("data_sync_quota_exceeded_total", "Requests refused because of a quota.", &["quota"]),
            rate_limited: r.counters("data_sync_rate_limited_total", "Requests refused because of a rate.", &["scope"]),

            listener_connected: r.gauge("data_sync_listener_connected", "1 while changes of other replicas are heard at once, 0 while only reconcile finds them."),
            listener_reconnects: r.counter("data_sync_listener_reconnects_total", "Times the LISTEN connection was made anew."),
            resyncs: r.counters("data_sync_resyncs_total", "Comparisons of heads with what streams were told.", &["reason"]),
            reconciled_users: r.counter("data_sync_reconciled_users_total", "Users whose streams were woken by a comparison of heads."),

            store_seconds: r.histograms("data_sync_store_operation_seconds", "Time of store operations, in seconds.", &["op", "outcome"]),
            store_retries: r.counters("data_sync_store_retries_total", "Store operations tried again.", &["op", "reason"]),
            store_batch_rows: r.histogram("data_sync_store_batch_rows", "Writes that shared one commit.", BATCH_BUCKETS),
            store_queue_length: r.gauge("data_sync_store_queue_length", "Writes waiting for a writer."),
            pool_connections: r.gauges("data_sync_pool_connections", "Pooled database connections.", &["state"]),
            pool_wait_seconds: r.histogram("data_sync_pool_wait_seconds", "Time waited for a pooled connection, in seconds.", LATENCY_BUCKETS),
            schema_version: r.gauge("data_sync_schema_version", "Newest migration applied to the database."),

            auth_failures: r.counters("data_sync_auth_failures_total", "Requests refused as unauthenticated.", &["reason"]),
            revocation_list_entries: r.gauge("data_sync_revocation_list_entries", "Serial numbers on the revocation list."),
            revocation_list_last_success: r.float_gauge("data_sync_revocation_list_last_success_timestamp_seconds", "When the revocation list was last fetched, in seconds since 1970-01-01 UTC; 0 before the first time."),
            revocation_fetch_failures: r.counter("data_sync_revocation_fetch_failures_total", "Failed fetches of the revocation list."),

            build_info: r.gauges("data_sync_build_info", "What is running; always 1.", &["version", "revision"]),
            ready: r.gauge("data_sync_ready", "1 while the readiness probe succeeds."),
            draining: r.gauge("data_sync_draining", "1 after the process was asked to stop."),
            registry: r.0,
        }
    }

    /// Where everything is registered.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }
}
