//! Checkpoints: who writes the last one.

use baton_bus::stage::checkpoints::{Found, Written};
use baton_contract::{
    checkpoint::Checkpoint,
    job::{Answer, Job},
    outcome::Timings,
    record::Claim,
    subject::Stage,
};

use crate::support::{Broker, job, job_id};

fn claim(attempt: u64) -> Claim {
    Claim { stage: Stage::Decode, sequence: 3, attempt, worker: format!("w-{attempt}") }
}

#[tokio::test]
async fn a_checkpoint_is_written_by_the_last_who_took_it_over() {
    let broker = Broker::start().await;
    let bus = broker.provisioned().await;
    let checkpoints = bus.checkpoints().await.unwrap();
    let job = Job { max_tokens: 100, request_digest: "ab".into(), ..job("job") };
    let of = |attempt, tokens: &[u32]| {
        let answer = Answer { tokens: tokens.to_vec(), ..Answer::default() };
        Checkpoint::of(claim(attempt), &job, &Timings::default(), &[answer])
    };
    let [first, second, third] = [1, 2, 3].map(|attempt| checkpoints.ledger(&job, claim(attempt)));
    assert_eq!(first.write(&of(1, &[5])).await.unwrap(), Written::Stored);
    assert_eq!(first.write(&of(1, &[5, 6])).await.unwrap(), Written::Stored);
    // The third delivery came before the second, which was held up, had begun.
    assert_eq!(third.take_over(&job).await.unwrap(), Found::Checkpoint(Box::new(of(1, &[5, 6]))));
    assert_eq!(second.take_over(&job).await.unwrap(), Found::Superseded);
    for late in [(&first, of(1, &[5, 6, 7])), (&second, of(2, &[5, 6, 7]))] {
        assert_eq!(late.0.write(&late.1).await.unwrap(), Written::Superseded, "{:?}", late.1.claim);
    }
    assert_eq!(third.write(&of(3, &[5, 6, 8])).await.unwrap(), Written::Stored);
    let fourth = checkpoints.ledger(&job, claim(4));
    assert_eq!(fourth.take_over(&job).await.unwrap(), Found::Checkpoint(Box::new(of(3, &[5, 6, 8]))));

    // One who has written nothing is kept from it as well, and nothing is gone on from that is another request's.
    let other = Job { id: job_id("other"), ..job.clone() };
    let [late, taker] = [1, 2].map(|attempt| checkpoints.ledger(&other, claim(attempt)));
    assert_eq!(taker.take_over(&other).await.unwrap(), Found::Nothing);
    assert_eq!(late.write(&of(1, &[5])).await.unwrap(), Written::Superseded);
    assert_eq!(taker.write(&of(2, &[9])).await.unwrap(), Written::Stored);
    let changed = Job { request_digest: "cd".into(), ..other };
    let stranger = checkpoints.ledger(&changed, claim(3));
    assert_eq!(stranger.take_over(&changed).await.unwrap(), Found::Nothing);
}
