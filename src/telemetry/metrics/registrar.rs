//! Registers metrics and remembers what it registered.

use std::cell::RefCell;

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
};

use super::{LATENCY_BUCKETS, runtime::RuntimeCollector};

/// What a metric is, for the inventory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) labels: Vec<String>,
    pub(super) help: String,
}

/// Registers what the constructors make; a name used twice is a fault of the caller's file.
#[derive(Debug)]
pub(super) struct Registrar {
    registry: Registry,
    inventory: RefCell<Vec<Entry>>,
}

impl Registrar {
    pub(super) fn new() -> Self {
        Self { registry: Registry::new(), inventory: RefCell::default() }
    }

    pub(super) const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What was registered, by name.
    pub(super) fn finish(self) -> Vec<Entry> {
        let mut inventory = self.inventory.into_inner();
        inventory.sort_by(|left, right| left.name.cmp(&right.name));
        inventory
    }

    #[allow(clippy::expect_used, reason = "names are fixed in metrics.rs and covered by a test")]
    fn add<C: Collector + Clone + 'static>(
        &self,
        kind: &'static str,
        metric: prometheus::Result<C>,
    ) -> C {
        let metric = metric.expect("metric options are valid");
        self.note(&metric, |_| kind);
        self.registry.register(Box::new(metric.clone())).expect("metric names are unique");
        metric
    }

    fn note(&self, collector: &impl Collector, kind: impl Fn(&Desc) -> &'static str) {
        self.inventory.borrow_mut().extend(collector.desc().into_iter().map(|desc| Entry {
            name: desc.fq_name.clone(),
            kind: kind(desc),
            labels: desc.variable_labels.clone(),
            help: desc.help.clone(),
        }));
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add("counter", IntCounter::new(name, help))
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add("counter", IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add("gauge", IntGauge::new(name, help))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add("gauge", IntGaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.add("gauge", Gauge::new(name, help))
    }

    pub(super) fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add("histogram", Histogram::with_opts(options))
    }

    pub(super) fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec());
        self.add("histogram", HistogramVec::new(options, labels))
    }

    /// Memory, CPU time and file descriptors of the process, as Linux tells them.
    pub(super) fn add_process(&self) {
        #[cfg(target_os = "linux")]
        self.add_collector(prometheus::process_collector::ProcessCollector::for_self());
    }

    /// How busy the async runtime is.
    pub(super) fn add_runtime(&self) {
        self.add_collector(RuntimeCollector::new());
    }

    #[allow(clippy::expect_used, reason = "names are fixed and covered by a test")]
    fn add_collector(&self, collector: impl Collector + 'static) {
        let kind = |desc: &Desc| match desc.fq_name.ends_with("_total") {
            true => "counter",
            false => "gauge",
        };
        self.note(&collector, kind);
        self.registry.register(Box::new(collector)).expect("metric names are unique");
    }
}
