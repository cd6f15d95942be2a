//! The batch against the sim engine, without its thread, so that who joins when is always the same.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex},
};

use baton_contract::{Name, job::Job, kv::Block, sampling::Sampling};
use baton_model::{
    generation::{self, Generator},
    model::{SequenceId, Spec},
    sim::{self, Sim},
    source::{Source, vocabulary},
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::Instant,
};

mod limited_memory;

use limited_memory::LimitedMemoryModel;

use super::*;
use crate::messages::FetchedPiece;

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
        samples: 1,
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

/// What prefill leaves: the pieces of the KV cache; and the whole answers, undisturbed.
struct Prefilled {
    held: VecDeque<FetchedPiece>,
    answers: Vec<Vec<u32>>,
}

fn prefilled(job: &Job) -> Prefilled {
    // With room for answers that the batch's own model has no room for.
    let mut model = Sim::new(sim::Options { context: 8192, ..options() }, 1000 * PAGE_BYTES).unwrap();
    let prompt = Step { sequence: model.open(), tokens: &job.prompt, logits: 1 };
    model.forward(&[prompt]).unwrap();
    let cut = |start| model.export(prompt.sequence, start..(start + PIECE).min(job.prompt.len())).unwrap();
    let held = (0..job.prompt.len()).step_by(PIECE).map(|start| FetchedPiece::Block(Arc::new(cut(start)))).collect();
    let mut answer = |mut generation: Generation| {
        let sequence = model.open();
        let mut logits = model.forward(&[Step { sequence, ..prompt }]).unwrap().remove(0);
        let mut answer = Vec::new();
        loop {
            let emitted = generation.next(&logits).unwrap();
            answer.push(emitted.token);
            if emitted.finish.is_some() {
                model.close(sequence);
                return answer;
            }
            logits = model.forward(&[Step { sequence, tokens: &[emitted.token], logits: 1 }]).unwrap().remove(0);
        }
    };
    let answers = generator().start_all(job).unwrap().into_iter().map(&mut answer).collect();
    Prefilled { held, answers }
}

/// One job as its handler sees it.
struct Client {
    prefilled: Prefilled,
    events: UnboundedReceiver<Event>,
    answers: Vec<Vec<u32>>,
    /// Fetches that go on, and what they have not brought yet.
    fetches: VecDeque<(Fetch, VecDeque<FetchedPiece>)>,
    /// Pieces that come between two rounds.
    speed: usize,
    wanted: usize,
    joined: usize,
    left: usize,
    recomputed: usize,
    failed: Option<Failed>,
    stuck: Option<generation::Error>,
    /// Answers that have not ended.
    open: usize,
}

/// A job as it comes from prefill, or, if only so many of its pieces are stored, for decode to prefill the rest.
fn submit_stored(batch: &mut Batch, number: usize, job: &Job, pieces: Option<usize>) -> Client {
    let mut prefilled = prefilled(job);
    let mut given = vec![Vec::new(); job.samples as usize];
    match pieces {
        Some(pieces) => prefilled.held.truncate(pieces),
        None => given = prefilled.answers.iter().map(|answer| vec![answer[0]]).collect(),
    }
    submit_given(batch, number, job, prefilled, given)
}

/// A job whose answers have these tokens already.
fn submit_given(batch: &mut Batch, number: usize, job: &Job, prefilled: Prefilled, given: Vec<Vec<u32>>) -> Client {
    submit_fetched(batch, number, job, prefilled, given, false)
}

/// A job as it comes from prefill, whose pieces are on their way already.
fn submit_early(batch: &mut Batch, number: usize, job: &Job) -> Client {
    let prefilled = prefilled(job);
    let given = prefilled.answers.iter().map(|answer| vec![answer[0]]).collect();
    submit_fetched(batch, number, job, prefilled, given, true)
}

fn submit_fetched(
    batch: &mut Batch,
    number: usize,
    job: &Job,
    prefilled: Prefilled,
    given: Vec<Vec<u32>>,
    early: bool,
) -> Client {
    let stored = prefilled.held.iter().map(FetchedPiece::tokens).sum();
    let (events, receiver) = unbounded_channel();
    let mut answers = Vec::new();
    for (choice, mut generation) in (0..).zip(generator().start_all(job).unwrap()) {
        let generated = given[choice as usize].clone();
        for &token in &generated {
            generation.accept(token, None).unwrap();
        }
        answers.push(NewAnswer { choice, generated, generation });
    }
    let open = answers.len();
    let (number, prompt) = (number as JobNumber, job.prompt.clone());
    batch.obey(Command::Job(Box::new(NewJob { number, prompt, stored, early, answers, events })));
    let fetches = early.then(|| (Fetch::Early(number), prefilled.held.clone()));
    Client {
        prefilled,
        events: receiver,
        answers: given,
        fetches: fetches.into_iter().collect(),
        speed: usize::MAX,
        wanted: 0,
        joined: 0,
        left: 0,
        recomputed: 0,
        failed: None,
        stuck: None,
        open,
    }
}

fn submit(batch: &mut Batch, number: usize, job: &Job) -> Client {
    submit_stored(batch, number, job, None)
}

/// Plays the handlers: notes what comes, and gives what is wanted.
fn attend(batch: &mut Batch, clients: &mut [Client]) {
    for client in clients {
        while let Ok(event) = client.events.try_recv() {
            match event {
                Event::Wanted { fetch } => {
                    client.wanted += 1;
                    client.fetches.push_back((fetch, client.prefilled.held.clone()));
                }
                Event::Joining { .. } => {}
                Event::Joined { recomputed, .. } => {
                    client.joined += 1;
                    client.recomputed += recomputed;
                }
                Event::Left => client.left += 1,
                Event::Token { choice, emitted } => {
                    let answer = &mut client.answers[choice as usize];
                    assert_eq!(emitted.index as usize, answer.len());
                    answer.push(emitted.token);
                    client.open -= usize::from(emitted.finish.is_some());
                }
                Event::Stuck(error) => client.stuck = Some(error),
                Event::Failed(failed) => client.failed = Some(failed),
            }
        }
        for (fetch, coming) in &mut client.fetches {
            for piece in coming.drain(..client.speed.min(coming.len())) {
                batch.obey(Command::Piece { fetch: *fetch, piece, came: Instant::now() });
            }
        }
        client.fetches.retain(|(_, coming)| !coming.is_empty());
    }
}

/// Works until every client has what it gets.
fn finish(batch: &mut Batch, clients: &mut [Client]) {
    for _ in 0..100_000 {
        batch.round();
        attend(batch, clients);
        for (number, client) in clients.iter().enumerate() {
            if client.failed.is_some() || client.stuck.is_some() {
                batch.obey(Command::Leave(number as JobNumber));
            }
        }
        if clients.iter().all(|client| client.open == 0 || client.failed.is_some() || client.stuck.is_some()) {
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

#[test]
fn a_prompt_whose_pieces_came_with_the_job_joins_at_once() {
    let mut batch = Batch::new(Box::new(sim(1000)));
    let jobs = sampled(PREFETCH_JOBS);
    let submit = |(number, job)| submit_early(&mut batch, number, job);
    let mut clients: Vec<_> = jobs.iter().enumerate().map(submit).collect();
    attend(&mut batch, &mut clients);
    assert!(batch.round());
    attend(&mut batch, &mut clients);
    // Three imports fit between two steps.
    assert_eq!(clients[0].answers.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2]);
    finish(&mut batch, &mut clients);
    assert_undisturbed(&clients);
    assert!(clients.iter().all(|client| (client.wanted, client.joined) == (0, 3)), "they were asked for again");
    // Those that had to leave the batch are asked for as ever, and late pieces are taken for nobody's.
    let jobs = sampled(12);
    let mut batch = Batch::new(Box::new(sim(10)));
    let mut clients: Vec<_> = jobs.iter().enumerate().map(|(id, job)| submit_early(&mut batch, id, job)).collect();
    clients.iter_mut().for_each(|client| client.speed = 1);
    finish(&mut batch, &mut clients);
    assert_undisturbed(&clients);
    assert!(clients.iter().any(|client| client.left > 0 && client.wanted > 0), "nobody had to leave the batch");
}

fn assert_undisturbed(clients: &[Client]) {
    for (id, client) in clients.iter().enumerate() {
        assert!(client.failed.is_none(), "{id}: {:?}", client.failed);
        assert!(client.stuck.is_none(), "{id}: {:?}", client.stuck);
        assert_eq!(client.answers, client.prefilled.answers, "{id}");
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

/// Jobs with three answers each, of many lengths.
fn sampled(count: usize) -> Vec<Job> {
    jobs(count).into_iter().map(|job| Job { samples: 3, ..job }).collect()
}

#[test]
fn the_answers_of_one_job_differ_fetch_together_and_are_what_they_would_be_alone() {
    let jobs = sampled(12);
    let roomy = run(sim(1000), &jobs);
    assert_undisturbed(&roomy);
    for client in &roomy {
        assert_eq!((client.wanted, client.joined, client.recomputed), (1, 3, 0), "one fetch for all three");
        let [a, b, c] = &client.answers[..] else { panic!("expected three answers") };
        assert!(a != b && b != c && a != c);
    }
    let tight = run(sim(10), &jobs);
    assert_undisturbed(&tight);
    assert!(tight.iter().any(|client| client.left > 0), "nobody had to leave the batch");
    assert_eq!(tight.iter().map(|client| client.recomputed).sum::<usize>(), 0, "prompts came from the store");
}

#[test]
fn pieces_are_imported_as_they_come() {
    let jobs = sampled(16);
    for pages in [1000, 10] {
        let mut batch = Batch::new(Box::new(sim(pages)));
        let mut clients: Vec<_> = jobs.iter().enumerate().map(|(id, job)| submit(&mut batch, id, job)).collect();
        clients.iter_mut().for_each(|client| client.speed = 1);
        finish(&mut batch, &mut clients);
        assert_undisturbed(&clients);
    }
    // The first piece is in pages before the last has come, and who waits for pieces has nothing to do.
    let mut batch = Batch::new(Box::new(sim(1000)));
    let mut clients = [submit(&mut batch, 0, &job(0, 350, 9))];
    clients[0].speed = 1;
    let mut held = Vec::new();
    while clients[0].joined == 0 {
        let works = batch.round();
        let KvMemory { pages, free_pages, .. } = batch.model.memory();
        assert!(!works || pages - free_pages == 6, "the thread would turn without end");
        held.push(pages - free_pages);
        attend(&mut batch, &mut clients);
    }
    // 100, 200, 300 and 350 tokens in pages of 64.
    assert_eq!(held, [0, 2, 4, 5, 6]);
    // What an earlier fetch brings late is not taken for the present one's.
    let [earlier, present] = [6, 7].map(Fetch::Wanted);
    let mut kv = Kv::Wanted(Pieces::of(present, 100));
    let missing = |tokens| FetchedPiece::Missing { tokens };
    assert!(!kv.take(earlier, &missing(100)) && !kv.take(Fetch::Early(7), &missing(100)));
    assert!(!kv.take(present, &missing(101)) && kv.take(present, &missing(100)));
    assert!(!kv.take(present, &missing(1)), "more than there are");
}

#[test]
fn decode_prefills_what_nobody_has_prefilled() {
    let jobs: Vec<Job> = sampled(12).into_iter().chain([job(12, 1, 5)]).collect();
    for pages in [1000, 10] {
        // Nothing is stored of some prompts, of others the first pieces.
        for stored in 0..3 {
            let mut batch = Batch::new(Box::new(sim(pages)));
            let submit = |(id, job): (usize, &Job)| {
                let whole = job.prompt.len().div_ceil(PIECE);
                submit_stored(&mut batch, id, job, Some(stored.min(whole - 1)))
            };
            let mut clients: Vec<_> = jobs.iter().enumerate().map(submit).collect();
            finish(&mut batch, &mut clients);
            assert_undisturbed(&clients);
            assert!(clients.iter().all(|client| client.recomputed == 0), "prefilling was taken for recomputing");
            assert_eq!(clients.iter().any(|client| client.left > 0), pages == 10);
            assert!(stored > 0 || clients.iter().all(|client| client.wanted == 0));
        }
    }
    // Short prompts are one pass; a device that is too small for that, or for one of them, takes its time.
    let jobs: Vec<Job> = (0..6).map(|number| job(number, 30, 20)).collect();
    for (most, first) in [(1 << 20, vec![30; 6]), (60, vec![30; 6]), (12, vec![30; 6])] {
        let (model, passes) = LimitedMemoryModel::new((9, most), false);
        let mut batch = Batch::new(Box::new(model));
        let mut clients: Vec<_> =
            jobs.iter().enumerate().map(|(id, job)| submit_stored(&mut batch, id, job, Some(0))).collect();
        finish(&mut batch, &mut clients);
        assert_undisturbed(&clients);
        let passes = passes.lock().unwrap();
        assert_eq!(passes[0], first);
        assert_eq!(
            passes.iter().filter(|pass| pass.iter().sum::<usize>() > most).count(),
            match most {
                60 => 1,
                12 => 13,
                _ => 0,
            }
        );
    }
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
    let generation = generator().start(&jobs[0], 0).unwrap();
    let answers = vec![NewAnswer { choice: 0, generated: vec![65], generation }];
    let job = NewJob { number: 12, prompt: vec![65, 257], stored: 2, early: false, answers, events };
    batch.obey(Command::Job(Box::new(job)));
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
    assert!(!clients[9].answers[0].is_empty());
    let failed = clients[10].failed.as_ref().unwrap();
    assert!(
        matches!(failed, Failed::Model(model::Error::ContextExceeded { context: 4096, needed: 4114 })),
        "{failed:?}"
    );
}
