//! Shows on a terminal how a run goes on; elsewhere it is silent.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::bench::Progress;

/// How often the bar moves by itself.
const TICK: Duration = Duration::from_millis(120);
const SPINNER: &str = "{spinner} {prefix} {elapsed} {msg}";
const BAR: &str = "{spinner} {prefix} [{bar:30}] {elapsed} {msg}";

/// A progress bar on standard error.
#[derive(Debug)]
pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// Takes the bar off the terminal.
    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "milliseconds of a run, not negative"
)]
const fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1e3) as u64
}

impl Progress for Bar {
    fn phase(&self, name: &str, seconds: Option<f64>) {
        let template = if seconds.is_some() { BAR } else { SPINNER };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
        self.0.reset();
        self.0.set_length(milliseconds(seconds.unwrap_or(0.0)));
        self.0.set_prefix(name.to_owned());
        self.0.set_message("");
    }

    fn advance(&self, seconds: f64, summary: &str) {
        self.0.set_position(milliseconds(seconds));
        self.0.set_message(summary.to_owned());
    }
}
