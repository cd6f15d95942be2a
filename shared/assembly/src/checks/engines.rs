//! Whether the foreign engines of a plan can be asked, serve the models that they are named for, and what they can.

use std::time::Duration;

use baton_contract::{
    Name,
    upstream::{Ask, Engine},
};
use baton_topology::{Model, Plan};
use baton_upstream::{Call, Event, Instance};
use futures::future::join_all;
use tokio::time::timeout;

use super::check::{Check, Fault};
use crate::upstreams;

/// How long an engine may take for one token; it may have others in hand.
const TOKEN_WITHIN: Duration = Duration::from_secs(60);

/// Checks all of them, a check for each instance.
pub async fn engines(plan: &Plan) -> Vec<Check> {
    let mut checks = Vec::new();
    for (name, model) in &plan.models {
        let Model::Upstream(upstream) = model else { continue };
        match upstreams::open(name, upstream) {
            Ok(upstream) => {
                let decodes = upstream.instances().iter().map(|instance| check(name, instance, true));
                let prefills = upstream.prefill_instances().iter().map(|instance| check(name, instance, false));
                checks.extend(join_all(decodes).await);
                checks.extend(join_all(prefills).await);
            }
            Err(error) => checks.push(Check::new(format!("model {name}"), Err(Fault::from(error)))),
        }
    }
    checks
}

async fn check(name: &Name, instance: &Instance, decodes: bool) -> Check {
    let what = if decodes { "model" } else { "prefill of model" };
    Check::new(format!("{what} {name} at {}", instance.url()), look(name, instance, decodes).await)
}

async fn look(name: &Name, instance: &Instance, decodes: bool) -> Result<String, Fault> {
    let models = instance.models().await.map_err(told)?;
    if !models.iter().any(|model| model == instance.model()) {
        let (served, wanted) = (models.join(", "), instance.model());
        return Err(Fault(format!(
            "it serves {served}, and no {wanted}: set models.{name}.model to a name that it serves"
        )));
    }
    let mut can = vec![format!("{} serves {}", instance.engine(), instance.model())];
    can.push(match instance.tells_its_queue().await {
        Some(true) => "tells its queue".to_owned(),
        Some(false) => {
            format!("tells nothing of its queue, so max_running = \"auto\" goes by first tokens{}", remedy(instance))
        }
        None => "max_running = \"auto\" goes by first tokens".to_owned(),
    });
    // An instance that only prefills keeps what nobody fetches.
    if decodes {
        can.push(answer(instance).await?.to_owned());
    }
    Ok(can.join("; "))
}

/// How an engine is brought to tell its queue.
fn remedy(instance: &Instance) -> &'static str {
    match instance.engine() {
        Engine::LlamaCpp => " (start it with --metrics)",
        Engine::Sglang => " (start it with --enable-metrics)",
        Engine::Vllm | Engine::OpenAi => "",
    }
}

/// Has it generate a token, and says what came of that.
async fn answer(instance: &Instance) -> Result<&'static str, Fault> {
    let body = r#"{"messages":[{"role":"user","content":"Hello"}],"max_tokens":1}"#.to_owned();
    let ask = Ask { chat: true, body, handover: None };
    let answered = async {
        let mut reply = instance.ask(Call { ask: &ask, resume: None, trace: &[] }).await.map_err(told)?;
        let mut tokens = false;
        while let Some(event) = reply.next().await.map_err(told)? {
            tokens |= matches!(&event, Event::Piece(piece) if !piece.tokens.is_empty());
        }
        Ok::<_, Fault>(tokens)
    };
    let silent = |_| Fault(format!("it did not answer a prompt of a word within {TOKEN_WITHIN:?}"));
    Ok(match (timeout(TOKEN_WITHIN, answered).await.map_err(silent)??, instance.engine()) {
        (true, _) => "answers, with token ids",
        (false, Engine::Vllm) => {
            "answers, without token ids: take a newer vLLM for answers to go on where they stopped"
        }
        (false, _) => "answers",
    })
}

fn told(fault: baton_upstream::Fault) -> Fault {
    Fault(fault.message)
}
