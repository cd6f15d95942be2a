//! Requests: whose job one is, how it is submitted, and how its sender is refused.

use async_nats::{
    HeaderMap,
    jetstream::{Context, ErrorCode, context::GetStreamErrorKind},
};
use baton_contract::{
    JobId, Name, causes, header,
    outcome::Refusal,
    request,
    subject::{Layout, Stage},
};

use crate::{Because, Bus, Error, bus::publish_durably, connection::trace};

/// A request as it lies in the broker.
pub struct Request<'a> {
    /// Where it was published.
    pub subject: &'a str,
    /// Its headers, if it has any.
    pub headers: Option<&'a HeaderMap>,
    /// Its bytes, which may be anything.
    pub body: &'a [u8],
    /// When the broker stored it, in milliseconds since 1970.
    pub published_ms: u64,
    /// Its place in the request stream.
    pub sequence: u64,
}

/// Whose job a request is.
pub struct Address {
    /// Whose request it is.
    pub tenant: Name,
    /// The lane that it was submitted to.
    pub lane: Name,
    /// The job that it is.
    pub id: JobId,
}

impl Request<'_> {
    /// Whose job it is, and which: the one that its body names, or else a header, or else its place. Nothing if the
    /// subject is not one for requests.
    pub fn address(&self, layout: &Layout) -> Option<Address> {
        let (tenant, lane) = layout.parse_request(self.subject)?;
        let header = || JobId::new(self.headers?.get(header::JOB_ID)?.as_str()).ok();
        let place = || JobId::for_message(self.published_ms, &layout.stage_stream(Stage::Ingest), self.sequence);
        let id = request::id_hint(self.body).or_else(header).unwrap_or_else(place);
        Some(Address { tenant, lane, id })
    }
}

impl Bus {
    /// Publishes a request durably; returns its sequence in the request stream. The trace of the current span goes with it.
    /// A full queue is [`Error::TryLater`]: a request that names its id may be submitted again until it is taken, also if
    /// it is not known whether it was.
    pub async fn submit(&self, tenant: &Name, lane: &Name, body: Vec<u8>) -> Result<u64, Error> {
        self.submit_on(&self.jetstream, tenant, lane, body).await
    }

    /// The same on one of the connections.
    pub(crate) async fn submit_on(
        &self,
        connection: &Context,
        tenant: &Name,
        lane: &Name,
        body: Vec<u8>,
    ) -> Result<u64, Error> {
        let headers = trace::headers_of(&tracing::Span::current());
        let submitted = publish_durably(connection, self.layout.request(tenant, lane), headers, body.into()).await;
        match submitted {
            Err(error @ Error::TryLater { because: Because::NobodyTakesIt, .. }) => {
                Err(self.unserved(lane, error).await)
            }
            submitted => submitted,
        }
    }

    /// Tells the sender of a request that its id belongs to another one. That is kept as long as results.
    pub async fn refuse(&self, refusal: &Refusal) -> Result<(), Error> {
        let subject = self.layout.refusal(&refusal.tenant, &refusal.id, &refusal.request_digest);
        let failed = |message: String| Error::Publish { subject: subject.clone(), message };
        let payload = serde_json::to_vec(refusal).map_err(|error| failed(causes(&error)))?;
        // Not only the first time: whoever submits it again follows from then on.
        self.publish_durably(subject, None, trace::headers_of(&tracing::Span::current()), payload).await.map(drop)
    }

    /// Why nobody takes requests in a lane: there is no such lane, or no such stream; otherwise its broker is choosing a leader.
    async fn unserved(&self, lane: &Name, refused: Error) -> Error {
        let stream = self.jetstream.get_stream(self.layout.stage_stream(Stage::Ingest)).await;
        let subjects = match &stream {
            Ok(stream) => &stream.cached_info().config.subjects,
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(told) if told.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    return Error::NotProvisioned { root: self.layout.root().clone(), message: causes(error) };
                }
                _ => return refused,
            },
        };
        match self.layout.parse_request_subjects(subjects.iter().map(String::as_str)) {
            Some(lanes) if !lanes.contains(lane) => {
                let lanes = lanes.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
                Error::UnknownLane { lane: lane.clone(), lanes }
            }
            _ => refused,
        }
    }
}
