//! The `grpc_server_*` family of one RPC, resolved once.

use prometheus::{Histogram, IntCounter};
use tonic::Code;

use super::Metrics;
use crate::telemetry::rpc::{CODE_NAMES, Rpc, code_index};

/// Handles of one RPC: counting a call is a few atomic additions and no lookup.
#[derive(Debug)]
pub struct CallMetrics {
    /// Calls begun.
    pub started: IntCounter,
    /// Messages of callers.
    pub messages_received: IntCounter,
    /// Messages to callers.
    pub messages_sent: IntCounter,
    /// Time to answer, in seconds; none for streams, which last as long as the caller likes.
    pub seconds: Option<Histogram>,
    handled: [IntCounter; CODE_NAMES.len()],
}

impl CallMetrics {
    pub(super) fn resolve(metrics: &Metrics, rpc: &Rpc) -> Self {
        let labels = [rpc.kind.as_str(), rpc.service, rpc.method];
        let [kind, service, method] = labels;
        Self {
            started: metrics.rpc_started.with_label_values(&labels),
            messages_received: metrics.rpc_messages_received.with_label_values(&labels),
            messages_sent: metrics.rpc_messages_sent.with_label_values(&labels),
            seconds: rpc.is_unary().then(|| metrics.rpc_seconds.with_label_values(&labels)),
            handled: CODE_NAMES
                .map(|code| metrics.rpc_handled.with_label_values(&[kind, service, method, code])),
        }
    }

    /// Calls that ended with `code`.
    #[must_use]
    pub fn handled(&self, code: Code) -> &IntCounter {
        &self.handled[code_index(code)]
    }

    /// Calls that ended, whatever the code.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.handled.iter().map(IntCounter::get).sum()
    }
}
