//! The life of a process that serves a pipeline: it starts telemetry, connects, takes part, works until it is asked to stop,
//! drains, and sends its last spans.

use baton_bus::Bus;
use baton_contract::causes;
use baton_topology::Plan;
use tokio_util::sync::CancellationToken;

use crate::{Error, Found, bus, signals::asked_to_stop, telemetry};

/// What a process calls itself, and what it needs.
pub struct Process<'a> {
    /// Its kind in log lines, such as `worker`.
    pub kind: &'static str,
    /// Its kind in traces, such as `decode`.
    pub service: &'a str,
    /// Names it in claims, results and traces.
    pub name: &'a str,
    /// Whether it must find the pipeline's mark in the store, with this plan.
    pub uses_store: &'a (dyn Fn(&Plan) -> bool + Sync),
}

impl Process<'_> {
    /// Serves the pipeline: `work` gets the plan, the bus, and the token that is cancelled when the process is to drain.
    pub async fn serve<E: From<Error>>(
        self,
        found: &Found,
        work: impl AsyncFnOnce(&Plan, &Bus, CancellationToken) -> Result<(), E>,
    ) -> Result<(), E> {
        let service = format!("baton-{}", self.service);
        let telemetry = telemetry::start(&found.reach.telemetry, &service, self.name)?;
        let shutdown = CancellationToken::new();
        let (asked, kind) = (shutdown.clone(), self.kind);
        tokio::spawn(async move {
            if let Err(error) = asked_to_stop().await {
                tracing::error!(error = %causes(&error), "signals can't be received; the {kind} stops");
            }
            asked.cancel();
        });
        let served = self.take_part(found, shutdown, work).await;
        telemetry.shutdown().await;
        served
    }

    async fn take_part<E: From<Error>>(
        &self,
        found: &Found,
        shutdown: CancellationToken,
        work: impl AsyncFnOnce(&Plan, &Bus, CancellationToken) -> Result<(), E>,
    ) -> Result<(), E> {
        let bus = bus::reach(&found.reach.root, &found.reach.broker, self.name).await?;
        let plan = found.take_part(&bus, self.uses_store).await?;
        bus::keeping(&plan, &bus, work(&plan, &bus, shutdown)).await
    }
}
