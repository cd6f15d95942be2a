//! What becomes of a model whose device failed.

use baton_model::model::{self, SequenceId};

use super::cache::{self, Cache};
use super::failure::{Failure, caught};
use super::model::Llama;
use crate::kernels::PAGE;

impl Llama {
    /// Refuses work for a device that is lost.
    pub(super) fn check_device(&self) -> Result<(), model::Error> {
        match &self.lost {
            Some(reason) => Err(model::Error::StepFailed(reason.clone())),
            None => Ok(()),
        }
    }

    /// Finds out what a failure has left, makes the best of it, and tells of it. Lengths of sequences are left alone.
    pub(super) fn fail(&mut self, failure: Failure) -> model::Error {
        let whole = caught(|| {
            self.device.memory_cleanup();
            cache::check(&self.caches)
        });
        let left = match whole {
            Ok(()) => "nothing is lost; give the model less to do at once".to_owned(),
            Err(_) => self.start_over(&failure),
        };
        model::Error::StepFailed(format!("{failure}; {left}"))
    }

    /// Closes all sequences and takes new memory for the KV cache.
    fn start_over(&mut self, failure: &Failure) -> String {
        self.sequences.clear();
        self.free_pages = (0..self.pages as u32).rev().collect();
        // The old memory goes before the new comes.
        self.caches.clear();
        let caches = caught(|| {
            self.device.memory_cleanup();
            let new = || Cache::new(self.operators, &self.device, self.config.heads, self.pages);
            let caches: Vec<Cache> = self.config.layers.iter().map(|_| new()).collect();
            cache::check(&caches)?;
            Ok(caches)
        });
        match caches {
            Ok(caches) => {
                self.caches = caches;
                "all sequences are closed, for their KV cache is lost; start them again with less to do at once"
                    .to_owned()
            }
            Err(_) => {
                let advice = "the model can't be used any more; load it again, or restart the worker";
                self.lost = Some(format!("{failure}; {advice}"));
                advice.to_owned()
            }
        }
    }

    /// Takes the tokens and pages beyond these lengths from sequences.
    pub(super) fn shrink(&mut self, lengths: &[(SequenceId, usize)]) {
        for (id, len) in lengths {
            if let Some(sequence) = self.sequences.get_mut(id) {
                sequence.len = *len;
                let freed = sequence.pages.split_off(len.div_ceil(PAGE));
                self.free_pages.extend(freed.into_iter().rev());
            }
        }
    }
}
