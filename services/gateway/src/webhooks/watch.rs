//! Looks now and then at how many webhooks wait to be called: no gateway that could call them may be there.

use std::time::Duration;

use baton_contract::causes;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::State;

const EVERY: Duration = Duration::from_secs(60);

/// Tells the metrics, and the log where this gateway can't call them, until `shutdown`.
pub(super) async fn run(state: State, shutdown: CancellationToken) {
    let mut looks = interval(EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut waited = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = looks.tick() => {}
        }
        let waiting = match state.stores.webhook_errands.waiting().await {
            Ok(waiting) => waiting,
            Err(error) => {
                tracing::debug!(error = causes(&error), "webhooks that wait could not be counted");
                continue;
            }
        };
        state.metrics.webhooks_waiting(waiting);
        // Those of one look may be on their way.
        if waited && waiting > 0 && state.keys.is_none() {
            tracing::warn!(
                waiting,
                "webhooks wait for a gateway with a file of keys (gateway.keys_file); this one has none"
            );
        }
        waited = waiting > 0;
    }
}
