//! Which of a tenant's jobs have ended, told as it happens: names only, so that whoever follows many jobs reads each result
//! when there is room for it.

use async_nats::jetstream::consumer::{
    DeliverPolicy,
    push::{self, OrderedErrorKind},
};
use baton_contract::{JobId, Name, causes, subject::Layout};
use futures::StreamExt;

use crate::{Bus, Error};

/// The ends of a tenant's jobs after a place in the stream of results.
pub struct Ends {
    messages: push::Ordered,
}

impl Bus {
    /// The jobs of a tenant that end from now on. A job whose result is not there after this returned is told.
    pub async fn ends(&self, tenant: &Name) -> Result<Ends, Error> {
        let failed = |message: String| Error::Read { what: format!("the jobs of tenant {tenant}"), message };
        let stream = self.jetstream.get_stream(self.layout.result_stream()).await;
        let stream = stream.map_err(|error| failed(causes(&error)))?;
        let start_sequence = stream.cached_info().state.last_sequence + 1;
        let config = push::OrderedConfig {
            deliver_subject: self.client.new_inbox(),
            filter_subject: self.layout.results(tenant),
            headers_only: true,
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|error| failed(causes(&error)))?;
        let messages = consumer.messages().await.map_err(|error| failed(causes(&error)))?;
        Ok(Ends { messages })
    }
}

impl Ends {
    /// The next job that has ended, waited for, also across lost connections. One may be told twice.
    pub async fn next(&mut self) -> Result<JobId, Error> {
        let failed = |message: String| Error::Read { what: "ends of jobs".into(), message };
        loop {
            match self.messages.next().await {
                Some(Ok(message)) => {
                    if let Some((_, job)) = Layout::parse_job(&message.subject) {
                        return Ok(job);
                    }
                }
                // The consumer is made anew at the next turn.
                Some(Err(error)) if error.kind() == OrderedErrorKind::MissingHeartbeat => {}
                Some(Err(error)) => return Err(failed(causes(&error))),
                None => return Err(failed("the connection was closed".into())),
            }
        }
    }
}
