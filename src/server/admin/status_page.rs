//! The page `/statusz`: one self-contained document, for people.

use std::{
    fmt::{self, Display, Write as _},
    time::Duration,
};

use super::{AdminState, Check};
use crate::telemetry::{build_info::BUILD_INFO, metrics::Metrics, rpc::RPCS};

/// Light and dark, as the reader's system says.
const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
background:light-dark(#fcfcfb,#18191b);color:light-dark(#202124,#e4e5e7)}\
h1{font-size:1.4rem;margin:0 0 .2rem}h2{font-size:1.05rem;margin:2rem 0 .4rem}\
p{margin:.2rem 0;color:light-dark(#5c6067,#a0a4ab)}\
table{border-collapse:collapse;width:100%}\
th,td{text-align:left;padding:.3rem .8rem .3rem 0;vertical-align:top;\
border-bottom:1px solid light-dark(#e3e4e6,#303236)}\
th{font-weight:500;color:light-dark(#5c6067,#a0a4ab)}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
.ok{color:light-dark(#18794e,#4cc38a)}.degraded{color:light-dark(#9a5b00,#f0b429)}\
.failed{color:light-dark(#c62a2f,#ff8589)}";

/// Writes the page.
pub(super) fn render(state: &AdminState, checks: &[Check]) -> String {
    let mut page = String::with_capacity(8 * 1024);
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>data-sync status</title><style>{STYLE}</style></head><body>\n"
    );
    let (class, verdict) = match state.view.readiness() {
        Ok(()) => ("ok", "ready"),
        Err(reason) => ("failed", reason),
    };
    let _ = write!(
        page,
        "<h1>data-sync <span class=\"{class}\">{}</span></h1>\n\
         <p>version {}, revision {}, {}; up {}</p>\n",
        Escaped(verdict),
        BUILD_INFO.version,
        Escaped(BUILD_INFO.revision),
        BUILD_INFO.target,
        span_text(state.started.elapsed()),
    );
    render_checks(&mut page, checks);
    render_facts(&mut page, state);
    render_calls(&mut page, &state.metrics);
    page.push_str("</body></html>\n");
    page
}

fn render_checks(page: &mut String, checks: &[Check]) {
    page.push_str("<h2>Checks</h2>\n<table>\n");
    for Check { name, health, detail } in checks {
        let health = health.as_str();
        let _ = writeln!(
            page,
            "<tr><th>{}</th><td class=\"{health}\">{health}</td><td>{}</td></tr>",
            Escaped(name),
            Escaped(detail)
        );
    }
    page.push_str("</table>\n");
}

fn render_facts(page: &mut String, state: &AdminState) {
    let overview = state.view.overview();
    let metrics = &state.metrics;
    page.push_str("<h2>Process</h2>\n<table>\n");
    let mut fact = |name: &str, value: &dyn Display| {
        let _ = writeln!(page, "<tr><th>{name}</th><td>{}</td></tr>", Escaped(value));
    };
    for (name, address) in &overview.listeners {
        fact("listener", &format_args!("{name} on {address}"));
    }
    fact("store", &overview.engine);
    fact("schema version", &metrics.schema_version.get());
    fact("writes waiting", &metrics.store_queue_length.get());
    fact("open streams", &metrics.active_streams.get());
    fact("users with streams", &overview.users_with_streams);
    fact("revocation list", &revocation_list(metrics, state.clock.now_seconds()));
    fact("log filter", &state.log.directives());
    page.push_str("</table>\n");
}

/// Whole seconds since 1970 from a metric, which holds them as a float.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a time in seconds is whole, positive and far below 2^53"
)]
fn revocation_list(metrics: &Metrics, now_seconds: u64) -> String {
    let fetched = metrics.revocation_list_last_success.get() as u64;
    if fetched == 0 {
        return "none fetched".to_owned();
    }
    let age = Duration::from_secs(now_seconds.saturating_sub(fetched));
    let entries = metrics.revocation_list_entries.get();
    format!("{entries} serial numbers, fetched {} ago", span_text(age))
}

#[allow(clippy::cast_precision_loss, reason = "a mean for people")]
fn render_calls(page: &mut String, metrics: &Metrics) {
    page.push_str(
        "<h2>Calls since the start</h2>\n<table>\n<tr><th>method</th><th class=\"n\">begun</th>\
         <th class=\"n\">ended</th><th class=\"n\">not OK</th><th class=\"n\">mean time</th></tr>\n",
    );
    for rpc in RPCS {
        let calls = metrics.call(rpc);
        let (begun, ended) = (calls.started.get(), calls.ended());
        let failed = ended.saturating_sub(calls.handled(tonic::Code::Ok).get());
        let mean = calls.seconds.as_ref().filter(|seconds| seconds.get_sample_count() > 0).map(
            |seconds| {
                let mean = seconds.get_sample_sum() / seconds.get_sample_count() as f64;
                format!("{:.1} ms", mean * 1_000.0)
            },
        );
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td class=\"n\">{begun}</td><td class=\"n\">{ended}</td>\
             <td class=\"n\">{failed}</td><td class=\"n\">{}</td></tr>",
            rpc.full_name(),
            mean.unwrap_or_default()
        );
    }
    page.push_str("</table>\n");
}

/// A time span in its two largest units, as people say it.
fn span_text(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{minutes} min {} s", seconds % 60),
        3_600..86_400 => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// Text that cannot become markup.
struct Escaped<T>(T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escape<'a, 'f>(&'a mut fmt::Formatter<'f>);
        impl fmt::Write for Escape<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for character in text.chars() {
                    match character {
                        '&' => self.0.write_str("&amp;")?,
                        '<' => self.0.write_str("&lt;")?,
                        '>' => self.0.write_str("&gt;")?,
                        '"' => self.0.write_str("&quot;")?,
                        other => self.0.write_char(other)?,
                    }
                }
                Ok(())
            }
        }
        write!(Escape(f), "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_never_markup() {
        let text = Escaped(r#"<b class="x">&"#).to_string();
        assert_eq!(text, "&lt;b class=&quot;x&quot;&gt;&amp;");
    }

    #[test]
    fn spans_are_told_in_two_units() {
        for (seconds, text) in
            [(0, "0 s"), (61, "1 min 1 s"), (7_260, "2 h 1 min"), (90_061, "1 d 1 h")]
        {
            assert_eq!(span_text(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn the_age_of_the_revocation_list_is_told() {
        let metrics = Metrics::new();
        assert_eq!(revocation_list(&metrics, 1_000), "none fetched");
        metrics.revocation_list_last_success.set(900.0);
        metrics.revocation_list_entries.set(12);
        assert_eq!(revocation_list(&metrics, 1_000), "12 serial numbers, fetched 1 min 40 s ago");
    }
}
