//! What operators see: logs, metrics, traces.

pub mod metrics;
