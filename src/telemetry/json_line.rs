//! One log event as one line of JSON, flat, with the ids of the call it belongs to.
//!
//! Log stores index top-level keys, so the fields of the spans around an event stand beside its
//! own: `request_id` from the call's span, `trace_id` and `span_id` from the trace layer.

use std::fmt;

use opentelemetry::{Context, trace::TraceContextExt as _};
use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormattedFields,
        format::{FormatEvent, JsonFields, Writer},
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

/// Formats events for collectors; its field formatter is [`JsonFields`].
#[derive(Debug, Clone, Copy)]
pub(super) struct JsonLine;

impl<S> FormatEvent<S, JsonFields> for JsonLine
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Map::new();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            // The field formatter wrote an object; what it did not write cannot be merged.
            if let Some(text) = extensions.get::<FormattedFields<JsonFields>>()
                && let Ok(Value::Object(of_span)) = serde_json::from_str(text)
            {
                fields.extend(of_span);
            }
        }
        // The trace layer makes the entered span the current context of the thread.
        Context::map_current(|trace| {
            let ids = trace.span().span_context().clone();
            if ids.is_valid() {
                fields.insert("trace_id".to_owned(), ids.trace_id().to_string().into());
                fields.insert("span_id".to_owned(), ids.span_id().to_string().into());
            }
        });
        event.record(&mut Fields(&mut fields));
        fields.retain(|name, _| !name.starts_with("otel."));

        let metadata = event.metadata();
        let message = fields.remove("message").unwrap_or_default();
        writer.write_str(r#"{"timestamp":""#)?;
        SystemTime.format_time(&mut writer)?;
        write!(writer, r#"","level":"{}","message":{message}"#, metadata.level())?;
        write!(writer, r#","target":{}"#, Value::from(metadata.target()))?;
        for (name, value) in fields {
            write!(writer, ",{}:{value}", Value::from(name))?;
        }
        writer.write_str("}\n")
    }
}

/// Collects the fields of an event.
struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}
