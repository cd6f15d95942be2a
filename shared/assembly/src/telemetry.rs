//! Logs and traces of a process, as the plan wants them.

use std::time::Duration;

use baton_topology::{LogFormat, Telemetry};

use crate::Error;

/// How long the user of a command waits at most for its last spans to be sent.
pub const LAST_SPANS: Duration = Duration::from_millis(500);

/// Starts logs and traces of a process that serves a pipeline.
pub fn start(settings: &Telemetry, service: &str, instance: &str) -> Result<baton_telemetry::Guard, Error> {
    let mut options = baton_telemetry::Options::new(service, instance);
    options.otlp_endpoint = settings.otlp_endpoint.clone();
    options.log = settings.log.clone();
    options.log_format = match settings.log_format {
        LogFormat::Text => baton_telemetry::LogFormat::Text,
        LogFormat::Json => baton_telemetry::LogFormat::Json,
    };
    Ok(baton_telemetry::start(options)?)
}

/// Starts them for a command whose output is its own: only warnings are logged.
pub fn start_quiet(settings: &Telemetry, service: &str, instance: &str) -> Result<baton_telemetry::Guard, Error> {
    start(&Telemetry { log: "warn".into(), ..settings.clone() }, service, instance)
}
