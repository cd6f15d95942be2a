//! Takes batches that are to be driven, and brings each to its end.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use baton_bus::{
    gateways::errands::Errands,
    stage::{
        delivery::{Delivery, Settle},
        pull::Receiver,
    },
};
use baton_contract::{
    JobId, Name,
    batch::{Batch, End, Problem, Progress, Status},
    causes,
};
use baton_openai::Endpoint;
use baton_storage::files::{self, Files};
use bytes::Bytes;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{
    Options, change,
    drive::{Error, Run},
    input::{self, Lines},
    output::Output,
};
use crate::{
    State,
    files::{find, now, place},
    webhooks,
};

/// The pause before a batch that could not be driven is tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// Drives batches until `shutdown`; then gives them back for another gateway to go on.
pub(crate) async fn run(state: State, options: Options, shutdown: CancellationToken) {
    let Some(files) = state.files.clone() else { return };
    let errands = state.stores.batch_errands.clone();
    let Options { slots, max_output, .. } = options;
    errands.run(slots, Arc::new(Driver { state, files, max_output }), shutdown).await;
}

struct Driver {
    state: State,
    files: Files,
    max_output: u64,
}

impl Receiver for Driver {
    async fn receive(&self, delivery: &Delivery) -> Settle {
        let id = std::str::from_utf8(delivery.payload()).ok().and_then(|id| JobId::new(id).ok());
        let (Some(tenant), Some(id)) = (Errands::tenant(delivery), id) else { return Settle::Term };
        match self.drive(&tenant, &id, delivery.attempt == 1).await {
            Ok(()) => Settle::Ack,
            Err(Error::Superseded) => {
                tracing::info!(batch = %id, %tenant, "another gateway drives the batch; leaving it");
                self.leave(&tenant, delivery).await
            }
            Err(error) => {
                tracing::warn!(error = %causes(&error), batch = %id, %tenant, "a batch could not be driven to its end and is tried again");
                Settle::Nak(Some(PAUSE))
            }
        }
    }
}

impl Driver {
    /// What becomes of the errand of a batch that another drives: it is his, too, unless he has one of his own, as after a
    /// restored stream. Then this one would take the batch from him in its turn.
    async fn leave(&self, tenant: &Name, delivery: &Delivery) -> Settle {
        let errand = (tenant.clone(), Bytes::copy_from_slice(delivery.payload()));
        match self.state.stores.batch_errands.open().await {
            Ok(open) if open.get(&errand).is_some_and(|count| *count > 1) => Settle::Ack,
            _ => Settle::Leave,
        }
    }

    /// Brings a batch to its end, wherever an earlier run has left it, and has the webhook called.
    async fn drive(&self, tenant: &Name, id: &JobId, first: bool) -> Result<(), Error> {
        let state = &self.state;
        let run = uuid::Uuid::now_v7().simple().to_string();
        let taken_over = AtomicBool::new(false);
        let taken = state.stores.batches.change(tenant, id, |batch| {
            taken_over.store(batch.run.is_some(), Ordering::Relaxed);
            batch.taken(&run)
        });
        // One that is gone was never told to its sender.
        let Some(batch) = taken.await? else { return Ok(()) };
        let batch = match batch.is_of(&run) {
            true => self.finish(tenant, &batch, &run, first && !taken_over.load(Ordering::Relaxed)).await?,
            // It has ended; only its webhook may be missing.
            false => batch,
        };
        tracing::info!(batch = %id, %tenant, status = batch.status.as_str(), counts = ?batch.counts, "a batch ended");
        webhooks::batch_ended(state, tenant, &batch).await?;
        Ok(())
    }

    async fn finish(&self, tenant: &Name, batch: &Batch, run: &str, first: bool) -> Result<Batch, Error> {
        let (state, id) = (&self.state, batch.order.id.as_str());
        match self.answer(tenant, batch, run, first).await {
            Ok((end, progress, output)) => {
                let finalizing_at = now(state).await?;
                let finalizing = change(state, tenant, id, |batch| batch.finalizing(run, &progress, finalizing_at));
                let finalizing = finalizing.await?.filter(|batch| batch.is_of(run)).ok_or(Error::Superseded)?;
                let end = if finalizing.status == Status::Cancelling { End::Cancelled } else { end };
                let files = output.finish().await?.shelve(state, tenant, batch).await?;
                let at = now(state).await?;
                let ended = change(state, tenant, id, |batch| batch.ended(run, end, &progress, files.clone(), at));
                mine(ended.await?, run)
            }
            Err(Stopped::Refused(problems)) => {
                let at = now(state).await?;
                let refused = change(state, tenant, id, |batch| batch.refused(run, problems.clone(), at));
                mine(refused.await?, run)
            }
            Err(Stopped::Error(error)) => Err(error),
        }
    }

    /// Reads the input and answers every line of it.
    async fn answer(
        &self,
        tenant: &Name,
        batch: &Batch,
        run: &str,
        first: bool,
    ) -> Result<(End, Progress, Output), Stopped> {
        let state = &self.state;
        let endpoint = Endpoint::from_path(&batch.order.endpoint);
        let endpoint = endpoint.ok_or_else(|| gone("the batch's endpoint is unknown to this release"))?;
        let file = find(state, tenant, &batch.order.input_file_id).await?;
        let found = file.as_ref().and_then(place).ok_or_else(|| gone("the input file was deleted, or has expired"))?;
        let lines = || Lines::new(self.files.read(found.0, found.1, 0..found.1.bytes, NonZeroUsize::MIN).boxed());
        let mut batch = batch.clone();
        if batch.counts.total == 0 {
            let total = input::validate(lines(), endpoint).await?.map_err(Stopped::Refused)?;
            let at = now(state).await?;
            let validated = change(state, tenant, &batch.order.id, |batch| batch.validated(run, total, at));
            let validated = validated.await?.filter(|batch| batch.is_of(run));
            batch = validated.ok_or(Stopped::Error(Error::Superseded))?;
        }
        let mut output = Output::begin(&self.files, tenant, run, self.max_output);
        let drive = Run { state, tenant, batch: &batch, run, endpoint, first };
        let (end, progress) = drive.drive(lines(), &mut output).await?;
        Ok((end, progress, output))
    }
}

/// Why a batch's lines were not all answered.
enum Stopped {
    /// They can't be.
    Refused(Vec<Problem>),
    /// They may be later.
    Error(Error),
}

impl<E: Into<Error>> From<E> for Stopped {
    fn from(error: E) -> Self {
        match error.into() {
            Error::Files(error @ files::Error::Damaged { .. })
            | Error::Input(input::Error::Files(error @ files::Error::Damaged { .. })) => gone(&causes(&error)),
            error => Self::Error(error),
        }
    }
}

fn gone(message: &str) -> Stopped {
    let (code, message) = ("input_file_unavailable".into(), message.into());
    Stopped::Refused(vec![Problem { code, line: None, message, param: Some("input_file_id".into()) }])
}

/// A batch that this run has just ended.
fn mine(batch: Option<Batch>, run: &str) -> Result<Batch, Error> {
    batch.filter(|batch| batch.status.is_final() && batch.run.as_deref() == Some(run)).ok_or(Error::Superseded)
}
