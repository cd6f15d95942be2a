//! Baton before an engine: a broker and workers of its own, so that each can be killed.

use std::{path::Path, time::Duration};

use baton_bus::Bus;
use baton_contract::{Name, subject::Layout, subject::Stage};
use serde_json::Value;

use super::{Error, Ground, Kind, MODEL, server::Engine};
use crate::chaos::{
    broker::{Broker, free_port},
    kind::Role,
    processes::Worker,
};

/// What a worker that died held goes to another one this soon.
const ACK_WAIT: Duration = Duration::from_secs(5);

/// Settings of all processes of all stacks.
pub(super) fn settings(place: &Path) -> Vec<String> {
    let ack_wait = ACK_WAIT.as_secs();
    vec![
        "telemetry.log=info".into(),
        format!("store.url=file://{}", place.join("store").display()),
        format!("stages.decode.ack_wait={ack_wait}s"),
        format!("stages.prefill.ack_wait={ack_wait}s"),
        format!("default_model={MODEL}"),
        format!("models.{MODEL}.source=openai"),
    ]
}

/// What a stack has besides one broker, one ingest worker and one gateway.
pub(super) struct Shape<'a> {
    pub(super) engine: &'a Engine,
    /// One that only prefills.
    pub(super) prefill: Option<&'a Engine>,
    pub(super) decoders: usize,
    /// As the pipeline file has it.
    pub(super) max_running: String,
}

/// A pipeline that runs. Its processes end with it.
pub(super) struct Stack {
    pub(super) bus: Bus,
    /// The gateway's URL.
    pub(super) url: String,
    broker: Broker,
    address: String,
    program: crate::chaos::processes::Program,
    workers: Vec<Worker>,
}

impl Ground<'_> {
    /// A pipeline before an engine, with one decode worker.
    pub(super) async fn before(&self, engine: &Engine, max_running: &str) -> Result<Stack, Error> {
        self.stack(Shape { engine, prefill: None, decoders: 1, max_running: max_running.into() }).await
    }

    /// Starts a pipeline, and waits until its workers take jobs.
    pub(super) async fn stack(&self, shape: Shape<'_>) -> Result<Stack, Error> {
        let engine = match self.options.engine {
            Kind::Vllm => "vllm",
            Kind::LlamaCpp => "llama.cpp",
        };
        let mut settings = vec![
            format!("models.{MODEL}.engine={engine}"),
            format!("models.{MODEL}.urls={}", shape.engine.url()),
            format!("models.{MODEL}.max_running={}", shape.max_running),
        ];
        settings.extend(shape.prefill.map(|prefill| format!("models.{MODEL}.prefill_urls={}", prefill.url())));
        settings.extend(self.options.set.iter().cloned());
        let program = self.program.with(settings);
        let place = self.place.join(format!("stack-{}", uuid::Uuid::now_v7().simple()));
        let mut broker = Broker::new(&program, self.nats_server.clone(), &place, false, "8MB").await?;
        broker.start().await?;
        let address = format!("nats://{}", broker.addresses().join(","));
        let port = free_port().await?;
        let mut workers = Vec::new();
        let prefills = usize::from(shape.prefill.is_some());
        let roles = [
            (Role::Stage(Stage::Ingest), 1),
            (Role::Stage(Stage::Prefill), prefills),
            (Role::Stage(Stage::Decode), shape.decoders),
            (Role::Gateway, 1),
        ];
        for (role, count) in roles {
            for number in 0..count {
                let mut worker = Worker::new(program.clone(), role, number, address.clone(), port);
                worker.start().await?;
                workers.push(worker);
            }
        }
        let options = baton_bus::Options {
            url: address.clone(),
            credentials: None,
            name: "baton-engines".into(),
            layout: Layout::new(Name::new("baton")?),
        };
        let bus = Bus::connect(options).await?;
        Ok(Stack { bus, url: format!("http://127.0.0.1:{port}"), broker, address, program, workers })
    }
}

impl Stack {
    /// Starts workers again that have ended by themselves.
    pub(super) async fn tend(&mut self) -> Result<(), Error> {
        for worker in &mut self.workers {
            worker.revive().await?;
        }
        Ok(())
    }

    /// Ends the first decode worker at once; [`Stack::tend`] starts another one in its place.
    pub(super) async fn kill_decoder(&mut self) {
        if let Some(worker) = self.workers.iter_mut().find(|worker| worker.name == "decode-1") {
            worker.kill().await;
        }
    }

    /// Ends the broker at once.
    pub(super) async fn kill_broker(&mut self) {
        self.broker.kill_node(0).await;
    }

    /// Starts it again with what it had stored.
    pub(super) async fn start_broker(&mut self) -> Result<(), Error> {
        Ok(self.broker.start().await?)
    }

    /// What a command prints about this pipeline, whether it succeeds or not.
    pub(super) async fn command(&self, arguments: &[&str]) -> Result<std::process::Output, Error> {
        Ok(self.program.attempt(arguments, &self.address).await?)
    }

    /// The sum of a figure over what all workers tell of all engines.
    pub(super) async fn told(&self, figure: &str) -> Result<u64, Error> {
        let output = self.command(&["top", "--once", "--json"]).await?;
        let view: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let mut sum = 0;
        add(&view["workers"], figure, &mut sum);
        Ok(sum)
    }

    /// Ends all of it.
    pub(super) async fn stop(mut self) {
        for worker in &mut self.workers {
            worker.kill().await;
        }
        self.broker.stop().await;
    }
}

/// Adds what the objects of `upstreams` lists say under a name.
fn add(value: &Value, name: &str, sum: &mut u64) {
    match value {
        Value::Array(list) => list.iter().for_each(|value| add(value, name, sum)),
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::Number(number) if key == name => *sum += number.as_u64().unwrap_or_default(),
                    _ => add(value, name, sum),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_figure_is_added_up_over_all_workers_and_engines() {
        let view = json!([
            { "jobs_done": 9, "upstreams": [{ "url": "a", "transfers": 2, "transfer_fallbacks": 1 }, { "transfers": 3 }] },
            { "upstreams": [{ "transfers": 4 }] },
            { "transfers": "none" },
        ]);
        let sum = |figure: &str| {
            let mut sum = 0;
            add(&view, figure, &mut sum);
            sum
        };
        assert_eq!([sum("transfers"), sum("transfer_fallbacks"), sum("answered")], [9, 1, 0]);
    }
}
