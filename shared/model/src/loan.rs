//! Lending a loaded model: who is lent it uses it as its own and need not know that it goes back. So a process computes now for
//! one stage and then for another, with one copy of the weights.

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::Duration,
};

use baton_contract::kv;

use crate::model::{Error, KvMemory, Model, SequenceId, Spec, Step};

/// Keeps a model and lends it to one at a time.
pub struct Lender {
    spec: Spec,
    model: Arc<Mutex<Box<dyn Model>>>,
    /// Hangs up when who was lent the model last has let go of it.
    out: Option<Receiver<()>>,
}

impl Lender {
    /// Takes a model that nobody uses.
    pub fn new(model: Box<dyn Model>) -> Self {
        Self { spec: model.spec().clone(), model: Arc::new(Mutex::new(model)), out: None }
    }

    /// What the model is.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Waits until the model is back, at most `patience`, and lends it; nothing if it is still out then. Blocks.
    pub fn lend(&mut self, patience: Duration) -> Option<Box<dyn Model>> {
        let out = self.out.as_ref().map(|out| out.recv_timeout(patience));
        if let Some(Ok(()) | Err(RecvTimeoutError::Timeout)) = out {
            return None;
        }
        let (back, out) = mpsc::channel();
        self.out = Some(out);
        Some(Box::new(Loan { model: self.model.clone(), spec: self.spec.clone(), open: BTreeSet::new(), _back: back }))
    }
}

/// A model on loan. Dropping it closes its sequences.
struct Loan {
    model: Arc<Mutex<Box<dyn Model>>>,
    spec: Spec,
    open: BTreeSet<SequenceId>,
    /// Hangs up when this is dropped, which is after the sequences were closed.
    _back: Sender<()>,
}

impl Loan {
    /// Never waits: nobody else has the model meanwhile.
    fn model(&self) -> MutexGuard<'_, Box<dyn Model>> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut model = self.model();
        self.open.iter().for_each(|sequence| model.close(*sequence));
    }
}

impl Model for Loan {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn memory(&self) -> KvMemory {
        self.model().memory()
    }

    fn open(&mut self) -> SequenceId {
        let sequence = self.model().open();
        self.open.insert(sequence);
        sequence
    }

    fn close(&mut self, sequence: SequenceId) {
        self.model().close(sequence);
        self.open.remove(&sequence);
    }

    fn len(&self, sequence: SequenceId) -> Result<usize, Error> {
        self.model().len(sequence)
    }

    fn forward(&mut self, steps: &[Step<'_>]) -> Result<Vec<Vec<f32>>, Error> {
        self.model().forward(steps)
    }

    fn export(&self, sequence: SequenceId, tokens: Range<usize>) -> Result<kv::Block, Error> {
        self.model().export(sequence, tokens)
    }

    fn import(&mut self, sequence: SequenceId, tokens: &[u32], block: &kv::Block) -> Result<(), Error> {
        self.model().import(sequence, tokens, block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Options, Sim};

    #[test]
    fn a_model_has_one_user_at_a_time_and_comes_back_with_all_its_memory() {
        let mut lender = Lender::new(Box::new(Sim::new(Options::default(), 1 << 24).unwrap()));
        let mut first = lender.lend(Duration::ZERO).unwrap();
        let memory = first.memory();
        let sequence = first.open();
        first.forward(&[Step { sequence, tokens: &[1; 40], logits: 1 }]).unwrap();
        assert!(first.memory().free_pages < memory.free_pages);
        assert!(lender.lend(Duration::ZERO).is_none(), "it was lent twice");
        drop(first);
        let second = lender.lend(Duration::ZERO).unwrap();
        assert_eq!(second.memory(), memory);
        assert!(second.len(sequence).is_err(), "a sequence outlived its user");
    }
}
