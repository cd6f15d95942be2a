//! The batch against the sim engine, without its thread, so that who joins when is always the same.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

use baton_contract::{Name, job::Job, kv::Block, sampling::Sampling};
use baton_engine::{
    generation::Generator,
    model::Spec,
    sim::{self, Sim},
    source::{Source, vocabulary},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

/// Tokens in a piece of a prompt's KV cache.
const PIECE: usize = 100;
/// Tokens in a page of the sim engine, and the bytes it takes.
const PAGE: usize = 64;
const PAGE_BYTES: u64 = 1024;

fn options() -> sim::Options {
    sim::Options { layers: 1, kv_width: 4, context: 4096, ..Default::default() }
}

fn sim(pages: u64) -> Sim {
    Sim::new(options(), pages * PAGE_BYTES).unwrap()
}

fn generator() -> Generator {
    Generator::new(Arc::new(vocabulary(&Source::Sim(options())).unwrap()))
}

fn job(number: usize, prompt: usize, max_tokens: u32) -> Job {
    Job {
        id: format!("job-{number}").parse().unwrap(),
        tenant: Name::new("acme").unwrap(),
        lane: Name::new("batch").unwrap(),
        model: Name::new("sim").unwrap(),
        prompt: (0..prompt).map(|place| (32 + (place * (number + 3) + number) % 90) as u32).collect(),
        max_tokens,
        sampling: Sampling { temperature: 0.9, seed: number as u64, ..Sampling::GREEDY },
        stop: Vec::new(),
        deadline_ms: None,
        metadata: Default::default(),
        request_digest: String::new(),
    }
}

/// Jobs of many lengths.
fn jobs(count: usize) -> Vec<Job> {
    (0..count).map(|number| job(number, 20 + number * 47 % 330, 40 + (number * 29 % 150) as u32)).collect()
}

/// What prefill leaves: the pieces of the KV cache and the answer's first token; and the whole answer, undisturbed.
struct Prefilled {
    held: Vec<Held>,
    answer: Vec<u32>,
}

fn prefilled(job: &Job) -> Prefilled {
    // With room for answers that the batch's own model has no room for.
    let mut model = Sim::new(sim::Options { context: 8192, ..options() }, 1000 * PAGE_BYTES).unwrap();
    let sequence = model.open();
    let mut generation = generator().start(job).unwrap();
    let mut logits = model.forward(&[Step { sequence, tokens: &job.prompt, logits: 1 }]).unwrap().remove(0);
    let cut = |start| model.export(sequence, start..(start + PIECE).min(job.prompt.len())).unwrap();
    let held = (0..job.prompt.len()).step_by(PIECE).map(|start| Held::Block(cut(start))).collect();
    let mut answer = Vec::new();
    loop {
        let emitted = generation.next(&logits).unwrap();
        answer.push(emitted.token);
        if emitted.finish.is_some() {
            return Prefilled { held, answer };
        }
        logits = model.forward(&[Step { sequence, tokens: &[emitted.token], logits: 1 }]).unwrap().remove(0);
    }
}

/// One job as its handler sees it.
struct Client {
    prefilled: Prefilled,
    events: UnboundedReceiver<Event>,
    tokens: Vec<u32>,
    wanted: usize,
    recomputed: usize,
    failed: Option<Failed>,
    ended: bool,
}

fn submit(batch: &mut Batch, id: usize, job: &Job) -> Client {
    let prefilled = prefilled(job);
    let first_token = prefilled.answer[0];
    let mut generation = generator().start(job).unwrap();
    generation.accept(first_token, None).unwrap();
    let (events, receiver) = unbounded_channel();
    let answer = Box::new(NewAnswer { prompt: job.prompt.clone(), first_token, generation, events });
    batch.obey(Command::Answer { id: id as AnswerId, answer });
    Client {
        prefilled,
        events: receiver,
        tokens: vec![first_token],
        wanted: 0,
        recomputed: 0,
        failed: None,
        ended: false,
    }
}

/// Plays the handlers: gives what is wanted, and notes what comes.
fn attend(batch: &mut Batch, clients: &mut [Client]) {
    for (id, client) in clients.iter_mut().enumerate() {
        while let Ok(event) = client.events.try_recv() {
            match event {
                Event::Wanted => {
                    client.wanted += 1;
                    batch.obey(Command::Held { id: id as AnswerId, held: client.prefilled.held.clone() });
                }
                Event::Joining => {}
                Event::Imported { recomputed } => client.recomputed += recomputed,
                Event::Token(emitted) => {
                    assert_eq!(emitted.index as usize, client.tokens.len());
                    client.tokens.push(emitted.token);
                    client.ended = emitted.finish.is_some();
                }
                Event::Stuck(error) => panic!("{error}"),
                Event::Failed(failed) => client.failed = Some(failed),
            }
        }
    }
}

/// Works until every client has what it gets.
fn finish(batch: &mut Batch, clients: &mut [Client]) {
    for _ in 0..100_000 {
        batch.round();
        attend(batch, clients);
        if clients.iter().all(|client| client.ended || client.failed.is_some()) {
            let KvMemory { pages, free_pages, .. } = batch.model.memory();
            assert_eq!((free_pages, batch.answers.len()), (pages, 0), "something was left behind");
            return;
        }
    }
    panic!("not all answers ended");
}

fn run(model: impl Model + 'static, jobs: &[Job]) -> Vec<Client> {
    let mut batch = Batch::new(Box::new(model));
    let mut clients: Vec<_> = jobs.iter().enumerate().map(|(id, job)| submit(&mut batch, id, job)).collect();
    finish(&mut batch, &mut clients);
    clients
}

fn assert_undisturbed(clients: &[Client]) {
    for (id, client) in clients.iter().enumerate() {
        assert!(client.failed.is_none(), "{id}: {:?}", client.failed);
        assert_eq!(client.tokens, client.prefilled.answer, "{id}");
    }
}

#[test]
fn little_memory_changes_no_token() {
    let jobs = jobs(32);
    let roomy = run(sim(1000), &jobs);
    assert_undisturbed(&roomy);
    assert!(roomy.iter().all(|client| client.wanted == 1 && client.recomputed == 0));
    let tight = run(sim(10), &jobs);
    assert_undisturbed(&tight);
    assert!(tight.iter().any(|client| client.wanted > 1), "nobody had to leave the batch");
    assert_eq!(tight.iter().map(|client| client.recomputed).sum::<usize>(), 0, "prompts came from the store");
}

#[test]
fn an_answer_that_can_never_fit_fails_alone_and_says_so() {
    let mut jobs = jobs(8);
    // The prompt can't fit; the answer can't; both are too long for the model; and one of whom nobody wants anything.
    jobs.extend([job(8, 8 * PAGE, 50), job(9, 7 * PAGE, 200), job(10, 20, 4095), job(11, 70, 5)]);
    let mut batch = Batch::new(Box::new(sim(8)));
    let mut clients: Vec<_> = jobs.iter().enumerate().map(|(id, job)| submit(&mut batch, id, job)).collect();
    batch.obey(Command::Leave(11));
    clients.pop();
    let (events, mut foreign) = unbounded_channel();
    let generation = generator().start(&jobs[0]).unwrap();
    let answer = Box::new(NewAnswer { prompt: vec![65, 257], first_token: 65, generation, events });
    batch.obey(Command::Answer { id: 12, answer });
    let told = foreign.try_recv();
    assert!(
        matches!(told, Ok(Event::Failed(Failed::Model(model::Error::TokenOutOfRange { token: 257, .. })))),
        "{told:?}"
    );
    finish(&mut batch, &mut clients);
    assert_undisturbed(&clients[..8]);
    for (id, needed) in [(8, 513), (9, 513)] {
        let failed = clients[id].failed.as_ref().unwrap();
        assert!(
            matches!(failed, Failed::TooLong(TooLong { capacity: 512, needed: found }) if *found == needed),
            "{failed:?}"
        );
        assert!(
            failed
                .to_string()
                .contains(&format!("for {needed} tokens of prompt and answer, and this worker has it for 512"))
        );
    }
    assert!(!clients[9].tokens.is_empty());
    let failed = clients[10].failed.as_ref().unwrap();
    assert!(
        matches!(failed, Failed::Model(model::Error::ContextExceeded { context: 4096, needed: 4114 })),
        "{failed:?}"
    );
}

/// A device that is too small for large passes, and what was asked of it.
struct Narrow {
    sim: Sim,
    /// Sequences and tokens of a pass that is possible.
    most: (usize, usize),
    /// Whether a pass that fails leaves traces, as it should not.
    dirty: bool,
    /// Tokens of each step of each pass.
    passes: Arc<Mutex<Vec<Vec<usize>>>>,
}

impl Narrow {
    fn new(most: (usize, usize), dirty: bool) -> (Self, Arc<Mutex<Vec<Vec<usize>>>>) {
        let passes: Arc<Mutex<Vec<Vec<usize>>>> = Arc::default();
        (Self { sim: sim(1000), most, dirty, passes: passes.clone() }, passes)
    }
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
        let (sequences, all) = (tokens.len(), tokens.iter().sum::<usize>());
        self.passes.lock().unwrap().push(tokens);
        if sequences > self.most.0 || all > self.most.1 {
            if self.dirty {
                self.sim.forward(&steps[..sequences.div_ceil(3)])?;
            }
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
fn a_step_that_fails_is_taken_with_half_of_the_answers() {
    let jobs = jobs(16);
    for dirty in [false, true] {
        let (model, passes) = Narrow::new((5, 1 << 20), dirty);
        assert_undisturbed(&run(model, &jobs));
        let passes = passes.lock().unwrap();
        let steps: Vec<usize> =
            passes.iter().filter(|pass| pass.iter().all(|tokens| *tokens == 1)).map(Vec::len).collect();
        let failed = steps.iter().filter(|answers| **answers > 5).count();
        assert!(failed > 0 && failed < steps.len() / 20, "{failed} of {} steps failed", steps.len());
        assert!(steps.contains(&5), "the batch did not grow again");
    }
    // A device that can do nothing fails every job, one by one, and ends.
    let (model, _) = Narrow::new((0, 0), false);
    let clients = run(model, &jobs);
    assert!(clients.iter().all(|client| matches!(client.failed, Some(Failed::Model(model::Error::StepFailed(_))))));
}

#[test]
fn who_joins_does_not_hold_up_those_who_run() {
    // The second answer's prompt is missing in the store, but for its middle.
    let jobs = [job(0, 50, 60), job(1, 1500, 20), job(2, 900, 20)];
    for (most, longest) in [(1 << 20, PIECE), (60, PIECE / 2)] {
        let (model, passes) = Narrow::new((9, most), false);
        let mut batch = Batch::new(Box::new(model));
        let mut clients = vec![submit(&mut batch, 0, &jobs[0])];
        batch.round();
        attend(&mut batch, &mut clients);
        batch.round();
        for id in [1, 2] {
            clients.push(submit(&mut batch, id, &jobs[id]));
        }
        for (piece, held) in clients[1].prefilled.held.iter_mut().enumerate() {
            if piece != 4 {
                *held = Held::Missing { tokens: PIECE };
            }
        }
        finish(&mut batch, &mut clients);
        assert_undisturbed(&clients);
        let recomputed: Vec<_> = clients.iter().map(|client| client.recomputed).collect();
        assert_eq!(recomputed, [0, 1400, 0]);
        let passes = passes.lock().unwrap();
        let (mut between, mut seen) = (0, 0);
        for pass in passes.iter() {
            let tokens: usize = pass.iter().sum();
            if tokens > pass.len() {
                assert!(tokens <= longest || tokens > most, "{tokens} tokens at a time");
                between += if tokens > most { 0 } else { tokens };
                seen = seen.max(between);
            } else {
                between = 0;
            }
        }
        assert_eq!(seen, COMPUTED, "tokens were computed between two steps");
    }
}
