//! What waits, and what is on its way through the stages: a look at the streams' and consumers' counts.

use std::collections::{BTreeMap, HashMap};

use async_nats::jetstream::response::Response;
use baton_contract::{
    Name, causes,
    subject::{Layout, Stage, broker},
};
use futures::future::try_join_all;
use serde::Deserialize;
use serde_json::json;
use tokio::try_join;

use crate::{Bus, Error, stage::queue::Queue, tenants::model_lane::ModelLane};

/// Jobs of a line that may wait in the stages' queues in any case.
const SHORT: u64 = 64;
/// Up to so many jobs in the queues it is not asked how many of them workers hold.
const FEW: u64 = 16;

/// The lines that have jobs.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) lines: BTreeMap<ModelLane, Lengths>,
}

/// The jobs of a line.
#[derive(Debug, Default)]
pub(super) struct Lengths {
    /// Jobs that wait for their turn, of each tenant.
    pub(super) waiting: BTreeMap<Name, u64>,
    /// Jobs in the stages' queues, those that workers hold included, of each tenant.
    pub(super) ahead: BTreeMap<Name, u64>,
    /// Those of them that workers hold.
    held: u64,
}

impl Lengths {
    /// Jobs that may be passed on now. The queues hold as much as keeps the workers busy while more is fetched: twice of
    /// what they have in hand.
    pub(super) fn room(&self) -> u64 {
        let queued = self.queued().saturating_sub(self.held);
        SHORT.max(2 * self.held).saturating_sub(queued)
    }

    fn queued(&self) -> u64 {
        self.ahead.values().sum()
    }
}

/// The part of an answer about a stream that says what lies under which subject.
#[derive(Deserialize)]
struct Info {
    state: State,
    /// Subjects there are; one answer may have fewer.
    #[serde(default)]
    total: usize,
}

#[derive(Deserialize)]
struct State {
    #[serde(default)]
    subjects: Option<HashMap<String, u64>>,
}

/// The part of an answer about a consumer that says what workers hold. That there is no such consumer says it, too: nobody
/// has ever taken from that queue.
#[derive(Deserialize)]
struct Consumer {
    #[serde(default)]
    num_ack_pending: u64,
}

impl Bus {
    /// Looks at all lines. What passes from one queue to the next meanwhile may be counted twice or, as a successor is there
    /// before its predecessor goes, at least once.
    pub(super) async fn reading(&self) -> Result<Reading, Error> {
        let layout = &self.layout;
        let (waiting, prefill, decode) = try_join!(
            self.counts(layout.waiting_stream()),
            self.counts(layout.stage_stream(Stage::Prefill)),
            self.counts(layout.stage_stream(Stage::Decode)),
        )?;
        let mut reading = Reading::default();
        for (line, tenant, jobs) in waiting {
            reading.lines.entry(line).or_default().waiting.insert(tenant, jobs);
        }
        for (line, tenant, jobs) in prefill.into_iter().chain(decode) {
            *reading.lines.entry(line).or_default().ahead.entry(tenant).or_default() += jobs;
        }
        // Where so few are queued, there is much room whatever is held.
        let long = reading.lines.iter_mut().filter(|(_, lengths)| lengths.queued() >= FEW);
        try_join_all(long.map(|(line, lengths)| async {
            let (prefill, decode) = try_join!(self.held(Stage::Prefill, line), self.held(Stage::Decode, line))?;
            lengths.held = prefill + decode;
            Ok::<_, Error>(())
        }))
        .await?;
        Ok(reading)
    }

    /// The messages of a stream by what their subjects say.
    pub(crate) async fn counts(&self, stream: String) -> Result<Vec<(ModelLane, Name, u64)>, Error> {
        let unreadable = |message: String| Error::Read { what: format!("the state of stream {stream}"), message };
        let mut counts = Vec::new();
        let mut seen = 0;
        loop {
            let asked = json!({ "subjects_filter": ">", "offset": seen });
            let answer = self.jetstream.request(broker::stream_info(&stream), &asked).await;
            let info: Info = match answer.map_err(|error| unreadable(causes(&error)))? {
                Response::Ok(info) => info,
                Response::Err { error } => return Err(unreadable(causes(&error))),
            };
            let subjects = info.state.subjects.unwrap_or_default();
            seen += subjects.len();
            let more = !subjects.is_empty() && seen < info.total;
            counts.extend(subjects.into_iter().filter_map(|(subject, jobs)| {
                let (model, lane, tenant) = Layout::parse_place(&subject)?;
                Some((ModelLane { model, lane }, tenant, jobs))
            }));
            if !more {
                return Ok(counts);
            }
        }
    }

    async fn held(&self, stage: Stage, line: &ModelLane) -> Result<u64, Error> {
        let queue = Queue::of(stage, &line.model, &line.lane);
        let asked = broker::consumer_info(&self.layout.stage_stream(stage), &queue.durable());
        let answer: Result<Consumer, _> = self.jetstream.request(asked, &json!({})).await;
        let unreadable = |message: String| Error::Read { what: format!("the queue {}", queue.durable()), message };
        Ok(answer.map_err(|error| unreadable(causes(&error)))?.num_ack_pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queues_are_short_in_proportion_to_what_workers_hold() {
        let lengths = |queued: u64, held| {
            let ahead = BTreeMap::from([(Name::new("acme").unwrap(), queued)]);
            Lengths { ahead, held, ..Lengths::default() }
        };
        for (queued, held, room) in
            [(0, 0, 64), (63, 0, 1), (64, 0, 0), (500, 0, 0), (64, 64, 128), (300, 100, 0), (299, 100, 1)]
        {
            assert_eq!(lengths(queued, held).room(), room, "{queued} queued, {held} held");
        }
    }
}
