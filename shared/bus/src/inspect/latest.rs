//! A tenant's latest results, for whoever has not followed it.

use std::collections::VecDeque;

use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
    stream::Stream as JetStream,
};
use baton_contract::{Name, causes, outcome::Outcome};
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::Duration;

use crate::{Bus, Error};

/// How many more results are read than are wanted, at most: finding the place where exactly so many follow costs more.
const SLACK: u64 = 4;
/// How often a better place is looked for.
const LOOKS: usize = 40;
/// The broker forgets a place that was looked at after so long, should we not say so.
const FORGET: Duration = Duration::from_secs(5);

/// Where to begin to read: results of others lie between a tenant's.
#[derive(Debug)]
struct Search {
    first: u64,
    end: u64,
    wanted: u64,
    /// From here on there are too few.
    few: u64,
    /// From here on there are enough.
    enough: Option<u64>,
    at: u64,
}

impl Search {
    fn new(first: u64, last: u64, wanted: u64) -> Self {
        let end = last.saturating_add(1);
        Self { first, end, wanted, few: end, enough: None, at: end.saturating_sub(wanted).max(first) }
    }

    /// Goes on after `found` results from `at` on; false if that is a good place to begin.
    fn goes_on(&mut self, found: u64) -> bool {
        if found < self.wanted {
            if self.at <= self.first {
                return false;
            }
            self.few = self.at;
        } else if found <= self.wanted.saturating_mul(SLACK) {
            return false;
        } else {
            self.enough = Some(self.at);
        }
        let next = match self.enough {
            Some(enough) => enough + (self.few - enough) / 2,
            // Not a step back but a leap: a quiet tenant's last results may be long ago.
            None => self.end.saturating_sub((self.end - self.at).saturating_mul(8)).max(self.first),
        };
        std::mem::replace(&mut self.at, next) != next
    }
}

impl Bus {
    /// The last `limit` results of a tenant, the newest first, in the order in which the jobs ended.
    pub async fn recent_results(&self, tenant: &Name, limit: usize) -> Result<Vec<Outcome>, Error> {
        let failed = |message: String| Error::Read { what: format!("the last results of tenant {tenant}"), message };
        let stream = self.jetstream.get_stream(self.layout.result_stream()).await;
        let stream = stream.map_err(|error| failed(causes(&error)))?;
        let state = &stream.cached_info().state;
        let mut search = Search::new(state.first_sequence, state.last_sequence, limit as u64);
        let subject = self.layout.results(tenant);
        for _ in 0..LOOKS {
            let consumer = from(&stream, &subject, search.at).await.map_err(&failed)?;
            let info = consumer.cached_info();
            let (name, found) = (info.name.clone(), info.num_pending);
            let goes_on = search.goes_on(found);
            let read = if goes_on { Ok(Vec::new()) } else { last_of(&consumer, found, limit).await };
            // It would go by itself soon.
            let _ = stream.delete_consumer(&name).await;
            if !goes_on {
                let read = read.map_err(&failed)?;
                return read
                    .iter()
                    .map(|body| serde_json::from_slice(body).map_err(|error| failed(causes(&error))))
                    .collect();
            }
        }
        Ok(Vec::new())
    }
}

async fn from(stream: &JetStream, subject: &str, sequence: u64) -> Result<PullConsumer, String> {
    let config = pull::Config {
        filter_subject: subject.to_owned(),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: sequence.max(1) },
        ack_policy: AckPolicy::None,
        inactive_threshold: FORGET,
        memory_storage: true,
        num_replicas: 1,
        ..Default::default()
    };
    stream.create_consumer(config).await.map_err(|error| causes(&error))
}

/// The last `limit` of `count` messages, the last one first.
async fn last_of(consumer: &PullConsumer, count: u64, limit: usize) -> Result<Vec<Bytes>, String> {
    let mut kept = VecDeque::new();
    if count > 0 && limit > 0 {
        let batch = consumer.fetch().max_messages(count as usize).messages().await;
        let mut messages = batch.map_err(|error| causes(&error))?;
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| causes(error.as_ref()))?;
            if kept.len() == limit {
                kept.pop_front();
            }
            kept.push_back(message.payload.clone());
        }
    }
    Ok(kept.into_iter().rev().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_place_is_found_fast_with_enough_results_after_it_and_not_many_more(
            mine in proptest::collection::vec(prop_oneof![9 => Just(false), 1 => Just(true)], 0..4000),
            burst in 0..2000usize, before in 0..50_000u64, wanted in 1..100u64,
        ) {
            // The stream begins somewhere; a burst of the tenant's results, and then some of them among others'.
            let all: Vec<bool> = std::iter::repeat_n(true, burst).chain(mine).collect();
            let (first, last) = (before + 1, before + all.len() as u64);
            let after = |at: u64| all[(at.clamp(first, last + 1) - first) as usize..].iter().filter(|mine| **mine).count() as u64;
            let mut search = Search::new(first, last, wanted);
            let mut looks = 1;
            while search.goes_on(after(search.at)) {
                looks += 1;
                prop_assert!(looks <= LOOKS, "{search:?}");
            }
            let found = after(search.at);
            prop_assert!(found >= wanted.min(after(first)), "{found} of {search:?}");
            prop_assert!(found <= wanted * SLACK, "{found} of {search:?}");
        }
    }
}
