//! A stream or a bucket as a pipeline wants it, laid over what stands.

use std::{fmt, time::Duration};

use async_nats::jetstream::{
    ErrorCode,
    context::{CreateStreamError, CreateStreamErrorKind},
    kv,
    stream::{Config, DiscardPolicy},
};
use baton_contract::{causes, subject::broker};

use crate::{
    Bus, Error,
    provision::electing::{self, Failed},
};

/// What the broker is asked for at a time.
pub(crate) const AT_ONCE: usize = 16;

/// What [`Bus::apply`] did or would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A stream, bucket or consumer that was missing.
    Created {
        /// A stream, bucket or consumer.
        what: String,
    },
    /// A setting of one that stands.
    Changed {
        /// A stream, bucket or consumer.
        what: String,
        /// The setting.
        key: &'static str,
        /// Its value before.
        from: String,
        /// Its value now.
        to: String,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created { what } => write!(f, "{what}: created"),
            Self::Changed { what, key, from, to } => write!(f, "{what}: {key} from {from} to {to}"),
        }
    }
}

/// A stream, or the stream below a bucket.
pub(crate) struct Wanted {
    /// As people know it.
    pub(super) what: String,
    pub(super) config: Config,
    /// How a bucket is created: as the client library does it.
    bucket: Option<kv::Config>,
}

impl Wanted {
    pub(crate) fn stream(config: Config) -> Self {
        Self { what: format!("stream {}", config.name), config, bucket: None }
    }

    pub(crate) fn bucket(bucket: kv::Config) -> Self {
        let config = Config {
            name: broker::bucket_stream(&bucket.bucket),
            subjects: vec![broker::bucket_subjects(&bucket.bucket)],
            max_messages: -1,
            max_bytes: -1,
            max_messages_per_subject: bucket.history.max(1),
            max_age: bucket.max_age,
            max_message_size: -1,
            num_replicas: bucket.num_replicas.max(1),
            discard: DiscardPolicy::New,
            allow_direct: true,
            storage: bucket.storage,
            ..Default::default()
        };
        Self { what: format!("bucket {}", bucket.bucket), config, bucket: Some(bucket) }
    }

    pub(super) fn failed(&self, message: impl Into<String>) -> Error {
        Error::Provision { what: self.what.clone(), message: message.into() }
    }

    /// What stands with what we want laid over it, and how the two differ.
    pub(super) fn over(&self, standing: &Config) -> Result<(Config, Vec<Change>), Error> {
        let wanted = &self.config;
        let unchangeable = [
            ("kind of retention", format!("{:?}", standing.retention), format!("{:?}", wanted.retention)),
            ("storage", format!("{:?}", standing.storage), format!("{:?}", wanted.storage)),
        ];
        for (key, from, to) in unchangeable {
            if from != to {
                return Err(self.failed(format!(
                    "its {key} is {from} and should be {to}, which the broker can't change; if nothing in it is needed any more, \
                     remove it (`nats stream rm {}`) and try again",
                    wanted.name
                )));
            }
        }
        let mut next = standing.clone();
        let mut changes = Vec::new();
        let mut note = |key, from: String, to: String| {
            if from != to {
                changes.push(Change::Changed { what: self.what.clone(), key, from, to });
            }
        };
        note("subjects", sorted(&standing.subjects), sorted(&wanted.subjects));
        note("replicas", standing.num_replicas.max(1).to_string(), wanted.num_replicas.max(1).to_string());
        note("max_age", age(standing.max_age), age(wanted.max_age));
        note("max_messages", limit(standing.max_messages), limit(wanted.max_messages));
        note("max_bytes", limit(standing.max_bytes), limit(wanted.max_bytes));
        note(
            "max_messages_per_subject",
            limit(standing.max_messages_per_subject),
            limit(wanted.max_messages_per_subject),
        );
        note("max_message_size", limit(standing.max_message_size.into()), limit(wanted.max_message_size.into()));
        note("discard", format!("{:?}", standing.discard), format!("{:?}", wanted.discard));
        note(
            "discard_new_per_subject",
            standing.discard_new_per_subject.to_string(),
            wanted.discard_new_per_subject.to_string(),
        );
        note("allow_direct", standing.allow_direct.to_string(), wanted.allow_direct.to_string());
        // Where it matters; elsewhere the broker's own way is as good as another.
        if wanted.sources.is_some() || !wanted.duplicate_window.is_zero() {
            note("message ids", message_ids(standing), message_ids(wanted));
            (next.sources, next.duplicate_window) = (wanted.sources.clone(), wanted.duplicate_window);
        }
        next.subjects = wanted.subjects.clone();
        next.num_replicas = wanted.num_replicas.max(1);
        next.max_age = wanted.max_age;
        next.max_messages = wanted.max_messages;
        next.max_bytes = wanted.max_bytes;
        next.max_messages_per_subject = wanted.max_messages_per_subject;
        next.max_message_size = wanted.max_message_size;
        next.discard = wanted.discard;
        next.discard_new_per_subject = wanted.discard_new_per_subject;
        next.allow_direct = wanted.allow_direct;
        // The broker refuses to remember ids for longer than messages.
        if !next.max_age.is_zero() {
            next.duplicate_window = next.duplicate_window.min(next.max_age);
        }
        Ok((next, changes))
    }
}

fn sorted(subjects: &[String]) -> String {
    let mut subjects = subjects.to_vec();
    subjects.sort();
    subjects.join(" ")
}

/// For how long a stream remembers message ids.
fn message_ids(config: &Config) -> String {
    let forgets =
        config.sources.as_ref().is_some_and(|sources| !sources.is_empty()) && config.duplicate_window.is_zero();
    if forgets { "not remembered".into() } else { format!("remembered for {}", age(config.duplicate_window)) }
}

/// JetStream says "none" by 0 and by -1.
fn limit(number: i64) -> String {
    if number > 0 { number.to_string() } else { "none".into() }
}

pub(super) fn age(age: Duration) -> String {
    if age.is_zero() { "none".into() } else { format!("{}s", age.as_secs_f64()) }
}

impl Bus {
    /// Creates one of them unless it stands; returns whether it did. Waits for a cluster that is electing.
    pub(crate) async fn create_missing(&self, wanted: &Wanted) -> Result<Option<Change>, Error> {
        electing::once_elected(&wanted.what, || self.create_once(wanted)).await
    }

    async fn create_once(&self, wanted: &Wanted) -> Result<Option<Change>, Failed> {
        // Also what was created without an answer, by this process or another.
        if self.standing(wanted).await.map_err(Failed::passing)?.is_some() {
            return Ok(None);
        }
        let created = match &wanted.bucket {
            None => self
                .jetstream
                .create_stream(wanted.config.clone())
                .await
                .map(drop)
                .map_err(|error| (taken(&error), electing::stream_passes(&error), causes(&error))),
            Some(bucket) => self.jetstream.create_key_value(bucket.clone()).await.map(drop).map_err(|error| {
                let source = std::error::Error::source(&error);
                let taken = source.and_then(|source| source.downcast_ref()).is_some_and(taken);
                (taken, electing::bucket_passes(&error), causes(&error))
            }),
        };
        match created {
            Ok(()) => Ok(Some(Change::Created { what: wanted.what.clone() })),
            // Somebody else was faster, and wants it otherwise: it stands.
            Err((true, ..)) => Ok(None),
            Err((false, passes, message)) => Err(Failed { error: wanted.failed(message), passes }),
        }
    }

    /// A bucket that is created if it is missing, and left as it is if it stands.
    pub(crate) async fn bucket(&self, config: kv::Config) -> Result<kv::Store, Error> {
        let name = config.bucket.clone();
        let wanted = Wanted::bucket(config);
        self.create_missing(&wanted).await?;
        self.jetstream.get_key_value(name).await.map_err(|error| wanted.failed(causes(&error)))
    }

    pub(super) async fn standing(&self, wanted: &Wanted) -> Result<Option<Config>, Error> {
        self.stream_config(&wanted.config.name).await
    }
}

/// Whether a stream of that name stands with another configuration.
fn taken(error: &CreateStreamError) -> bool {
    matches!(error.kind(), CreateStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NAME_EXIST)
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::stream::{RetentionPolicy, StorageType};

    use super::*;

    fn results() -> Wanted {
        let max_age = Duration::from_secs(60);
        Wanted::stream(Config { name: "r".into(), subjects: vec!["r.*".into()], max_age, ..Default::default() })
    }

    #[test]
    fn only_what_is_ours_is_laid_over_what_stands() {
        let wanted = results();
        let standing = Config {
            max_age: Duration::from_secs(3600),
            duplicate_window: Duration::from_secs(120),
            description: Some("kept on fast disks".into()),
            max_consumers: 7,
            ..wanted.config.clone()
        };
        let (next, changes) = wanted.over(&standing).unwrap();
        let told: Vec<_> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["stream r: max_age from 3600s to 60s"]);
        assert_eq!((next.description.as_deref(), next.max_consumers), (Some("kept on fast disks"), 7));
        // The broker would refuse a stream that remembers ids for longer than messages.
        assert_eq!((next.max_age, next.duplicate_window), (Duration::from_secs(60), Duration::from_secs(60)));
        assert!(wanted.over(&next).unwrap().1.is_empty());
    }

    #[test]
    fn what_the_broker_cannot_change_is_said_in_words() {
        let wanted = results();
        let standing = Config { retention: RetentionPolicy::WorkQueue, ..wanted.config.clone() };
        let error = wanted.over(&standing).unwrap_err().to_string();
        assert!(error.contains("stream r") && error.contains("WorkQueue") && error.contains("can't change"), "{error}");
        let standing = Config { storage: StorageType::Memory, ..wanted.config.clone() };
        assert!(wanted.over(&standing).is_err());
    }
}
