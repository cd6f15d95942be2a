//! How long the jobs of a queue have waited for a worker.

use std::time::Duration;

use async_nats::jetstream::stream::RawMessageErrorKind;
use baton_contract::{Name, causes, subject::Stage};

use super::queue_peek::stored_ms;
use crate::{Bus, Error, stage::queue::Queue};

impl Bus {
    /// For how long the oldest job of a model's queue, in whichever lane, has waited for a worker that takes it; nothing if none
    /// waits. Jobs that were given back to wait for something are not counted.
    pub async fn longest_wait(&self, stage: Stage, model: &Name, lanes: &[Name]) -> Result<Duration, Error> {
        let name = self.layout.stage_stream(stage);
        let failed = |message: String| Error::Read { what: format!("the queues of stream {name}"), message };
        let stream = self.jetstream.get_stream_no_info(&name).await.map_err(|error| failed(causes(&error)))?;
        let mut oldest = None;
        for lane in lanes {
            let queue = Queue::of(stage, model, lane);
            let consumer = match stream.consumer_info(queue.durable()).await {
                Ok(consumer) => consumer,
                // Whoever takes from it makes it first.
                Err(_) => continue,
            };
            if consumer.num_pending == 0 {
                continue;
            }
            let next = consumer.delivered.stream_sequence + 1;
            match stream.get_first_raw_message_by_subject(queue.subject(&self.layout), next).await {
                Ok(message) => oldest = oldest.into_iter().chain([stored_ms(&message)]).min(),
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {}
                Err(error) => return Err(failed(causes(&error))),
            }
        }
        match oldest {
            Some(stored) => Ok(Duration::from_millis(self.clock().now_ms().await?.saturating_sub(stored))),
            None => Ok(Duration::ZERO),
        }
    }
}
