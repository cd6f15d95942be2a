//! The batch against the sim engine, without its thread, so that what is computed when is always the same.

use std::sync::{Arc, Mutex};

use baton_contract::{Name, job::Job, kv::Block, sampling::Sampling};
use baton_engine::{
    generation::Generator,
    model::Spec,
    sim::{self, Sim},
    source::{Source, vocabulary},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

/// Bytes of a page of 64 tokens.
const PAGE_BYTES: u64 = 1024;

fn options() -> sim::Options {
    sim::Options { layers: 1, kv_width: 4, context: 4096, ..Default::default() }
}

fn sim(pages: u64) -> Sim {
    Sim::new(options(), pages * PAGE_BYTES).unwrap()
}

fn job(number: usize, prompt: usize) -> Job {
    Job {
        id: format!("job-{number}").parse().unwrap(),
        tenant: Name::new("acme").unwrap(),
        lane: Name::new("batch").unwrap(),
        model: Name::new("sim").unwrap(),
        prompt: (0..prompt).map(|place| (32 + (place * (number + 3) + number) % 90) as u32).collect(),
        max_tokens: 9,
        sampling: Sampling { temperature: 0.9, seed: number as u64, ..Sampling::GREEDY },
        stop: Vec::new(),
        deadline_ms: None,
        metadata: Default::default(),
        request_digest: String::new(),
    }
}

fn generation(job: &Job) -> Generation {
    Generator::new(Arc::new(vocabulary(&Source::Sim(options())).unwrap())).start(job).unwrap()
}

fn pieces(job: &Job, chunk: usize) -> Vec<Range<usize>> {
    (0..job.prompt.len()).step_by(chunk).map(|start| start..(start + chunk).min(job.prompt.len())).collect()
}

/// A prompt's pieces and its answer's first token.
type Prefilled = (Vec<Block>, u32);

/// The prompt alone and at once.
fn expected(job: &Job, chunk: usize) -> Prefilled {
    let mut model = sim(1000);
    let sequence = model.open();
    let logits = model.forward(&[Step { sequence, tokens: &job.prompt, logits: 1 }]).unwrap().remove(0);
    let blocks = pieces(job, chunk).into_iter().map(|piece| model.export(sequence, piece).unwrap()).collect();
    (blocks, generation(job).next(&logits).unwrap().token)
}

/// One prompt as its handler sees it.
struct Client {
    events: UnboundedReceiver<Computed>,
    started: usize,
    blocks: Vec<Block>,
    /// How many of them the store has.
    put: usize,
    first: Option<u32>,
    failed: Option<Failed>,
}

fn submit(batch: &mut Batch, id: usize, job: &Job, chunk: usize) -> Client {
    let (computed, events) = unbounded_channel();
    let (tokens, pieces, generation) = (job.prompt.clone(), pieces(job, chunk), generation(job));
    let prompt = Box::new(NewPrompt { tokens, pieces, generation, computed });
    batch.obey(Command::Prompt { id: id as PromptId, prompt });
    Client { events, started: 0, blocks: Vec::new(), put: 0, first: None, failed: None }
}

/// Plays the handlers: notes what comes, and puts a piece of each.
fn attend(batch: &mut Batch, clients: &mut [Client], ahead: usize) {
    for (id, client) in clients.iter_mut().enumerate() {
        while let Ok(event) = client.events.try_recv() {
            assert!(client.first.is_none());
            match event {
                Computed::Started => client.started += 1,
                Computed::Piece(block) => client.blocks.push(block),
                Computed::FirstToken(emitted) => client.first = Some(emitted.token),
                Computed::Refused(error) => panic!("{error}"),
                Computed::Failed(failed) => client.failed = Some(failed),
            }
        }
        let waiting: usize = client.blocks[client.put..].iter().map(|block| block.tokens).sum();
        assert!(waiting <= ahead, "{waiting} tokens in memory");
        if let Some(block) = client.blocks.get(client.put) {
            client.put += 1;
            batch.obey(Command::Stored { id: id as PromptId, tokens: block.tokens });
        }
    }
}

fn run(model: impl Model + 'static, jobs: &[Job], batch_tokens: usize, chunk: usize) -> Vec<Client> {
    let ahead = 2 * batch_tokens.max(chunk);
    let mut batch = Batch::new(Box::new(model), Options { batch_tokens, ahead });
    let mut clients: Vec<_> = jobs.iter().enumerate().map(|(id, job)| submit(&mut batch, id, job, chunk)).collect();
    for _ in 0..100_000 {
        batch.round();
        attend(&mut batch, &mut clients, ahead);
        if clients.iter().all(|client| client.first.is_some() || client.failed.is_some()) {
            let KvMemory { pages, free_pages, .. } = batch.model.memory();
            assert_eq!((free_pages, batch.prompts.len()), (pages, 0), "something was left behind");
            return clients;
        }
    }
    panic!("not all prompts ended");
}

fn assert_same(clients: Vec<Client>, expected: &[Prefilled], place: &str) {
    for (id, (client, (blocks, first))) in clients.into_iter().zip(expected).enumerate() {
        assert!(client.failed.is_none(), "{place}, {id}: {:?}", client.failed);
        assert_eq!(client.first, Some(*first), "{place}, {id}");
        assert!(client.blocks == *blocks, "{place}, {id}: other blocks");
        assert_eq!(client.started, 1, "{place}, {id}");
    }
}

/// Passes, each the tokens of its steps.
type Passes = Arc<Mutex<Vec<Vec<usize>>>>;

/// A device that is too small for large passes, and what was asked of it.
struct Narrow {
    sim: Sim,
    /// Tokens of a pass that is possible.
    most: usize,
    passes: Passes,
}

impl Model for Narrow {
    fn spec(&self) -> &Spec {
        self.sim.spec()
    }

    fn memory(&self) -> KvMemory {
        self.sim.memory()
    }

    fn open(&mut self) -> SequenceId {
        self.sim.open()
    }

    fn close(&mut self, sequence: SequenceId) {
        self.sim.close(sequence);
    }

    fn len(&self, sequence: SequenceId) -> Result<usize, model::Error> {
        self.sim.len(sequence)
    }

    fn forward(&mut self, steps: &[Step<'_>]) -> Result<Vec<Vec<f32>>, model::Error> {
        let tokens: Vec<usize> = steps.iter().map(|step| step.tokens.len()).collect();
        let all = tokens.iter().sum::<usize>();
        let mut passes = self.passes.lock().unwrap();
        passes.push(tokens);
        // A fault of its own now and then, when prompts are half computed.
        if all > self.most || [12, 20, 28].contains(&passes.len()) {
            // Worse than promised: traces are left.
            self.sim.forward(&steps[..1])?;
            return Err(model::Error::StepFailed("the device is out of memory".into()));
        }
        self.sim.forward(steps)
    }

    fn export(&self, sequence: SequenceId, tokens: Range<usize>) -> Result<Block, model::Error> {
        self.sim.export(sequence, tokens)
    }

    fn import(&mut self, sequence: SequenceId, tokens: &[u32], block: &Block) -> Result<(), model::Error> {
        self.sim.import(sequence, tokens, block)
    }
}

#[test]
fn blocks_and_first_tokens_are_the_same_however_prompts_are_batched() {
    let jobs: Vec<Job> = (0..24).map(|number| job(number, 1 + number * 97 % 700)).collect();
    for chunk in [16, 256] {
        let expected: Vec<_> = jobs.iter().map(|job| expected(job, chunk)).collect();
        for (batch_tokens, pages) in [(16, 1000), (100, 11), (512, 1000), (4096, 20), (65_536, 1000)] {
            let clients = run(sim(pages), &jobs, batch_tokens, chunk);
            assert_same(clients, &expected, &format!("{chunk}, {batch_tokens}, {pages}"));
        }
        let passes = Passes::default();
        let model = Narrow { sim: sim(1000), most: 300, passes: passes.clone() };
        assert_same(run(model, &jobs, 512, chunk), &expected, &format!("{chunk}, narrow"));
        let passes = passes.lock().unwrap();
        let (small, large): (Vec<_>, Vec<_>) = passes.iter().partition(|pass| pass.iter().sum::<usize>() <= 300);
        assert!(
            !large.is_empty() && large.len() * 4 < small.len(),
            "{} of {} passes failed",
            large.len(),
            passes.len()
        );
    }
}

#[test]
fn many_short_prompts_are_one_pass_and_a_long_one_waits_for_nobody() {
    let jobs: Vec<Job> =
        [2000].into_iter().chain([40; 6]).enumerate().map(|(number, size)| job(number, size)).collect();
    let passes = Passes::default();
    let clients = run(Narrow { sim: sim(1000), most: 1 << 20, passes: passes.clone() }, &jobs, 512, 256);
    assert_eq!(clients.len(), 7);
    let passes = passes.lock().unwrap();
    assert_eq!(passes[0], [272, 40, 40, 40, 40, 40, 40]);
    assert!(passes[1..].iter().all(|pass| pass.len() == 1), "{passes:?}");
}

#[test]
fn a_prompt_that_can_never_fit_fails_alone_and_says_so() {
    let foreign = Job { prompt: vec![65, 257], ..job(4, 2) };
    let jobs = [job(0, 300), job(1, 513), job(2, 5000), job(3, 0), foreign, job(5, 512)];
    let clients = run(sim(8), &jobs, 512, 256);
    let told: Vec<_> = clients.iter().map(|client| client.failed.as_ref().map(ToString::to_string)).collect();
    let told: Vec<_> = told.iter().map(|told| told.as_deref().unwrap_or("")).collect();
    assert_eq!((told[0], told[5]), ("", ""));
    assert!(told[1].contains("for 513 tokens, and this worker has it for 512; raise"), "{}", told[1]);
    assert!(told[2].contains("the context of the model is 4096 tokens, 5000 are needed"), "{}", told[2]);
    assert!(told[3].contains("at least one token"), "{}", told[3]);
    assert!(told[4].contains("token id 257 is outside the vocabulary"), "{}", told[4]);

    let model = Narrow { sim: sim(100), most: 0, passes: Passes::default() };
    let clients = run(model, &jobs[..1], 512, 256);
    assert!(matches!(clients[0].failed, Some(Failed::Model(model::Error::StepFailed(_)))));
}
