//! The first jobs that wait under a subject, read in one round trip without taking them.

use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use baton_contract::{causes, subject::broker};
use futures::StreamExt;
use serde_json::json;
use tokio::time::timeout;

use crate::{Bus, Error};

/// The broker answers at once; beyond this the answer was lost with a connection.
const ANSWER: Duration = Duration::from_secs(5);
/// How the broker says that there is no more.
const END: u16 = 204;
/// How it says that there is nothing.
const NOTHING: u16 = 404;

impl Bus {
    /// The oldest `count` messages of a subject of the waiting stream, or those until they have more than `bytes`, but at least
    /// one if there is one.
    pub(super) async fn heads(&self, subject: &str, count: u64, bytes: u64) -> Result<Vec<StreamMessage>, Error> {
        let unreadable = |message: String| Error::Read { what: format!("what waits under {subject}"), message };
        let inbox = self.client.new_inbox();
        let answers = self.client.subscribe(inbox.clone()).await;
        let mut answers = answers.map_err(|error| unreadable(causes(&error)))?;
        let asked = json!({ "batch": count, "max_bytes": bytes, "seq": 1, "next_by_subj": subject }).to_string();
        let service = broker::direct_get(&self.layout.waiting_stream());
        let sent = self.client.publish_with_reply(service, inbox, asked.into()).await;
        sent.map_err(|error| unreadable(causes(&error)))?;
        let mut heads = Vec::new();
        loop {
            let answer = timeout(ANSWER, answers.next()).await;
            let answer = answer.map_err(|_| unreadable("the broker did not answer in time".into()))?;
            let answer = answer.ok_or_else(|| unreadable("the connection was closed".into()))?;
            match answer.status {
                None => heads.push(StreamMessage::try_from(answer).map_err(|error| unreadable(causes(&error)))?),
                Some(status) if matches!(status.as_u16(), END | NOTHING) => return Ok(heads),
                Some(status) => {
                    let described = answer.description.unwrap_or_default();
                    return Err(unreadable(format!("the broker answered with status {status} {described}")));
                }
            }
        }
    }

    /// Removes a message of the waiting stream, if it is still there.
    pub(super) async fn remove_waiting(&self, sequence: u64) -> Result<(), Error> {
        let stream = self.layout.waiting_stream();
        let unremovable =
            |message: String| Error::Publish { subject: format!("{stream} (remove {sequence})"), message };
        // What was overwritten before it is removed would be read by nobody either, and costs the broker two writes.
        let asked = json!({ "seq": sequence, "no_erase": true });
        let answer = self.jetstream.request(broker::message_delete(&stream), &asked).await;
        // An answer that it is not there is as good as one that it is gone.
        let _: serde_json::Value = answer.map_err(|error| unremovable(causes(&error)))?;
        Ok(())
    }
}
