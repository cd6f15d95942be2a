//! What is to be done about batches now and then, by one gateway of all: those that nobody is to drive any more are found.

use std::time::Duration;

use baton_bus::{duty::chore::Turn, gateways::batches};
use baton_contract::causes;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Options;
use crate::State;

const CHORE: &str = "sweep-batches";
/// The pause after a turn that could not be asked for, in times of `ack_wait`.
const PAUSE: u32 = 1;
/// A batch that was accepted so long ago has got its first errand, in times of `ack_wait`.
const GRACE: u32 = 2;
/// Between two looks, in times of `ack_wait`: each reads what is known about all batches.
const EVERY: u32 = 4;

/// Looks for batches without an errand whenever it is this gateway's turn, until `shutdown`.
pub(crate) async fn sweep_regularly(state: State, options: Options, shutdown: CancellationToken) {
    let ack_wait = options.ack_wait;
    loop {
        let pause = match state.jobs.turn(CHORE, EVERY * ack_wait).await {
            Ok(Turn::Mine) => {
                sweep(&state, GRACE * ack_wait).await;
                EVERY * ack_wait
            }
            Ok(Turn::In(wait)) => wait,
            Err(error) => {
                tracing::debug!(error = %causes(&error), "the turn to look for lost batches could not be asked for");
                PAUSE * ack_wait
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn sweep(state: &State, grace: Duration) {
    match batches::revive(&state.stores.batches, &state.stores.batch_errands, grace).await {
        Ok(revived) => tracing::debug!(revived = revived.len(), "lost batches were looked for"),
        Err(error) => {
            tracing::warn!(error = %causes(&error), "lost batches could not be looked for; the next turn does it")
        }
    }
}
