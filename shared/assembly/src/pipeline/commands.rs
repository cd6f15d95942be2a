//! Which processes a plan wants, and how they are started.

use std::{ffi::OsString, iter, path::Path};

use baton_contract::subject::Stage;
use baton_provision::guard;
use baton_topology::{Plan, Roles};

use crate::Error;

/// A worker that the pipeline starts.
#[derive(Debug, PartialEq, Eq)]
struct Start {
    stage: Stage,
    /// Whether it may change between prefill and decode.
    flexible: bool,
    name: String,
}

/// The workers of a plan.
fn workers(plan: &Plan) -> Vec<Start> {
    let stages = &plan.stages;
    let fixed = |stage: Stage, replicas: usize| {
        (1..=replicas).map(move |number| Start { stage, flexible: false, name: format!("{stage}-{number}") })
    };
    let ingest = fixed(Stage::Ingest, stages.ingest.replicas);
    let (mut prefill, decode) = (stages.prefill.compute.stage.replicas, stages.decode.compute.stage.replicas);
    if prefill > 0 && !plan.has_prefill() {
        tracing::info!("no prefill worker is started, for foreign engines prefill the prompts of all models");
        prefill = 0;
    }
    match plan.planner.roles {
        Roles::Fixed => ingest.chain(fixed(Stage::Prefill, prefill)).chain(fixed(Stage::Decode, decode)).collect(),
        // Named for what they are all their life.
        Roles::Flexible => {
            let stages = iter::repeat_n(Stage::Prefill, prefill).chain(iter::repeat_n(Stage::Decode, decode));
            let start = |(number, stage)| Start { stage, flexible: true, name: format!("worker-{number}") };
            ingest.chain((1..).zip(stages).map(start)).collect()
        }
    }
}

impl Start {
    fn process(&self, plan: &Path) -> Result<Process, Error> {
        let stage = self.stage.as_str();
        match self.flexible {
            true => process(&["worker", "--roles", "prefill,decode", "--role", stage], plan, &self.name),
            false => process(&["worker", stage], plan, &self.name),
        }
    }
}

/// A process of the pipeline, and how it is started.
pub(super) struct Process {
    pub(super) name: String,
    pub(super) command: Vec<OsString>,
    pub(super) is_gateway: bool,
}

/// All processes that a plan wants, each this program with one of its commands; `file` is where the plan lies.
pub(super) fn processes(plan: &Plan, file: &Path) -> Result<Vec<Process>, Error> {
    let gateways = (1..=plan.gateway.replicas).map(|number| {
        let gateway = process(&["gateway"], file, &format!("gateway-{number}"))?;
        Ok(Process { is_gateway: true, ..gateway })
    });
    let workers = workers(plan).into_iter().map(|worker| worker.process(file));
    let planner = plan.planner.enabled.then(|| process(&["planner"], file, "planner-1"));
    gateways.chain(workers).chain(planner).collect()
}

fn process(command: &[&str], plan: &Path, name: &str) -> Result<Process, Error> {
    let mut words = guard::launcher()?;
    let own = words[0].clone();
    words.push(own);
    words.extend(command.iter().map(Into::into));
    words.extend(["--pipeline".into(), plan.into(), "--name".into(), name.into()]);
    Ok(Process { name: name.to_owned(), command: words, is_gateway: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flexible_workers_are_named_for_all_their_life_and_begin_as_the_plan_says() {
        let started = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
            let plan = Plan::load(None, [], &overrides).unwrap();
            workers(&plan).into_iter().map(|it| format!("{} {} {}", it.name, it.stage, it.flexible)).collect::<Vec<_>>()
        };
        let replicas = ["stages.decode.replicas=2", "planner.roles=flexible"];
        assert_eq!(
            started(&replicas[..1]),
            ["ingest-1 ingest false", "prefill-1 prefill false", "decode-1 decode false", "decode-2 decode false"]
        );
        assert_eq!(
            started(&replicas),
            ["ingest-1 ingest false", "worker-1 prefill true", "worker-2 decode true", "worker-3 decode true"]
        );
        let foreign = |more: &'static str| {
            started(&["models.e.source=openai", "models.e.urls=http://e", "default_model=e", more, replicas[1]])
        };
        assert_eq!(foreign("models.e.engine=vllm"), ["ingest-1 ingest false", "worker-1 decode true"]);
    }
}
