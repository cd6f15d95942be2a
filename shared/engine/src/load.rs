//! Loads a model, whichever engine computes it.

use baton_model::model::{self, Model};
use baton_model::sim::{self, Sim};
use baton_model::source::Source;
use baton_model::{checkpoint, formats};

use crate::allocator;
use crate::llama::{self, Llama};

/// Why a model can't be loaded.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error(transparent)]
    File(#[from] checkpoint::Error),
    #[error(transparent)]
    Llama(#[from] llama::Error),
    #[error(transparent)]
    Sim(#[from] sim::OptionsError),
}

/// Loads a model. The simulated model needs no device and takes any name.
pub fn load(source: &Source, options: &model::Options) -> Result<Box<dyn Model>, Error> {
    match source {
        Source::Checkpoint(path) => {
            let model = Llama::load(formats::open(path)?, options)?;
            // Not before: what loading took and gave back is not needed again.
            allocator::keep_freed_memory();
            Ok(Box::new(model))
        }
        Source::Sim(sim) => Ok(Box::new(Sim::new(sim.clone(), options.kv_bytes)?)),
    }
}

#[cfg(test)]
mod tests {
    use baton_model::source::vocabulary;

    use super::*;

    #[test]
    fn a_simulated_model_needs_no_device() {
        let source = Source::Sim(sim::Options::default());
        let loaded = load(&source, &model::Options { device: "none".to_owned(), ..model::Options::default() }).unwrap();
        assert_eq!(loaded.spec(), vocabulary(&source).unwrap().spec());
    }
}
