//! A broker of its own for each test; it ends with the value that stands for it.

use std::{path::PathBuf, time::Duration};

use baton_bus::{Bus, Options, Retention, clients::follower::Follower, stage::pull};
use baton_contract::{
    JobId, Name,
    job::Job,
    outcome::Outcome,
    sampling::Sampling,
    subject::{Layout, Stage},
};
use baton_provision::{
    server::{self, Server},
    setup::Setup,
};
use tempfile::TempDir;
use tokio::{sync::OnceCell, task::spawn_blocking, time::timeout};

/// A test that waits longer than this has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A nats-server with an empty directory.
pub struct Broker {
    server: Server,
    _directory: TempDir,
}

impl Broker {
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = server::Options {
            binary: nats_server().await,
            directory: directory.path().join("nats"),
            launcher: Vec::new(),
            sync_always: false,
        };
        Self { server: Server::start(options).await.unwrap(), _directory: directory }
    }

    /// A connection.
    pub async fn bus(&self) -> Bus {
        let options = Options {
            url: self.server.url().to_owned(),
            credentials: None,
            name: "test".into(),
            layout: Layout::new(name("baton")),
        };
        Bus::connect(options).await.unwrap()
    }

    /// A connection, with all streams of a pipeline.
    pub async fn provisioned(&self) -> Bus {
        let bus = self.bus().await;
        let retention = Retention {
            replicas: 1,
            results: Duration::from_secs(3600),
            backlog: Default::default(),
            lanes: vec![name("interactive"), name("batch")],
        };
        bus.provision(&retention).await.unwrap();
        bus
    }
}

/// What `baton setup` brings, brought when it is missing.
async fn nats_server() -> PathBuf {
    static PATH: OnceCell<PathBuf> = OnceCell::const_new();
    let bring = || Setup::from_environment(true).unwrap().ensure_nats_server().unwrap();
    PATH.get_or_init(|| async move { spawn_blocking(bring).await.unwrap() }).await.clone()
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn job_id(text: &str) -> JobId {
    JobId::new(text).unwrap()
}

/// A job of one token.
pub fn job(id: &str) -> Job {
    Job {
        id: job_id(id),
        tenant: name("acme"),
        lane: name("batch"),
        model: name("m"),
        prompt: vec![1],
        max_tokens: 1,
        samples: 1,
        sampling: Sampling::GREEDY,
        stop: Vec::new(),
        deadline_ms: None,
        metadata: Default::default(),
        request_digest: String::new(),
    }
}

/// How a worker of prefill pulls in these tests.
pub fn prefill(max_deliver: u64, ack_wait: Duration) -> pull::Options {
    pull::Options {
        stage: Stage::Prefill,
        models: vec![name("m")],
        lanes: vec![name("batch")],
        slots: 2,
        room: None,
        ack_wait,
        max_deliver,
        drain: Duration::from_millis(100),
    }
}

/// The result of a job, waited for.
pub async fn result(follower: &mut Follower, job: &JobId) -> Outcome {
    timeout(PATIENCE, follower.result(job)).await.expect("no result in time").unwrap()
}
