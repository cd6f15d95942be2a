//! A real OTLP/gRPC receiver for tests: the official `TraceService` on a free port of the loopback, collecting spans.
//! Its includer needs `opentelemetry-proto`, `tokio` and `tonic`.

use std::collections::BTreeMap;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// How long a test waits for spans before it fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// One received span; ids are lower-case hexadecimal.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "every test that includes this file reads other fields")]
pub(crate) struct Span {
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty for a root.
    pub(crate) parent: String,
    pub(crate) name: String,
    pub(crate) trace_state: String,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) events: Vec<String>,
    /// The attributes of the process that sent it.
    pub(crate) resource: BTreeMap<String, String>,
}

/// Serves until dropped.
pub(crate) struct Receiver {
    endpoint: String,
    spans: watch::Receiver<Vec<Span>>,
    server: tokio::task::JoinHandle<()>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a free port on the loopback");
        let endpoint = format!("http://{}", incoming.local_addr().expect("the address just bound"));
        let (collected, spans) = watch::channel(Vec::new());
        let service = TraceServiceServer::new(Collector { collected });
        let server = tokio::spawn(async move {
            Server::builder().add_service(service).serve_with_incoming(incoming).await.expect("the receiver serves");
        });
        Self { endpoint, spans, server }
    }

    /// What to set as OTLP endpoint.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// All spans, as soon as those received so far are `enough`.
    pub(crate) async fn wait_for(&self, enough: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let mut spans = self.spans.clone();
        let waited = tokio::time::timeout(PATIENCE, spans.wait_for(|spans| enough(spans))).await;
        match waited {
            Ok(Ok(spans)) => spans.clone(),
            _ => panic!("the awaited spans did not arrive in {PATIENCE:?}; received: {:#?}", self.spans.borrow()),
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Collector {
    collected: watch::Sender<Vec<Span>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = Vec::new();
        for process in request.into_inner().resource_spans {
            let resource = texts(process.resource.map(|resource| resource.attributes).unwrap_or_default());
            received.extend(process.scope_spans.into_iter().flat_map(|scope| scope.spans).map(|span| Span {
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                name: span.name,
                trace_state: span.trace_state,
                attributes: texts(span.attributes),
                events: span.events.into_iter().map(|event| event.name).collect(),
                resource: resource.clone(),
            }));
        }
        self.collected.send_modify(|spans| spans.extend(received));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: AnyValue| match value.value {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::BoolValue(value)) => value.to_string(),
        Some(any_value::Value::IntValue(value)) => value.to_string(),
        Some(any_value::Value::DoubleValue(value)) => value.to_string(),
        other => format!("{other:?}"),
    };
    attributes.into_iter().map(|pair| (pair.key, pair.value.map(text).unwrap_or_default())).collect()
}
