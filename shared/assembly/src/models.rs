//! Where the engine finds the plan's models, and on what it computes.

use std::{path::Path, sync::Arc};

use baton_model::{
    sim,
    source::{self, Source},
    vocabulary::Vocabulary,
};
use baton_provision::{hub, setup::Setup};
use baton_topology::{Device, Model};

use crate::Error;

/// Where the engine finds a model of the plan; the default model and those of the hub are brought if they are missing. Blocks.
pub fn source(model: &Model) -> Result<Source, Error> {
    Ok(match model {
        Model::Default => Source::Checkpoint(Setup::from_environment(false)?.ensure_default_model()?),
        Model::File(path) => Source::Checkpoint(Path::new(path).to_owned()),
        Model::Hub(model) => {
            let options = hub::Options::from_environment().map_err(baton_provision::Error::from)?;
            Source::Checkpoint(hub::fetch(model, &options).map_err(baton_provision::Error::from)?)
        }
        Model::Upstream(upstream) => return Err(Error::Foreign(upstream.engine)),
        Model::Sim(sim) => Source::Sim(sim::Options {
            layers: sim.layers,
            kv_width: sim.kv_width,
            context: sim.context,
            prefill_s_per_token: sim.prefill_s_per_token,
            decode_s_per_step: sim.decode_s_per_step,
            answer_tokens: sim.answer_tokens.map(|tokens| sim::AnswerTokens { min: tokens.min, max: tokens.max }),
        }),
    })
}

/// The engine's name of a device.
pub fn device(device: Device) -> &'static str {
    match device {
        Device::Flex => "flex",
        Device::Cuda => "cuda",
        Device::Wgpu => "wgpu",
    }
}

/// A model's tokenizer and template, without its weights. Blocks.
pub fn vocabulary(model: &Model) -> Result<Arc<Vocabulary>, Error> {
    Ok(Arc::new(source::vocabulary(&source(model)?)?))
}
