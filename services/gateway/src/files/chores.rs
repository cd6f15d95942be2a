//! What is to be done about files now and then, by one gateway of all: those that have expired go, and bytes that belong
//! to no file.

use std::{collections::HashSet, time::Duration};

use baton_bus::duty::chore::Turn;
use baton_contract::causes;
use baton_storage::files::{self, Blob};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{UPLOAD_WITHIN, blobs_of_run, now, place};
use crate::State;

const CHORE: &str = "sweep-files";
const EVERY: Duration = Duration::from_secs(3_600);
/// The pause after a turn that failed.
const PAUSE: Duration = Duration::from_secs(60);
/// Bytes to which nothing was added for this long belong to no upload that still goes on.
const GRACE: Duration = Duration::from_secs(2 * UPLOAD_WITHIN.as_secs());

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Bus(#[from] baton_bus::Error),
    #[error(transparent)]
    Files(#[from] files::Error),
}

/// Sweeps whenever it is this gateway's turn, until `shutdown`.
pub(crate) async fn sweep_regularly(state: State, shutdown: CancellationToken) {
    loop {
        let pause = match state.jobs.turn(CHORE, EVERY).await {
            Ok(Turn::Mine) => match sweep(&state).await {
                Ok(()) => EVERY,
                Err(error) => {
                    tracing::warn!(error = %causes(&error), "files were not swept; the next turn does it");
                    EVERY
                }
            },
            Ok(Turn::In(wait)) => wait,
            Err(error) => {
                tracing::debug!(error = %causes(&error), "the turn to sweep files could not be asked for");
                PAUSE
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn sweep(state: &State) -> Result<(), Error> {
    let Some(files) = &state.files else { return Ok(()) };
    let (shelf, now) = (&state.stores.files, now(state).await?);
    for (tenant, id, file) in shelf.all().await? {
        if file.expires_at.is_some_and(|expires| expires <= now) {
            shelf.remove(&tenant, &id).await?;
            tracing::info!(file = %id, %tenant, "a file expired");
        }
    }
    let named = async {
        let mut named: HashSet<Blob> = HashSet::new();
        // Batches first: one that ends in between has its files on the shelf by then.
        for (tenant, _, batch) in state.stores.batches.select(|batch| !batch.status.is_final()).await? {
            named.extend(batch.run.iter().flat_map(|run| blobs_of_run(&tenant, run)));
        }
        named.extend(shelf.all().await?.iter().filter_map(|(_, _, file)| Some(place(file)?.0)));
        Ok::<_, Error>(named)
    };
    let swept = files.sweep(GRACE, files.now().await?, named).await?;
    tracing::debug!(blobs = swept.blobs, removed = swept.removed, "files were swept");
    Ok(())
}
