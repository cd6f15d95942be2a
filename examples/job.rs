//! A job's whole life: submit it, watch its tokens, cancel it, and read its result.
//!
//! Start `baton up`, then run this with the broker's URL that it prints:
//! `NATS_URL=nats://127.0.0.1:PORT cargo run -p baton-bus --example job`

use std::{
    env,
    error::Error,
    io::{Write as _, stdout},
};

use baton_bus::{
    Bus, Options,
    clients::answers::{Ask, Event},
};
use baton_contract::{JobId, Name, subject::Layout};
use serde_json::json;

/// Tokens to watch before the job is cancelled.
const ENOUGH: u32 = 12;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let bus = Bus::connect(Options {
        url: env::var("NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".into()),
        credentials: None,
        name: "example".into(),
        layout: Layout::new(Name::new("baton")?),
    })
    .await?;
    let (tenant, lane) = (Name::new("acme")?, Name::new("interactive")?);

    // The id is the idempotency key: run this again within a week, and you read the result that is there.
    let job = JobId::new("from-rust")?;
    let request =
        json!({ "id": job, "prompt": "The sea is salty because", "max_tokens": 400, "temperature": 0.8, "seed": 7 });
    let ask =
        Ask { tenant: &tenant, lane: &lane, job: &job, body: serde_json::to_vec(&request)?, live: true, known: true };
    // Returns once the broker has stored the request; from here on the job ends exactly once, whatever crashes.
    let mut answer = bus.answers().await?.ask(ask).await?;

    let mut next = 0;
    let outcome = loop {
        match answer.next().await {
            // A job that another worker resumed repeats tokens, and a slow reader misses some. The result has them all.
            Event::Delta(delta) if delta.index == next => {
                next += 1;
                print!("{}", delta.text);
                stdout().flush()?;
                if next == ENOUGH {
                    println!("\n-- cancelled: {:?}", bus.cancel(&tenant, &job).await?);
                }
            }
            Event::Delta(_) => {}
            Event::Result(outcome) => break outcome,
            Event::Refused(refusal) => return Err(refusal.error.to_string().into()),
        }
    };
    println!("-- {:?}: {} tokens", outcome.status, outcome.usage.completion_tokens);

    // Any process may read the result later, as long as it is kept.
    let kept = bus.jobs().await?.result(&tenant, &job).await?.ok_or("the result is gone")?;
    println!("{}", kept.text);
    Ok(())
}
