//! From ended spans to the OTLP endpoint.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use baton_contract::causes;
use opentelemetry::KeyValue;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::{Error, Options};

/// How long ended spans are gathered before they are sent.
const BATCH_DELAY: Duration = Duration::from_secs(1);

/// The longest that sending one batch takes, connecting and retrying included.
const EXPORT_DEADLINE: Duration = Duration::from_secs(3);

/// Between two warnings about an endpoint that takes nothing.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Makes span contexts, and exports what ends when there is an endpoint.
pub(crate) fn provider(options: &Options) -> Result<SdkTracerProvider, Error> {
    let resource = Resource::builder()
        .with_service_name(options.service.clone())
        .with_attribute(KeyValue::new("service.instance.id", options.instance.clone()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let builder = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
        .with_resource(resource);
    let Some(endpoint) = &options.otlp_endpoint else { return Ok(builder.build()) };

    let batch = BatchConfigBuilder::default().with_scheduled_delay(BATCH_DELAY).build();
    Ok(builder.with_span_processor(BatchSpanProcessor::new(Patient::new(endpoint)?, batch)).build())
}

/// The OTLP exporter, with a deadline that covers connecting, and a warning now and then instead of silence.
struct Patient {
    inner: opentelemetry_otlp::SpanExporter,
    endpoint: String,
    runtime: Handle,
    losses: Mutex<Losses>,
}

impl Patient {
    fn new(endpoint: &str) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Endpoint { found: endpoint.to_owned(), reason };
        check(endpoint).map_err(|reason| refuse(reason.to_owned()))?;
        let runtime = Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let mut builder = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_DEADLINE);
        if endpoint.starts_with("https://") {
            builder = builder.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
        }
        let inner = builder.build().map_err(|error| refuse(causes(&error)))?;
        Ok(Self { inner, endpoint: endpoint.to_owned(), runtime, losses: Mutex::default() })
    }

    /// The sender's own time-out starts only when a connection stands, which a silent peer can delay for minutes.
    async fn send(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let deadline = {
            // The batch processor polls from a thread of its own, outside any runtime.
            let _entered = self.runtime.enter();
            tokio::time::sleep(EXPORT_DEADLINE)
        };
        tokio::select! {
            sent = self.inner.export(batch) => sent,
            () = deadline => Err(OTelSdkError::Timeout(EXPORT_DEADLINE)),
        }
    }
}

impl SpanExporter for Patient {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let sent = self.send(batch).await;
        if let Err(error) = &sent {
            let told = self.losses.lock().unwrap_or_else(PoisonError::into_inner).count(spans, Instant::now());
            if let Some(lost) = told {
                tracing::warn!(endpoint = self.endpoint, lost, error = %causes(error), "could not export spans");
            }
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl fmt::Debug for Patient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patient").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// Spans lost since the last warning.
#[derive(Default)]
struct Losses {
    spans: u64,
    told: Option<Instant>,
}

impl Losses {
    /// Counts `spans` as lost; gives the number to warn about when a warning is due.
    fn count(&mut self, spans: u64, now: Instant) -> Option<u64> {
        self.spans += spans;
        if self.told.is_some_and(|told| now.duration_since(told) < WARNING_INTERVAL) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.spans))
    }
}

/// Refuses what the exporter would take in silence and never reach.
fn check(endpoint: &str) -> Result<(), &'static str> {
    let authority = endpoint
        .strip_prefix("http://")
        .or_else(|| endpoint.strip_prefix("https://"))
        .ok_or("it must begin with http:// or https://")?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if authority.contains(['/', '?', '#']) {
        return Err("spans go by gRPC, which has no path; give scheme, host and port only");
    }
    if authority.contains('@') {
        return Err("user and password are not supported; set OTEL_EXPORTER_OTLP_HEADERS instead");
    }
    // A colon inside the brackets of an IPv6 address begins no port.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    if host.is_empty() {
        return Err("the host is missing");
    }
    if port.is_some_and(|port| !matches!(port.parse::<u16>(), Ok(1..))) {
        return Err("the port must be a number from 1 to 65535");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warns_at_once_then_once_an_interval_with_all_that_was_lost() {
        let start = Instant::now();
        let mut losses = Losses::default();
        assert_eq!(losses.count(3, start), Some(3));
        assert_eq!(losses.count(4, start + WARNING_INTERVAL / 3), None);
        assert_eq!(losses.count(5, start + WARNING_INTERVAL / 2), None);
        assert_eq!(losses.count(1, start + WARNING_INTERVAL), Some(10));
        assert_eq!(losses.count(2, start + WARNING_INTERVAL * 3 / 2), None);
    }
}
