//! Which pipeline and which tenant a command is about, as flags, environment and contexts say.

use std::{fs, path::PathBuf};

use anyhow::Context;
use baton_assembly::{
    Found,
    contexts::{self, CONTEXT_VARIABLE},
};
use baton_bus::Bus;
use baton_contract::Name;
use baton_topology::{Plan, Told};

const HEADING: &str = "Which pipeline";

/// Options of every command that talks to a pipeline.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct PipelineArguments {
    /// Pipeline file; without it one worker a stage on this machine
    #[arg(long, short, value_name = "FILE", env = "BATON_PIPELINE", help_heading = HEADING)]
    pub pipeline: Option<PathBuf>,
    /// A context of `baton context`; without it the selected one, and none if it is empty
    #[arg(long, value_name = "NAME", env = CONTEXT_VARIABLE, help_heading = HEADING)]
    pub context: Option<String>,
    /// NATS URLs of the broker, separated by commas (short for --set broker.url=...)
    #[arg(long, value_name = "URL", help_heading = HEADING)]
    pub nats: Option<String>,
    /// URL of the object store (short for --set store.url=...)
    #[arg(long, value_name = "URL", help_heading = HEADING)]
    pub store: Option<String>,
    /// Set any key of the pipeline, for example stages.decode.slots=8; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = HEADING)]
    pub set: Vec<String>,
}

/// Option of commands that are about one tenant's jobs.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct TenantArguments {
    /// Tenant of the jobs; without it the context's, or `default`
    #[arg(long, value_name = "NAME", env = "BATON_TENANT")]
    tenant: Option<Name>,
}

impl TenantArguments {
    /// The tenant that flag, environment or context name.
    pub fn named(&self, pipeline: &PipelineArguments) -> anyhow::Result<Option<Name>> {
        if self.tenant.is_some() {
            return Ok(self.tenant.clone());
        }
        Ok(pipeline.chosen()?.and_then(|context| context.tenant))
    }

    /// The same, or the tenant of those who name none.
    pub fn of(&self, pipeline: &PipelineArguments) -> anyhow::Result<Name> {
        Ok(self.named(pipeline)?.unwrap_or_else(Name::default_tenant))
    }
}

impl PipelineArguments {
    /// The context that the command is given, or the selected one. That one is not meant where a pipeline file is named.
    fn chosen(&self) -> anyhow::Result<Option<contexts::Context>> {
        match self.context.as_deref() {
            Some("") => Ok(None),
            Some(name) => Ok(Some(contexts::named(name)?)),
            None if self.pipeline.is_some() => Ok(None),
            None => Ok(contexts::selected()?),
        }
    }

    /// What file, context, environment and flags say.
    pub fn told(&self) -> anyhow::Result<Told> {
        let context = self.chosen()?.unwrap_or_default();
        let file = match self.pipeline.as_ref().or(context.pipeline.as_ref()) {
            None => None,
            Some(path) => {
                Some(fs::read_to_string(path).with_context(|| format!("cannot read the pipeline {}", path.display()))?)
            }
        };
        let mut overrides = self.set.clone();
        overrides.extend(self.nats.iter().map(|url| format!("broker.url={url}")));
        overrides.extend(self.store.iter().map(|url| format!("store.url={url}")));
        // Variables that are not UTF-8 can't be settings of ours.
        let environment = std::env::vars_os();
        let environment =
            environment.filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        let environment = context.variables().into_iter().chain(environment).collect();
        Ok(Told { machine: None, file, environment, overrides })
    }

    /// The validated plan of file, context, environment and flags, whatever a running pipeline has.
    pub fn plan(&self) -> anyhow::Result<Plan> {
        Ok(self.told()?.plan()?)
    }
    /// The pipeline, with its broker: the one that is named, or the one that `baton up` runs on this machine.
    pub fn find(&self) -> anyhow::Result<Found> {
        Ok(Found::find(self.told()?)?)
    }

    /// The plan and the broker of a pipeline, for a command that looks at it or uses it.
    pub async fn join(&self, name: &str) -> anyhow::Result<(Plan, Bus)> {
        Ok(self.find()?.join(name).await?)
    }
}
