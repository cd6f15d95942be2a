//! A worker whose engine died.

use std::{ops::Range, sync::Arc, time::Duration};

use baton_bus::{Bus, stage::pull};
use baton_contract::{
    envelope::{self, PrefillTask},
    job::Job,
    kv::Block,
    outcome::Timings,
    record,
    sampling::Sampling,
    subject::Stage,
};
use baton_model::{
    generation::Generator,
    model::{self, KvMemory, Model, SequenceId, Spec, Step},
    sim::{self, Sim},
    source::{Source, vocabulary},
};
use baton_storage::{Codec, Store, kv::KvStore};
use tokio_util::sync::CancellationToken;

use crate::support::{Ground, PATIENCE, job_id, name, streams};

fn task(id: &str) -> PrefillTask {
    PrefillTask {
        job: Job {
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
        },
        timings: Timings::default(),
        ask: None,
    }
}

async fn publish(bus: &Bus, id: &str) {
    let task = task(id);
    let subject = bus.layout().prefill(&task.job.model, &task.job.lane, &task.job.tenant);
    let payload = envelope::encode(&task).unwrap();
    bus.begin(subject, &task.job, record::Source::KEPT, Default::default(), payload).await.unwrap();
}

fn options(max_deliver: u64) -> pull::Options {
    pull::Options {
        stage: Stage::Prefill,
        models: vec![name("m")],
        lanes: vec![name("batch")],
        slots: 2,
        room: None,
        ack_wait: Duration::from_secs(2),
        max_deliver,
        drain: Duration::from_millis(100),
    }
}

/// A model whose device is gone.
struct Broken(Sim);

impl Model for Broken {
    fn spec(&self) -> &Spec {
        self.0.spec()
    }

    fn memory(&self) -> KvMemory {
        self.0.memory()
    }

    fn open(&mut self) -> SequenceId {
        self.0.open()
    }

    fn close(&mut self, sequence: SequenceId) {
        self.0.close(sequence);
    }

    fn len(&self, sequence: SequenceId) -> Result<usize, model::Error> {
        self.0.len(sequence)
    }

    fn forward(&mut self, _: &[Step<'_>]) -> Result<Vec<Vec<f32>>, model::Error> {
        panic!("the device is gone")
    }

    fn export(&self, sequence: SequenceId, tokens: Range<usize>) -> Result<Block, model::Error> {
        self.0.export(sequence, tokens)
    }

    fn import(&mut self, sequence: SequenceId, tokens: &[u32], block: &Block) -> Result<(), model::Error> {
        self.0.import(sequence, tokens, block)
    }
}

#[tokio::test]
async fn a_worker_whose_engine_died_ends_and_leaves_its_job_to_others() {
    let ground = Ground::new(&[]).await;
    let bus = streams(&ground).await;
    publish(&bus, "left").await;
    let model = Broken(Sim::new(sim::Options::default(), 1 << 30).unwrap());
    let store = KvStore::new(Store::open("memory:").unwrap(), model.spec().kv, Codec::Raw);
    let generator = Generator::new(Arc::new(vocabulary(&Source::Sim(sim::Options::default())).unwrap()));
    let served = vec![baton_prefill::Served { name: name("m"), model: Box::new(model), generator, store }];
    let options = baton_prefill::Options {
        pull: options(5),
        chunk_tokens: 256,
        batch_tokens: 512,
        decode_prefills: 0,
        worker: "broken".into(),
    };
    let running = baton_prefill::run(bus.clone(), options, served, CancellationToken::new());
    let ended = tokio::time::timeout(PATIENCE, running).await.expect("the worker lives on without an engine");
    assert!(matches!(ended, Err(baton_prefill::Error::Bus(baton_bus::Error::Broken))), "{ended:?}");
    let jobs = bus.jobs().await.unwrap();
    assert_eq!(jobs.result(&name("acme"), &job_id("left")).await.unwrap(), None);
    // It was at work on this very job, so the try counts: a job that kills every engine must come to an end.
    assert_eq!(jobs.get(&name("acme"), &job_id("left")).await.unwrap().unwrap().record.tries, 1);
}
