//! What the gateway counts, as Prometheus reads it.

mod engines;
mod pipeline;

use std::{fmt, sync::Arc, time::Duration};

use baton_contract::stats::Snapshot;
use prometheus_client::{
    encoding::{
        EncodeLabelSet,
        text::{encode_eof, encode_registry},
    },
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    method: String,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    route: String,
}

/// What came of a try to call a webhook.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Called {
    Sent,
    /// It is tried again.
    Failed,
    /// The keys file has none of the tenant; another gateway's may.
    Unknown,
    GivenUp,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

impl Called {
    fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::GivenUp => "given_up",
        }
    }
}

/// What is counted. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Metrics(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    registry: Registry,
    requests: Family<Answered, Counter>,
    seconds: Family<Route, Histogram>,
    first_token_seconds: Histogram,
    streams: Gauge,
    cancelled: Counter,
    webhooks: Family<Outcome, Counter>,
    webhooks_waiting: Gauge,
}

/// One open stream, as long as it lives.
#[derive(Debug)]
pub(crate) struct OpenStream(Gauge);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// From 1 ms to half an hour.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 21))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("baton_gateway");
        let requests = Family::<Answered, Counter>::default();
        let time = Family::<Route, Histogram>::new_with_constructor(seconds);
        let (first, streams, cancelled) = (seconds(), Gauge::default(), Counter::default());
        registry.register("requests", "Requests that were answered", requests.clone());
        registry.register("request_seconds", "Time until the head of the answer", time.clone());
        registry.register("first_token_seconds", "Time until the first token of a stream was sent", first.clone());
        registry.register("open_streams", "Streams that are open", streams.clone());
        registry.register("cancelled_jobs", "Jobs that were cancelled because their client left", cancelled.clone());
        let (webhooks, webhooks_waiting) = (Family::default(), Gauge::default());
        registry.register("webhook_calls", "Tries to call a webhook, by what came of them", webhooks.clone());
        registry.register(
            "webhooks_waiting",
            "Webhooks of the pipeline that are to be called",
            webhooks_waiting.clone(),
        );
        Self(Arc::new(Counted {
            registry,
            requests,
            seconds: time,
            first_token_seconds: first,
            streams,
            cancelled,
            webhooks,
            webhooks_waiting,
        }))
    }

    pub(crate) fn answered(&self, method: &str, route: Option<&str>, status: u16, took: Duration) {
        // Methods and paths are the caller's words; what is not ours is one of a kind.
        let method = if matches!(method, "GET" | "POST" | "DELETE") { method } else { "other" };
        let route = route.unwrap_or("none").to_owned();
        let answered = Answered { method: method.to_owned(), route: route.clone(), status };
        self.0.requests.get_or_create(&answered).inc();
        self.0.seconds.get_or_create(&Route { route }).observe(took.as_secs_f64());
    }

    pub(crate) fn open_stream(&self) -> OpenStream {
        self.0.streams.inc();
        OpenStream(self.0.streams.clone())
    }

    pub(crate) fn first_token(&self, took: Duration) {
        self.0.first_token_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn webhook(&self, outcome: Called) {
        self.0.webhooks.get_or_create(&Outcome { outcome: outcome.as_str() }).inc();
    }

    pub(crate) fn webhooks_waiting(&self, waiting: u64) {
        self.0.webhooks_waiting.set(waiting.try_into().unwrap_or(i64::MAX));
    }

    pub(crate) fn cancelled(&self) {
        self.0.cancelled.inc();
    }

    /// What was counted here, and how the pipeline is doing if that is known.
    pub(crate) fn text(&self, pipeline: Option<&Snapshot>) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.0.registry)?;
        encode_registry(&mut text, &pipeline::registry(pipeline))?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}
