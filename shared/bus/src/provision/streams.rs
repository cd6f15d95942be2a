//! All streams and buckets of a pipeline, created and changed.

use std::time::Duration;

use async_nats::jetstream::{
    kv,
    stream::{Config, DiscardPolicy, RetentionPolicy, Source},
};
use baton_contract::{causes, envelope, subject::Stage};
use futures::{StreamExt, TryStreamExt, stream};

use crate::{
    Bus, Error, Retention,
    gateways::errands,
    provision::wanted::{AT_ONCE, Change, Wanted},
    stage::large,
};

/// The shortest time for which a broker before 2.14 lets a stream remember message ids; no time at all means two minutes to it.
const SHORTEST_WINDOW: Duration = Duration::from_millis(100);
impl Bus {
    /// Creates what is missing of the pipeline's streams and buckets, and changes nothing that stands, whatever it is like. Returns
    /// what it created.
    pub async fn provision(&self, retention: &Retention) -> Result<Vec<Change>, Error> {
        // All at once: beside a broker that has faults, what takes long hardly ever comes to its end.
        let created = stream::iter(self.wanted(retention)).map(async |wanted| self.create_missing(&wanted).await);
        created.buffered(AT_ONCE).try_filter_map(async |change| Ok(change)).try_collect().await
    }

    /// Creates what is missing and brings what stands to this configuration. Returns what it did.
    pub async fn apply(&self, retention: &Retention) -> Result<Vec<Change>, Error> {
        let mut changes = Vec::new();
        for wanted in self.wanted(retention) {
            match self.standing(&wanted).await? {
                None => changes.extend(self.create_missing(&wanted).await?),
                Some(standing) => {
                    let (next, differences) = wanted.over(&standing)?;
                    if !differences.is_empty() {
                        let updated = self.jetstream.update_stream(next).await;
                        updated.map_err(|error| wanted.failed(causes(&error)))?;
                        changes.extend(differences);
                    }
                }
            }
        }
        Ok(changes)
    }

    /// What [`Bus::apply`] would do.
    pub async fn compare(&self, retention: &Retention) -> Result<Vec<Change>, Error> {
        let mut changes = Vec::new();
        for wanted in self.wanted(retention) {
            match self.standing(&wanted).await? {
                None => changes.push(Change::Created { what: wanted.what }),
                Some(standing) => changes.extend(wanted.over(&standing)?.1),
            }
        }
        Ok(changes)
    }

    /// All streams and buckets of a pipeline, whichever process uses them.
    fn wanted(&self, retention: &Retention) -> Vec<Wanted> {
        let mut wanted: Vec<_> = self.streams(retention).into_iter().map(Wanted::stream).collect();
        let replicas = retention.replicas;
        for kind in errands::Kind::ALL {
            wanted.push(Wanted::stream(kind.config(&self.layout, replicas)));
        }
        wanted.push(Wanted::stream(large::stream(&self.layout, retention.results, replicas)));
        let bucket = |bucket: String, description: &str| {
            let max_age = retention.results;
            let description = description.to_owned();
            Wanted::bucket(kv::Config {
                bucket,
                description,
                history: 1,
                max_age,
                num_replicas: replicas,
                ..Default::default()
            })
        };
        wanted.push(bucket(self.layout.job_bucket(), "what is known about each job"));
        wanted.push(bucket(self.layout.checkpoint_bucket(), "what running answers have come to"));
        wanted.push(Wanted::bucket(self.settings_keeping(replicas)));
        wanted.push(Wanted::bucket(self.file_keeping(replicas).config()));
        wanted.push(Wanted::bucket(self.batch_keeping(replicas).config()));
        wanted
    }

    fn streams(&self, retention: &Retention) -> Vec<Config> {
        let layout = &self.layout;
        let clamped = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let defaults = || Config {
            max_message_size: envelope::MAX_BYTES as i32,
            num_replicas: retention.replicas,
            ..Default::default()
        };
        let backlog = || Config {
            discard: DiscardPolicy::New,
            max_messages: clamped(retention.backlog.messages),
            max_bytes: retention.backlog.bytes.map_or(-1, clamped),
            ..defaults()
        };
        // Where a subject is a tenant's, and what lies there waits for its turn.
        let of_tenants = || Config {
            discard_new_per_subject: retention.backlog.of_tenant.is_some(),
            max_messages_per_subject: retention.backlog.of_tenant.map_or(-1, clamped),
            ..backlog()
        };
        let queue = |stage| Config {
            name: layout.stage_stream(stage),
            subjects: match stage {
                Stage::Ingest => layout.request_subjects(&retention.lanes),
                Stage::Prefill | Stage::Decode => vec![layout.stage_subjects(stage)],
            },
            retention: RetentionPolicy::WorkQueue,
            ..if stage == Stage::Ingest { self.forgetting_ids(of_tenants()) } else { backlog() }
        };
        let kept = |name: String, subjects: Vec<String>| Config {
            name,
            subjects,
            max_age: retention.results,
            allow_direct: true,
            ..defaults()
        };
        let mut streams: Vec<_> = Stage::ALL.into_iter().map(queue).collect();
        // No queue that workers take from: whoever passes a job on removes it here.
        streams.push(Config {
            name: layout.waiting_stream(),
            subjects: vec![layout.waiting_subjects()],
            allow_direct: true,
            ..of_tenants()
        });
        streams.push(kept(layout.result_stream(), layout.result_subjects()));
        streams.push(kept(layout.dead_stream(), vec![layout.dead_subjects()]));
        streams.push(Config {
            max_messages_per_subject: 1,
            ..kept(layout.admitted_stream(), vec![layout.admitted_subjects()])
        });
        streams
    }

    /// The request stream's settings, by which the broker drops no message for its `Nats-Msg-Id`. It remembers ids for a whole
    /// stream, so what one tenant sends would be taken for a repetition of another's. Requests are told apart by their jobs'
    /// ids and records, and need no help of the broker's. Since 2.14 a stream with a source remembers none; this source brings
    /// nothing, for no dead letter has such a name.
    fn forgetting_ids(&self, config: Config) -> Config {
        if !self.client.is_server_compatible(2, 14, 0) {
            return Config { duplicate_window: SHORTEST_WINDOW, ..config };
        }
        let nothing = Source {
            name: self.layout.dead_stream(),
            filter_subject: Some(self.layout.dead_letter("none")),
            ..Source::default()
        };
        Config { sources: Some(vec![nothing]), ..config }
    }
}
