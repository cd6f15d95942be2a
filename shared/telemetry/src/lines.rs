//! Events as lines: what happened, in which process, about which job.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt;
use serde::{Serialize, Serializer};
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer;
use tracing_subscriber::registry::LookupSpan;

use crate::LogFormat;

/// Writes each event as one line, in one write.
pub(crate) struct Lines<W> {
    format: LogFormat,
    ansi: bool,
    service: String,
    instance: String,
    writer: W,
}

impl<W> Lines<W> {
    /// `ansi` colours the level of text lines.
    pub(crate) fn new(format: LogFormat, ansi: bool, service: String, instance: String, writer: W) -> Self {
        Self { format, ansi, service, instance, writer }
    }

    fn json(&self, line: &Line<'_>) -> Option<String> {
        serde_json::to_string(line).ok().map(|text| text + "\n")
    }

    fn text(&self, line: &Line<'_>) -> Option<String> {
        let mut text = String::with_capacity(160);
        let (on, off) = if self.ansi { (colour(line.level), "\x1b[0m") } else { ("", "") };
        write!(text, "{} {on}{:>5}{off} {} {}: ", line.timestamp, line.level.as_str(), line.instance, line.target)
            .ok()?;
        // A line break or an escape sequence from outside must not fake a line or reach the terminal.
        for c in line.message.chars() {
            if c.is_control() { write!(text, "{}", c.escape_default()).ok()? } else { text.push(c) }
        }
        for (name, value) in line.fields {
            match value {
                Value::String(value) => pair(&mut text, name, value).ok()?,
                value => write!(text, " {name}={value}").ok()?,
            }
        }
        for (name, value) in [("job", line.job), ("tenant", line.tenant), ("trace", line.trace), ("span", line.span)] {
            if let Some(value) = value {
                pair(&mut text, name, value).ok()?;
            }
        }
        text.push('\n');
        Some(text)
    }
}

/// Appends ` name=value`, quoted and escaped unless the value reads as one plain word.
fn pair(text: &mut String, name: &str, value: &str) -> fmt::Result {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '=' | '\\');
    if !value.is_empty() && value.chars().all(plain) {
        write!(text, " {name}={value}")
    } else {
        write!(text, " {name}={value:?}")
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[2m",
    }
}

/// All that a line tells, in the order of its JSON form.
#[derive(Serialize)]
struct Line<'a> {
    timestamp: &'a str,
    #[serde(serialize_with = "level")]
    level: Level,
    service: &'a str,
    instance: &'a str,
    target: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "map")]
    fields: &'a [(&'static str, Value)],
}

fn level<S: Serializer>(level: &Level, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(level.as_str())
}

fn map<S: Serializer>(fields: &&[(&'static str, Value)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(fields.iter().map(|(name, value)| (name, value)))
}

/// What a span says about every line inside it.
#[derive(Default)]
struct Labels {
    job: Option<String>,
    tenant: Option<String>,
}

impl Labels {
    fn get_mut(&mut self, field: &Field) -> Option<&mut Option<String>> {
        match field.name() {
            "job" => Some(&mut self.job),
            "tenant" => Some(&mut self.tenant),
            _ => None,
        }
    }
}

impl Visit for Labels {
    fn record_str(&mut self, field: &Field, value: &str) {
        if let Some(label) = self.get_mut(field) {
            *label = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if let Some(label) = self.get_mut(field) {
            *label = Some(format!("{value:?}"));
        }
    }
}

/// What an event says.
#[derive(Default)]
struct Said {
    message: String,
    /// The target of an event that came through the `log` crate, whose own is only "log".
    target: Option<String>,
    labels: Labels,
    fields: Vec<(&'static str, Value)>,
}

impl Said {
    fn say(&mut self, field: &Field, value: Value) {
        let text = match value {
            Value::String(text) => text,
            value => return self.fields.push((field.name(), value)),
        };
        match field.name() {
            "message" => self.message = text,
            "log.target" => self.target = Some(text),
            name if name.starts_with("log.") => {}
            name => match self.labels.get_mut(field) {
                Some(label) => *label = Some(text),
                None => self.fields.push((name, Value::String(text))),
            },
        }
    }
}

impl Visit for Said {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.say(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.say(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.say(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.say(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.say(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.say(field, format!("{value:?}").into());
    }
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: layer::Context<'_, S>) {
        let mut labels = Labels::default();
        attributes.record(&mut labels);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(labels);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: layer::Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(labels) = span.extensions_mut().get_mut::<Labels>()
        {
            values.record(labels);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: layer::Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        // The innermost span that carries a label decides.
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(labels) = span.extensions().get::<Labels>() {
                said.labels.job = said.labels.job.take().or_else(|| labels.job.clone());
                said.labels.tenant = said.labels.tenant.take().or_else(|| labels.tenant.clone());
            }
        }
        let trace = Context::map_current(|current| {
            let span = current.span();
            span.span_context().is_valid().then(|| span.span_context().trace_id().to_string())
        });
        let mut timestamp = String::new();
        // Fails only for a clock outside of what can be formatted: such a line has no time.
        let _ = SystemTime.format_time(&mut Writer::new(&mut timestamp));

        let line = Line {
            timestamp: &timestamp,
            level: *event.metadata().level(),
            service: &self.service,
            instance: &self.instance,
            target: said.target.as_deref().unwrap_or(event.metadata().target()),
            message: &said.message,
            job: said.labels.job.as_deref(),
            tenant: said.labels.tenant.as_deref(),
            trace: trace.as_deref(),
            span: context.event_span(event).map(|span| span.name()),
            fields: &said.fields,
        };
        let text = match self.format {
            LogFormat::Text => self.text(&line),
            LogFormat::Json => self.json(&line),
        };
        if let Some(text) = text {
            // There is nobody left to tell when stderr is closed.
            let _ = self.writer.make_writer_for(event.metadata()).write_all(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{debug, info, info_span, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The lines that `events` write under the filter `log`, without their timestamps.
    fn lines(format: LogFormat, ansi: bool, log: &str, events: impl FnOnce()) -> Vec<String> {
        let buffer = Arc::new(Mutex::new(Vec::new()));
        let sink = Sink(buffer.clone());
        let layer = Lines::new(format, ansi, "baton-decode".into(), "decode-1".into(), move || sink.clone());
        let subscriber = tracing_subscriber::registry().with(layer.with_filter(crate::filter::lines(log).unwrap()));
        tracing::subscriber::with_default(subscriber, events);
        let text = String::from_utf8(buffer.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| line.split_once(' ').map_or(line, |(_, rest)| rest).to_owned()).collect()
    }

    #[test]
    fn a_text_line_is_one_line_with_the_labels_of_its_spans_whatever_the_filter() {
        let written = lines(LogFormat::Text, false, "warn,quiet=off", || {
            let job = info_span!(target: "quiet", "job", job = "j-1", tenant = tracing::field::Empty);
            let _job = job.enter();
            let _step = info_span!("decode", attempt = 2).entered();
            info!("left out by the filter");
            warn!(target: "quiet::part", "left out by the target");
            warn!(target: "h2::proto", "left out as the exporter's own");
            job.record("tenant", "acme inc");
            warn!(target: "t", tokens = 3, error = %"no\nroom", ratio = 0.5, "could not\x1b[2J decode");
            warn!(target: "t", job = "j-2", "said by the event");
        });
        assert_eq!(
            written,
            [
                r#" WARN decode-1 t: could not\u{1b}[2J decode tokens=3 error="no\nroom" ratio=0.5 job=j-1 tenant="acme inc" span=decode"#,
                r#" WARN decode-1 t: said by the event job=j-2 tenant="acme inc" span=decode"#,
            ]
        );
    }

    #[test]
    fn the_filter_gives_named_targets_their_level_and_only_a_terminal_gets_colour() {
        let events = || {
            debug!(target: "a", "shown");
            debug!(target: "b", "hidden");
            debug!(target: "hyper", "shown since named");
        };
        assert_eq!(
            lines(LogFormat::Text, true, "info,a=debug,hyper=debug", events),
            ["\x1b[2mDEBUG\x1b[0m decode-1 a: shown", "\x1b[2mDEBUG\x1b[0m decode-1 hyper: shown since named"]
        );
    }
}
