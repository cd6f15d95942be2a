//! Pipelines: a TOML text, the environment and the command line's overrides become one validated [`Plan`].
//!
//! Everything here is pure: it opens no file, reads no environment and knows no clock. Whoever has those passes them in.
//! It never stops at the first mistake: [`Errors`] lists them all, each with its key. [`Settings`] are what the processes of a
//! pipeline share, and [`Told`] is how one of them takes them over.
#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

mod bytes;
mod hub;
mod layers;
mod plan;
mod read;
mod section;
mod settings;
mod tables;
mod told;

use std::fmt;

pub use bytes::Bytes;
pub use hub::Hub;
pub use plan::{
    AnswerTokens, Bounds, Broker, BrokerUrl, Codec, Compute, Decode, Device, Fallback, Gateway, Limits, LogFormat,
    MaxRunning, Mode, Model, Plan, Planner, Prefill, Reach, Results, Roles, Sim, Stage, Stages, Store, StoreUrl,
    Telemetry, Tenant, Upstream,
};
pub use settings::{Difference, Settings, Standing};
pub use told::{Refused, Told};

/// Environment variables with this prefix set keys: `BATON__STAGES__PREFILL__REPLICAS=2` is `stages.prefill.replicas`.
pub const ENVIRONMENT_PREFIX: &str = "BATON__";

impl Plan {
    /// Layers the embedded defaults, the pipeline's `file` (its text), the variables of `environment` that start with
    /// [`ENVIRONMENT_PREFIX`] and the `overrides` (`stages.decode.slots=8`), the later over the earlier, and validates
    /// the outcome. Lists are replaced as a whole; from a variable or an override they may be separated by commas.
    pub fn load(
        file: Option<&str>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &[String],
    ) -> Result<Self, Errors> {
        let layers = layers::merge(Vec::new(), file, environment, overrides)?;
        read::plan(layers)
    }

    /// The plan as a pipeline's text; loading that gives an equal plan.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a plan holds only numbers, texts, lists and tables with text keys")
    }
}

/// One mistake in a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key it is about, as in `stages.prefill.replicas`; or where it was said, if that is no key.
    pub key: String,
    /// What was expected and what was found.
    pub message: String,
}

/// All that is wrong with a pipeline, at least one problem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Errors(pub Vec<Problem>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "the pipeline has a problem:")?,
            count => write!(f, "the pipeline has {count} problems:")?,
        }
        self.0.iter().try_for_each(|problem| write!(f, "\n  {}: {}", problem.key, problem.message))
    }
}
