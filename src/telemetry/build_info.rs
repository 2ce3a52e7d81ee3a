//! What is running: version, source revision, target.

use serde::Serialize;

use super::metrics::Metrics;

/// What a build was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BuildInfo {
    /// Version of the package.
    pub version: &'static str,
    /// Revision of the source, `unknown` outside of a checkout and of image builds.
    pub revision: &'static str,
    /// Target triple.
    pub target: &'static str,
}

/// This build.
pub const BUILD_INFO: BuildInfo = BuildInfo {
    version: env!("CARGO_PKG_VERSION"),
    revision: env!("DATA_SYNC_REVISION"),
    target: env!("DATA_SYNC_TARGET"),
};

impl BuildInfo {
    /// Shows this build among the metrics.
    pub fn publish(&self, metrics: &Metrics) {
        metrics.build_info.with_label_values(&[self.version, self.revision]).set(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_is_shown_among_the_metrics() {
        let metrics = Metrics::new();
        BUILD_INFO.publish(&metrics);
        let series = format!(
            r#"data_sync_build_info{{revision="{}",version="{}"}} 1"#,
            BUILD_INFO.revision, BUILD_INFO.version
        );
        assert!(metrics.encode().contains(&series));
    }
}
