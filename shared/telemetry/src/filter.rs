//! Which events become lines, and which spans are exported.

use baton_contract::causes;
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, FilterExt, Targets, filter_fn};
use tracing_subscriber::layer::Filter;
use tracing_subscriber::registry::LookupSpan;

use crate::Error;

/// What the exporter itself is made of. Its spans and events must never be exported, or each export would cause the
/// next, and what fails in it is told by our own warning.
const EXPORTER: [&str; 6] = ["opentelemetry", "tonic", "tower", "h2", "hyper", "rustls"];

/// The filter of the lines: `text` decides on events, while spans always pass, since their labels stand on the lines.
pub(crate) fn lines<S>(text: &str) -> Result<impl Filter<S> + use<S>, Error>
where
    S: tracing::Subscriber + for<'span> LookupSpan<'span>,
{
    let refuse = |reason: String| Error::LogFilter { found: text.to_owned(), reason };
    // A misspelt level would pass for the name of a target, and silence all others.
    for part in text.split(',').map(str::trim) {
        let level = !part.is_empty() && part.parse::<LevelFilter>().is_ok();
        if !level && !part.contains(['=', '[', ']', '{', '}']) {
            return Err(refuse(format!("{part:?} is neither a level nor TARGET=LEVEL")));
        }
    }
    // A later directive about the same target replaces an earlier one, so `text` has the last word.
    let quiet: String = EXPORTER.iter().map(|target| format!("{target}=off,")).collect();
    let events = EnvFilter::builder().parse(quiet + text).map_err(|error| refuse(causes(&error)))?;
    Ok(events.or(filter_fn(|metadata| metadata.is_span() && *metadata.level() <= Level::INFO)))
}

/// The filter of the exported spans and of the events in them.
pub(crate) fn spans() -> Targets {
    Targets::new().with_default(LevelFilter::INFO).with_targets(EXPORTER.map(|target| (target, LevelFilter::OFF)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_exporter_is_exported_and_no_detail() {
        let filter = spans();
        for target in ["opentelemetry_otlp::span", "tonic::transport", "tower::buffer", "h2::client", "hyper_util::rt"]
        {
            assert!(!filter.would_enable(target, &Level::ERROR), "{target}");
        }
        assert!(filter.would_enable("baton_decode::batch", &Level::INFO));
        assert!(!filter.would_enable("baton_decode::batch", &Level::DEBUG));
    }
}
