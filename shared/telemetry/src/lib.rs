//! How a Baton process tells what it does: log lines on stderr, and spans to an OTLP endpoint when one is set.
//!
//! This crate owns the process's `tracing` subscriber, the W3C trace-context propagator and the span exporter; it is
//! the only user of the OpenTelemetry exporters. It must never make the work wait or fail: whatever happens to the
//! endpoint, spans are dropped, and jobs go on. It never decides what is a span or what travels in a
//! message: the stages and the bus do that with `tracing` and `tracing_opentelemetry::OpenTelemetrySpanExt`.
//!
//! Span contexts exist with and without an endpoint, so a client's `traceparent` reaches the result either way.
//! Without one, spans have no processor and end in nothing.
#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

mod export;
mod filter;
mod lines;

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;
use std::time::Duration;

use baton_contract::causes;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::lines::Lines;

/// The longest that [`Guard::shutdown`] takes.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);

/// The longest that dropping a [`Guard`] blocks its thread.
const DROP_DEADLINE: Duration = Duration::from_secs(1);

/// What a process calls itself and where its lines and spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The kind of process, as in `baton-prefill`: the resource's `service.name`.
    pub service: String,
    /// This process among its kind: the resource's `service.instance.id`, and on every log line.
    pub instance: String,
    /// Where spans go by OTLP over gRPC, as in `http://localhost:4317`; nothing is exported without it. The standard
    /// `OTEL_EXPORTER_OTLP_HEADERS` (for a token) and `OTEL_RESOURCE_ATTRIBUTES` are honoured.
    pub otlp_endpoint: Option<String>,
    /// Which events become lines, in `tracing`'s filter syntax: `info`, `warn,baton_decode=debug`. It has no say in
    /// which spans are exported, nor in whether job and tenant stand on a line. The libraries that carry gRPC and
    /// HTTP are silent unless they are named here.
    pub log: String,
    /// How a line looks.
    pub log_format: LogFormat,
}

impl Options {
    /// Text lines from level info on, and no endpoint.
    pub fn new(service: impl Into<String>, instance: impl Into<String>) -> Self {
        Self {
            service: service.into(),
            instance: instance.into(),
            otlp_endpoint: None,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// `2026-01-31T12:00:00.000000Z  INFO prefill-1 baton_prefill: stored a chunk bytes=512 job=… tenant=… trace=…`
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(Error::LogFormat { found: text.to_owned() }),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint is no URL of a gRPC receiver.
    #[error("expected an OTLP endpoint like http://localhost:4317, found {found:?}: {reason}")]
    Endpoint {
        /// As given.
        found: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The filter can't be read.
    #[error("expected a log filter like \"info\" or \"warn,baton_decode=debug\", found {found:?}: {reason}")]
    LogFilter {
        /// As given.
        found: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The word names no [`LogFormat`].
    #[error("expected the log format \"text\" or \"json\", found {found:?}")]
    LogFormat {
        /// As given.
        found: String,
    },
    /// The exporter needs a runtime to run on.
    #[error("expected to start inside a tokio runtime, which carries the spans to the endpoint, found none")]
    NoRuntime,
    /// The process has a subscriber already.
    #[error("telemetry starts once a process, and a subscriber or logger is already installed")]
    AlreadyStarted(#[from] TryInitError),
}

/// Installs the subscriber and the propagator for the whole process, and the exporter when there is an endpoint. Nothing
/// is installed when it fails. An endpoint that can't be reached is no failure: a warning on stderr tells now and then.
///
/// Every span of level info and above is exported, unless its remote parent says that the trace is not sampled.
pub fn start(options: Options) -> Result<Guard, Error> {
    let log = filter::lines(&options.log)?;
    let provider = export::provider(&options)?;
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("baton"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(filter::spans());
    let coloured = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let ansi = coloured && options.log_format == LogFormat::Text && std::io::stderr().is_terminal();
    let lines = Lines::new(options.log_format, ansi, options.service, options.instance, std::io::stderr);

    tracing_subscriber::registry().with(spans).with(lines.with_filter(log)).try_init()?;
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    Ok(Guard { provider: options.otlp_endpoint.is_some().then_some(provider) })
}

/// Keeps the exporter; end it with [`Guard::shutdown`] as the process's last act.
#[derive(Debug)]
#[must_use = "dropping the guard ends the export of spans"]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Guard {
    /// Sends the spans that ended so far and stops exporting, within [`SHUTDOWN_DEADLINE`]. What could not be sent by
    /// then is lost, and a warning says so.
    pub async fn shutdown(self) {
        self.shutdown_within(SHUTDOWN_DEADLINE).await;
    }

    /// The same within another deadline, for a command whose user waits.
    pub async fn shutdown_within(mut self, deadline: Duration) {
        let Some(provider) = self.provider.take() else { return };
        // The exporter's thread needs this runtime to send, so the wait for it must not hold one of its workers.
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(deadline)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(error = %causes(&error), "lost the last spans at shutdown");
        }
    }
}

impl Drop for Guard {
    /// Tries what [`Guard::shutdown`] does, for at most a second. On a single-threaded runtime nothing can be sent
    /// while this blocks, so that second is lost there.
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take()
            && let Err(error) = provider.shutdown_with_timeout(DROP_DEADLINE)
        {
            tracing::warn!(error = %causes(&error), "lost the last spans at exit");
        }
    }
}
