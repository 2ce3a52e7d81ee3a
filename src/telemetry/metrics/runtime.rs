//! How busy the async runtime is, read when somebody asks.

use prometheus::{
    Counter, IntGauge,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use tokio::runtime::Handle;

/// Reads the runtime it is collected in; outside of one it has nothing to say.
#[derive(Debug)]
pub(super) struct RuntimeCollector {
    workers: IntGauge,
    alive_tasks: IntGauge,
    global_queue_depth: IntGauge,
    busy_seconds: Counter,
}

impl RuntimeCollector {
    #[allow(clippy::expect_used, reason = "names are fixed and covered by a test")]
    pub(super) fn new() -> Self {
        let gauge =
            |name: &str, help: &str| IntGauge::new(name, help).expect("metric options are valid");
        Self {
            workers: gauge("tokio_workers", "Worker threads of the async runtime."),
            alive_tasks: gauge("tokio_alive_tasks", "Tasks that have not ended."),
            global_queue_depth: gauge(
                "tokio_global_queue_depth",
                "Tasks that wait for a worker thread in the common queue.",
            ),
            busy_seconds: Counter::new(
                "tokio_worker_busy_seconds_total",
                "Time that worker threads spent on tasks, over all workers, in seconds.",
            )
            .expect("metric options are valid"),
        }
    }

    fn read(&self, handle: &Handle) {
        let metrics = handle.metrics();
        let as_gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.workers.set(as_gauge(metrics.num_workers()));
        self.alive_tasks.set(as_gauge(metrics.num_alive_tasks()));
        self.global_queue_depth.set(as_gauge(metrics.global_queue_depth()));
        #[cfg(target_has_atomic = "64")]
        {
            let busy = (0..metrics.num_workers())
                .map(|worker| metrics.worker_total_busy_duration(worker).as_secs_f64())
                .sum::<f64>();
            self.busy_seconds.inc_by((busy - self.busy_seconds.get()).max(0.0));
        }
    }

    fn parts(&self) -> [&dyn Collector; 4] {
        [&self.workers, &self.alive_tasks, &self.global_queue_depth, &self.busy_seconds]
    }
}

impl Collector for RuntimeCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.parts().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(handle) = Handle::try_current() else { return Vec::new() };
        self.read(&handle);
        self.parts().into_iter().flat_map(Collector::collect).collect()
    }
}
