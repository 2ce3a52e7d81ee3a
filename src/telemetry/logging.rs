//! Log lines: text for people, JSON for collectors, on stderr, with a filter that an operator can
//! change while the process runs.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt,
    io::IsTerminal as _,
    panic::PanicHookInfo,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::{Subscriber, field::display};
use tracing_subscriber::{
    EnvFilter, Layer,
    field::MakeExt as _,
    filter::{FilterExt as _, LevelFilter, filter_fn},
    fmt::{MakeWriter, format},
    registry::LookupSpan,
    reload,
};

use super::json_line::JsonLine;
use crate::config::LogFormat;

/// Target of the span around each call and of the line at its end.
pub const CALL_TARGET: &str = "data_sync::call";

/// Checks filter directives such as `info,data_sync::store=debug`.
///
/// # Errors
/// What is wrong with the text.
pub fn validate_filter(directives: &str) -> Result<(), String> {
    parse_filter(directives).map(drop)
}

fn parse_filter(directives: &str) -> Result<EnvFilter, String> {
    let directives = directives.trim();
    if directives.is_empty() {
        return Err("a filter names at least one level".to_owned());
    }
    // A word alone may also be a target, which would take a misspelt level for one and log nothing.
    let words = directives.split(',').map(str::trim).filter(|part| !part.contains(['=', '[', '}']));
    for word in words {
        if word.parse::<LevelFilter>().is_err() {
            return Err(format!(
                "{word:?} is no level (off, error, warn, info, debug or trace); \
                 a target needs one, as in data_sync=debug"
            ));
        }
    }
    EnvFilter::builder().parse(directives).map_err(|error| error.to_string())
}

/// Changes what is logged while the process runs.
#[derive(Clone)]
pub struct LogControl(Arc<Control>);

struct Control {
    directives: Mutex<String>,
    reload: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
}

impl LogControl {
    /// The directives in force.
    #[must_use]
    pub fn directives(&self) -> String {
        self.0.directives.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other directives in force, at once and until the next change or restart.
    ///
    /// # Errors
    /// What is wrong with the directives; the old ones stay in force.
    pub fn set(&self, directives: &str) -> Result<(), String> {
        let filter = parse_filter(directives)?;
        let mut current = self.0.directives.lock().unwrap_or_else(PoisonError::into_inner);
        (self.0.reload)(filter)?;
        directives.trim().clone_into(&mut current);
        Ok(())
    }

    fn new<S: 'static>(directives: &str, handle: reload::Handle<EnvFilter, S>) -> Self {
        Self(Arc::new(Control {
            directives: Mutex::new(directives.trim().to_owned()),
            reload: Box::new(move |filter| handle.reload(filter).map_err(|e| e.to_string())),
        }))
    }
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogControl").field(&self.directives()).finish()
    }
}

/// Whether `format` means JSON on this process's stderr.
pub(super) fn is_json(format: LogFormat) -> bool {
    match format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    }
}

/// A layer of a subscriber of type `S`.
pub(super) type BoxLayer<S> = Box<dyn Layer<S> + Send + Sync>;

/// The layer that writes lines to `writer`, and the means to change its filter.
///
/// Where calls have spans for the sake of traces, lines within a call show them, whatever the
/// filter says about DEBUG: they lead from the line to the trace.
///
/// # Errors
/// What is wrong with the directives.
pub(super) fn layer<S, W>(
    directives: &str,
    json: bool,
    traced: bool,
    writer: W,
) -> Result<(BoxLayer<S>, LogControl), String>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup> + Send + Sync,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::<EnvFilter, S>::new(parse_filter(directives)?);
    let control = LogControl::new(directives, handle);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines: BoxLayer<S> = if json {
        Box::new(lines.fmt_fields(format::JsonFields::new()).event_format(JsonLine))
    } else {
        // Fields named otel.* instruct the trace layer and tell a reader nothing.
        let fields = format::debug_fn(|writer, field, value| match field.name() {
            name if name.starts_with("otel.") => Ok(()),
            "message" => write!(writer, "{value:?}"),
            name => write!(writer, "{name}={value:?}"),
        });
        let colours = std::io::stderr().is_terminal();
        Box::new(lines.with_ansi(colours).fmt_fields(fields.delimited(" ")))
    };
    let layer: BoxLayer<S> = if traced {
        let calls = filter_fn(|metadata| metadata.is_span() && metadata.target() == CALL_TARGET)
            .with_max_level_hint(LevelFilter::DEBUG);
        Box::new(lines.with_filter(filter.or(calls)))
    } else {
        // Nobody else listens, so that what is filtered out is not even made. The filter is the
        // outer of the two: a pair right above the registry takes its level from that one alone,
        // and without a level every span of the HTTP/2 library asks the filter anew.
        Box::new(lines.and_then(filter))
    };
    Ok((layer, control))
}

/// Logs panics as lines like any other, instead of a report of several lines.
///
/// A message with values in it may quote what a caller sent, so that only fixed texts are shown;
/// the place in the source says the rest.
pub(super) fn log_panics() {
    std::panic::set_hook(Box::new(log_panic));
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or("(not shown)");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    // Captured only if RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| display(backtrace));
    tracing::error!(reason = message, location, thread, backtrace, "panicked");
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::Registry;

    use super::*;

    /// The finest level that a call has to ask the filter about.
    fn finest_level_asked_about(directives: &str, traced: bool) -> Option<LevelFilter> {
        let made = layer::<Registry, _>(directives, true, traced, std::io::sink);
        let (layer, _control) = made.expect("valid directives");
        layer.max_level_hint()
    }

    #[test]
    fn levels_that_nobody_logs_cost_one_comparison() {
        assert_eq!(finest_level_asked_about("info", false), Some(LevelFilter::INFO));
        assert_eq!(finest_level_asked_about("warn", true), Some(LevelFilter::DEBUG));
        assert_eq!(finest_level_asked_about("trace", false), Some(LevelFilter::TRACE));
    }
}
