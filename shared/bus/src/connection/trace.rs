//! W3C trace context in message headers: `traceparent` and `tracestate`.

use async_nats::HeaderMap;
use baton_contract::header;
use opentelemetry::{
    Context, global,
    propagation::{Extractor, Injector},
};
use tracing_opentelemetry::OpenTelemetrySpanExt;

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|value| value.as_str())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_ref()).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        self.0.insert(key, value);
    }
}

/// Makes `span` a child of the trace that the headers carry, if they carry one. To be called before the span is entered.
pub fn continue_from(span: &tracing::Span, headers: Option<&HeaderMap>) {
    if let Some(headers) = headers {
        let context = global::get_text_map_propagator(|propagator| {
            // From an empty context: a message without a trace must not join whatever span is entered here.
            propagator.extract_with_context(&Context::new(), &Headers(headers))
        });
        // It fails only where no telemetry is installed, and then there is no trace to continue.
        let _ = span.set_parent(context);
    }
}

/// Takes the trace of a message over to another one.
pub fn copy(from: Option<&HeaderMap>, to: &mut HeaderMap) {
    for name in [header::TRACEPARENT, header::TRACESTATE] {
        if let Some(value) = from.and_then(|headers| headers.get(name)) {
            to.insert(name, value.as_str());
        }
    }
}

/// Headers that continue the trace of `span`.
pub fn headers_of(span: &tracing::Span) -> HeaderMap {
    let mut headers = HeaderMap::new();
    inject(&span.context(), &mut headers);
    headers
}

/// The same for another protocol than the broker's.
pub fn pairs_of(span: &tracing::Span) -> Vec<(String, String)> {
    let headers = headers_of(span);
    headers.iter().flat_map(|(name, values)| values.iter().map(|value| (name.to_string(), value.to_string()))).collect()
}

fn inject(context: &Context, headers: &mut HeaderMap) {
    global::get_text_map_propagator(|propagator| propagator.inject_context(context, &mut HeadersMut(headers)));
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
    use opentelemetry_sdk::propagation::TraceContextPropagator;

    use super::*;

    #[test]
    fn a_context_survives_the_headers() {
        global::set_text_map_propagator(TraceContextPropagator::new());
        let sent = SpanContext::new(
            TraceId::from(0x0af7651916cd43dd8448eb211c80319c),
            SpanId::from(0xb7ad6b7169203331),
            TraceFlags::SAMPLED,
            true,
            TraceState::from_key_value([("vendor", "value")]).unwrap(),
        );
        let mut headers = HeaderMap::new();
        inject(&Context::new().with_remote_span_context(sent.clone()), &mut headers);
        let parent = headers.get("traceparent").unwrap().as_str();
        assert_eq!(parent, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        let context = global::get_text_map_propagator(|propagator| propagator.extract(&Headers(&headers)));
        assert_eq!(context.span().span_context(), &sent);
    }
}
