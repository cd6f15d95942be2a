//! The batch against the sim engine, without its thread, so that what is computed when is always the same.

use std::sync::{Arc, Mutex};

use baton_contract::{Name, job::Job, kv::Block, sampling::Sampling};
use baton_model::{
    generation::Generator,
    model::Spec,
    sim::{self, Sim},
    source::{Source, vocabulary},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::computing::head;

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
        samples: 1,
        sampling: Sampling { temperature: 0.9, seed: number as u64, ..Sampling::GREEDY },
        stop: Vec::new(),
        deadline_ms: None,
        metadata: Default::default(),
        request_digest: String::new(),
    }
}

fn generation(job: &Job) -> Generation {
    Generator::new(Arc::new(vocabulary(&Source::Sim(options())).unwrap())).start(job, 0).unwrap()
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
    /// What is reused: pieces that were not brought yet, and how many are not taken yet.
    brings: VecDeque<(usize, Arc<Block>)>,
    loaded: usize,
    /// Whether a piece turns out to be gone after those.
    cut: bool,
    blocks: Vec<(usize, Block)>,
    /// How many of them the store has.
    put: usize,
    /// The first token, and how many of the prompt's were reused.
    first: Option<(u32, usize)>,
    failed: Option<Failed>,
}

/// What of a prompt is there already.
#[derive(Clone, Copy)]
struct Reused<'a> {
    blocks: &'a [Block],
    /// How many more should be there, and are gone when they are wanted.
    gone: usize,
}

const NOTHING: Reused<'_> = Reused { blocks: &[], gone: 0 };

fn submit(batch: &mut Batch, id: usize, job: &Job, chunk: usize, there: Reused<'_>) -> Client {
    let (computed, events) = unbounded_channel();
    let (tokens, pieces, generations) = (job.prompt.clone(), pieces(job, chunk), vec![generation(job)]);
    let most = tokens.len().saturating_sub(1);
    let reused = ((there.blocks.len() + there.gone) * chunk).min(most);
    let brings = there.blocks.iter().enumerate().map(|(piece, block)| {
        let wanted = (piece * chunk + block.tokens).min(most) - piece * chunk;
        (piece, Arc::new(if wanted < block.tokens { head(block, wanted) } else { block.clone() }))
    });
    let (brings, cut) = (brings.collect(), there.gone > 0);
    let prompt = Box::new(NewPrompt { tokens, pieces, reused, generations, computed });
    batch.obey(Command::Prompt { id: id as PromptId, prompt });
    Client { events, started: 0, brings, loaded: 0, cut, blocks: Vec::new(), put: 0, first: None, failed: None }
}

/// Plays the handlers: notes what comes, brings what is reused, and puts a piece of each.
fn attend(batch: &mut Batch, clients: &mut [Client], ahead: usize, chunk: usize) {
    let mut imported = 0;
    for (id, client) in clients.iter_mut().enumerate() {
        while let Ok(event) = client.events.try_recv() {
            assert!(client.first.is_none());
            match event {
                Computed::Started => client.started += 1,
                Computed::Taken => {
                    client.loaded -= 1;
                    imported += chunk;
                }
                Computed::Piece { piece, block } => client.blocks.push((piece, block)),
                Computed::FirstTokens { first, reused } => client.first = Some((first[0].token, reused)),
                Computed::Refused(error) => panic!("{error}"),
                Computed::Failed(failed) => client.failed = Some(failed),
            }
        }
        let waiting: usize = client.blocks[client.put..].iter().map(|(_, block)| block.tokens).sum();
        assert!(waiting <= ahead, "{waiting} tokens in memory");
        if let Some((_, block)) = client.blocks.get(client.put) {
            client.put += 1;
            batch.obey(Command::Stored { id: id as PromptId, tokens: block.tokens });
        }
        while client.started > 0
            && client.loaded < 8
            && let Some((piece, block)) = client.brings.pop_front()
        {
            client.loaded += 1;
            batch.obey(Command::Bring { id: id as PromptId, piece, block });
        }
        if client.started > 0 && client.brings.is_empty() && std::mem::take(&mut client.cut) {
            batch.obey(Command::Compute(id as PromptId));
        }
    }
    assert!(imported < 2048 + 2 * chunk, "{imported} tokens were imported between two passes");
}

fn run(model: impl Model + 'static, jobs: &[Job], batch_tokens: usize, chunk: usize) -> Vec<Client> {
    let there = vec![NOTHING; jobs.len()];
    run_with(Box::new(model), jobs, batch_tokens, chunk, &there)
}

fn run_with(
    model: Box<dyn Model>,
    jobs: &[Job],
    batch_tokens: usize,
    chunk: usize,
    there: &[Reused<'_>],
) -> Vec<Client> {
    let ahead = 2 * batch_tokens.max(chunk);
    let mut batch = Batch::new(model, Options { batch_tokens, ahead });
    let jobs = jobs.iter().zip(there).enumerate();
    let mut clients: Vec<_> = jobs.map(|(id, (job, there))| submit(&mut batch, id, job, chunk, *there)).collect();
    for _ in 0..100_000 {
        batch.round();
        attend(&mut batch, &mut clients, ahead, chunk);
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
        assert_eq!(client.first, Some((*first, 0)), "{place}, {id}");
        let pieces: Vec<Block> = client.blocks.into_iter().map(|(_, block)| block).collect();
        assert!(pieces == *blocks, "{place}, {id}: other blocks");
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

/// Whatever of a prompt is there already, in whatever company it is computed and whatever goes wrong, its blocks and its
/// first token are the same, and no more is computed than has to be.
#[test]
fn a_reused_beginning_changes_nothing() {
    for chunk in [16, 256] {
        // Every third prompt is of whole chunks.
        let size =
            |number: usize| if number.is_multiple_of(3) { (1 + number % 4) * chunk } else { 1 + number * 97 % 900 };
        let jobs: Vec<Job> = (0..24).map(|number| job(number, size(number))).collect();
        let expected: Vec<_> = jobs.iter().map(|job| expected(job, chunk)).collect();
        let shared: Vec<usize> = (0..24).map(|number| (size(number) / chunk).min(number % 7)).collect();
        for gone in [0, 1] {
            let reused = |number: usize| {
                let there = shared[number].saturating_sub(gone);
                Reused { blocks: &expected[number].0[..there], gone: shared[number] - there }
            };
            let there: Vec<_> = (0..24).map(reused).collect();
            let narrow = Narrow { sim: sim(1000), most: 300, passes: Passes::default() };
            let models: [(Box<dyn Model>, bool); 3] =
                [(Box::new(sim(1000)), true), (Box::new(sim(20)), true), (Box::new(narrow), false)];
            for (model, sound) in models {
                let clients = run_with(model, &jobs, 100, chunk, &there);
                let mut again = 0;
                for (id, client) in clients.into_iter().enumerate() {
                    let (place, (blocks, first)) = (format!("{chunk}, {gone}, {sound}, {id}"), &expected[id]);
                    let (found, reused) = client.first.expect("no first token");
                    assert_eq!(found, *first, "{place}");
                    let brought = there[id].blocks.len();
                    let most = (brought * chunk).min(size(id) - 1);
                    assert!(reused == most || reused == 0 && !sound, "{place}: {reused} tokens were reused");
                    again += usize::from(reused < most);
                    let places: Vec<_> = client.blocks.iter().map(|(piece, _)| *piece).collect();
                    assert_eq!(places, (brought..blocks.len()).collect::<Vec<_>>(), "{place}");
                    assert!(
                        client.blocks.iter().all(|(piece, block)| blocks[*piece] == *block),
                        "{place}: other blocks"
                    );
                }
                assert_eq!(again > 0, !sound, "{chunk}, {gone}: after a fault all of a prompt is computed");
            }
        }
    }
}

/// Long prompts of which all is there but the last token: others are computed while it is imported, a bounded part of it
/// between any two passes.
#[test]
fn importing_holds_nobody_up() {
    let jobs = [job(0, 1000), job(1, 4096), job(2, 4096)];
    let there: Vec<_> = jobs[1..].iter().map(|job| expected(job, 256)).collect();
    let reused = |at: usize| Reused { blocks: &there[at].0, gone: 0 };
    let passes = Passes::default();
    let model = Box::new(Narrow { sim: sim(1000), most: 1 << 20, passes: passes.clone() });
    let clients = run_with(model, &jobs, 100, 256, &[NOTHING, reused(0), reused(1)]);
    assert_eq!(clients[1].first, Some((there[0].1, 4095)));
    assert_eq!(clients[2].first, Some((there[1].1, 4095)));
    let passes = passes.lock().unwrap();
    let last = passes.iter().rposition(|pass| pass.contains(&1)).unwrap();
    assert!((3..8).contains(&last), "{passes:?}");
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
