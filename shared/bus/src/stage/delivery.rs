//! A message in a worker's hands, and how it leaves them.

use std::time::Duration;

use async_nats::{HeaderMap, jetstream::AckKind};
use baton_contract::{JobKey, causes, header, message_id, subject::Layout};
use tokio::time::Instant;

use crate::Error;

/// One delivery of a message.
pub struct Delivery {
    client: async_nats::Client,
    message: async_nats::jetstream::Message,
    /// The message's sequence in its stream.
    pub sequence: u64,
    /// How often the broker has delivered the message, this time included.
    pub attempt: u64,
    /// When the broker stored the message, in milliseconds since 1970.
    pub published_ms: u64,
    /// When this worker got it.
    pub(crate) received: Instant,
}

/// What becomes of a delivered message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settle {
    /// Done, and its successor is durable: remove it, and wait until the broker has.
    Ack,
    /// Deliver it again, after a pause if one is given.
    Nak(Option<Duration>),
    /// Never deliver it again.
    Term,
    /// Another delivery of the same message is at work: touch nothing.
    Leave,
}

impl Delivery {
    pub(crate) fn new(message: async_nats::jetstream::Message, client: &async_nats::Client) -> Result<Self, Error> {
        let info = message.info().map_err(|error| Error::Read {
            what: "a message's delivery data".into(),
            message: causes(error.as_ref()),
        })?;
        let sequence = info.stream_sequence;
        let attempt = info.delivered.max(1) as u64;
        let published_ms = (info.published.unix_timestamp_nanos() / 1_000_000) as u64;
        Ok(Self { client: client.clone(), received: Instant::now(), sequence, attempt, published_ms, message })
    }

    /// The subject that the message was published to.
    pub fn subject(&self) -> &str {
        self.message.subject.as_str()
    }

    /// The message's bytes.
    pub fn payload(&self) -> &[u8] {
        &self.message.payload
    }

    /// The message's headers, if it has any.
    pub fn headers(&self) -> Option<&HeaderMap> {
        self.message.headers.as_ref()
    }

    pub(crate) async fn heartbeat(&self) {
        if let Err(error) = self.message.ack_with(AckKind::Progress).await {
            tracing::warn!(error = %causes(error.as_ref()), "a heartbeat was not sent; the broker may deliver the message again");
        }
    }

    /// Acknowledges, and waits until the broker has noted it; unlike the client's own way without a subscription for each.
    async fn double_ack(&self) -> Result<(), async_nats::Error> {
        let reply = self.message.reply.clone().ok_or("a message without a subject to answer to")?;
        self.client.request(reply, AckKind::Ack.into()).await?;
        Ok(())
    }

    pub(crate) async fn settle(&self, settle: Settle) {
        let done = match settle {
            Settle::Ack => self.double_ack().await,
            Settle::Nak(pause) => self.message.ack_with(AckKind::Nak(pause)).await,
            Settle::Term => self.message.ack_with(AckKind::Term).await,
            Settle::Leave => Ok(()),
        };
        if let Err(error) = done {
            // The broker delivers the message again, and the claim shows then that its work is done.
            tracing::warn!(error = %causes(error.as_ref()), subject = self.subject(), "a message was not settled");
        }
    }
}

/// The job of a message in a stage's queue, by the id that it was published with: whatever the message says, its publisher
/// was of this pipeline, for no other may publish there.
pub(crate) fn job_of(subject: &str, headers: Option<&HeaderMap>) -> Option<JobKey> {
    let (_, _, owner) = Layout::parse_place(subject)?;
    let key = message_id::parse_job(headers?.get(header::MESSAGE_ID)?.as_str())?;
    (key.tenant == owner).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_its_tenants_job_only() {
        let headers = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::MESSAGE_ID, id);
            headers
        };
        let job = |id: &str| job_of("baton.decode.sim.batch.acme", Some(&headers(id))).map(|key| key.to_string());
        assert_eq!(job("acme/report-7/prefill/12").as_deref(), Some("acme/report-7"));
        assert_eq!(job("acme/report-7/ingest/3-1700000000000").as_deref(), Some("acme/report-7"));
        for other in ["zeta/report-7/prefill/12", "acme/report-7", "report-7", "retry/12", "acme/a.b/ingest"] {
            assert_eq!(job(other), None, "{other}");
        }
        assert_eq!(job_of("baton.decode.sim.batch.acme", None), None);
    }
}
