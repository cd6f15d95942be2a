//! What becomes of a job whose client leaves before the answer: nobody will read it, so it is cancelled.

use baton_contract::{JobId, Name, causes};
use tokio::runtime::Handle;

use crate::State;

/// Cancels the job when it is dropped before the end was heard of.
#[derive(Debug)]
pub(super) struct Abandon {
    open: Option<(State, Name, JobId)>,
}

impl Abandon {
    /// A job that its client named is not cancelled: a client that knows the name may come back for it.
    pub(super) fn new(state: &State, tenant: &Name, job: &JobId, cancels: bool) -> Self {
        Self { open: cancels.then(|| (state.clone(), tenant.clone(), job.clone())) }
    }

    pub(super) fn ended(&mut self) {
        self.open = None;
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        let (Some((state, tenant, job)), Ok(runtime)) = (self.open.take(), Handle::try_current()) else { return };
        runtime.spawn(async move {
            state.metrics.cancelled();
            match state.bus.cancel(&tenant, &job).await {
                Ok(answer) => tracing::info!(%job, %tenant, ?answer, "a job was cancelled, for its client had left"),
                Err(error) => tracing::warn!(error = %causes(&error), %job, %tenant, "a job whose client had left was not cancelled"),
            }
        });
    }
}
