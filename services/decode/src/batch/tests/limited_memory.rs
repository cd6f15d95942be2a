//! What is computed in which pass, and what becomes of passes that a device can't take.

use super::*;
use crate::kv_import::COMPUTE_COST;

/// A device that is too small for large passes, and what was asked of it.
pub(super) struct LimitedMemoryModel {
    sim: Sim,
    /// Sequences and tokens of a pass that is possible.
    most: (usize, usize),
    /// Whether a pass that fails leaves traces, as it should not.
    dirty: bool,
    /// Whose logits are no numbers, from so many tokens on.
    spoilt: Option<(SequenceId, usize)>,
    /// Tokens of each step of each pass.
    passes: Arc<Mutex<Vec<Vec<usize>>>>,
}

impl LimitedMemoryModel {
    pub(super) fn new(most: (usize, usize), dirty: bool) -> (Self, Arc<Mutex<Vec<Vec<usize>>>>) {
        let passes: Arc<Mutex<Vec<Vec<usize>>>> = Arc::default();
        (Self { sim: sim(1000), most, dirty, spoilt: None, passes: passes.clone() }, passes)
    }
}

impl Model for LimitedMemoryModel {
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
        let mut logits = self.sim.forward(steps)?;
        if let Some((spoilt, from)) = self.spoilt {
            for (step, logits) in steps.iter().zip(&mut logits).filter(|(step, _)| step.sequence == spoilt) {
                if self.sim.len(step.sequence)? >= from {
                    logits.fill(f32::NAN);
                }
            }
        }
        Ok(logits)
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
        let (model, passes) = LimitedMemoryModel::new((5, 1 << 20), dirty);
        assert_undisturbed(&run(model, &jobs));
        let passes = passes.lock().unwrap();
        let steps: Vec<usize> =
            passes.iter().filter(|pass| pass.iter().all(|tokens| *tokens == 1)).map(Vec::len).collect();
        let failed = steps.iter().filter(|answers| **answers > 5).count();
        assert!(failed > 0 && failed < steps.len() / 20, "{failed} of {} steps failed", steps.len());
        assert!(steps.contains(&5), "the batch did not grow again");
    }
    // A device that can do nothing fails every job, one by one, and ends.
    let (model, _) = LimitedMemoryModel::new((0, 0), false);
    let clients = run(model, &jobs);
    assert!(clients.iter().all(|client| matches!(client.failed, Some(Failed::Model(model::Error::StepFailed(_))))));
}

#[test]
fn logits_that_are_no_numbers_end_their_own_answer_only() {
    let jobs = jobs(4);
    let (mut model, _) = LimitedMemoryModel::new((usize::MAX, usize::MAX), false);
    // The sim engine numbers its sequences, and answers join in their order.
    model.spoilt = Some((SequenceId(1), jobs[1].prompt.len() + 9));
    let mut clients = run(model, &jobs);
    let spoilt = clients.remove(1);
    assert!(spoilt.stuck.as_ref().is_some_and(generation::Error::may_pass_elsewhere), "{:?}", spoilt.stuck);
    assert_eq!(spoilt.answers[0], spoilt.prefilled.answers[0][..9], "what was sound was told");
    assert_undisturbed(&clients);
}

#[test]
fn who_joins_does_not_hold_up_those_who_run() {
    // The second answer's prompt is missing in the store, but for its middle.
    let jobs = [job(0, 50, 60), job(1, 1500, 20), job(2, 900, 20)];
    for (most, longest) in [(1 << 20, PIECE), (60, PIECE / 2)] {
        let (model, passes) = LimitedMemoryModel::new((9, most), false);
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
                *held = FetchedPiece::Missing { tokens: PIECE };
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
        assert_eq!(seen, COMPUTE_TOKENS_PER_STEP, "tokens were computed between two steps");
    }
}

/// A job that another worker has left after so many tokens of each answer.
fn submit_left(batch: &mut Batch, number: usize, job: &Job, tokens: usize) -> Client {
    let prefilled = prefilled(job);
    let left = |answer: &Vec<u32>| answer[..tokens.min(answer.len() - 1)].to_vec();
    let given = prefilled.answers.iter().map(left).collect();
    submit_given(batch, number, job, prefilled, given)
}

#[test]
fn answers_go_on_where_another_worker_left_them() {
    let jobs = sampled(12);
    for pages in [1000, 10] {
        for tokens in [1, 2, 17, 35] {
            let mut batch = Batch::new(Box::new(sim(pages)));
            let submit = |(id, job)| submit_left(&mut batch, id, job, tokens);
            let mut clients: Vec<_> = jobs.iter().enumerate().map(submit).collect();
            finish(&mut batch, &mut clients);
            assert_undisturbed(&clients);
            assert!(clients.iter().all(|client| client.recomputed == 0), "prompts came from the store");
            assert_eq!(clients.iter().any(|client| client.left > 0), pages == 10);
        }
    }
    // What was generated is computed in as few passes as the running answers may wait for, not a token at a time. Importing
    // the prompt took its part of the first.
    let first = (IMPORT_TOKENS_PER_STEP - 90) / COMPUTE_COST;
    for (left, passes) in [(200, vec![200, 1, 1]), (400, vec![first, 400 - first, 1])] {
        let (model, seen) = LimitedMemoryModel::new((1, 1 << 20), false);
        let mut batch = Batch::new(Box::new(model));
        let mut clients = [submit_left(&mut batch, 0, &job(0, 90, 420), left)];
        finish(&mut batch, &mut clients);
        assert_undisturbed(&clients);
        let tokens: Vec<usize> = seen.lock().unwrap().iter().map(|pass| pass.iter().sum()).collect();
        assert_eq!(tokens[..3], passes);
    }
}
