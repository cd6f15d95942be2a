//! The end of a run: what is left when nothing moves any more.

use std::time::Duration;

use baton_bus::Bus;
use baton_contract::{Name, causes, envelope::DecodeTask, subject::Stage};
use tokio::time::{Instant, sleep};

use super::{
    Error,
    audit::Evidence,
    disaster::{STRANGER, layout},
    run::{Run, TICK},
    witness::Witness,
};

/// How long queues may take to empty after the last result.
const EMPTY_WITHIN: Duration = Duration::from_secs(60);

impl Run<'_> {
    /// What broker and records say when nothing moves any more.
    pub(super) async fn evidence(
        &self,
        bus: &Bus,
        tenant: &Name,
        witness: &Witness,
        submitted: Vec<bool>,
    ) -> Result<Evidence, Error> {
        let mut evidence = Evidence { submitted, ..Evidence::default() };
        // What can't be read is evidence, too.
        if let Err(error) = self.emptied(bus, &mut evidence).await {
            evidence.missing.push(causes(&error));
        }
        if let Err(error) = self.recorded(bus, tenant, witness, &mut evidence).await {
            evidence.missing.push(causes(&error));
        }
        let strange = layout()?.request(&Name::new(STRANGER)?, &Name::new("interactive")?);
        match bus.letters().all().await {
            Ok(letters) => {
                let ours = letters.iter().filter(|letter| letter.subject != strange);
                evidence.dead_letters = ours.map(|letter| format!("{}: {}", letter.id, letter.cause)).collect();
            }
            Err(error) => evidence.missing.push(causes(&error)),
        }
        Ok(evidence)
    }

    /// Waits until nothing is in the queues any more.
    async fn emptied(&self, bus: &Bus, evidence: &mut Evidence) -> Result<(), baton_bus::Error> {
        let deadline = Instant::now() + EMPTY_WITHIN;
        loop {
            for stage in Stage::ALL {
                // Only counted: what the messages say does not matter.
                evidence.waiting.insert(stage.to_string(), bus.waiting::<DecodeTask>(stage).await?.count);
            }
            evidence.waiting.insert("waiting".into(), bus.waiting_for_turns().await?);
            if evidence.waiting.values().all(|count| *count == 0) || Instant::now() > deadline {
                return Ok(());
            }
            sleep(TICK).await;
        }
    }

    /// Reads what is known of each job.
    async fn recorded(
        &self,
        bus: &Bus,
        tenant: &Name,
        witness: &Witness,
        evidence: &mut Evidence,
    ) -> Result<(), baton_bus::Error> {
        let jobs = bus.jobs().await?;
        for job in &self.workload.jobs {
            evidence.states.push(jobs.get(tenant, &job.id).await?.map(|stored| stored.record.state));
            let seen = witness.observed().results.contains_key(&job.id);
            // The stream is what counts, should the witness have overlooked something.
            if !seen && let Some(outcome) = jobs.result(tenant, &job.id).await? {
                witness.observed().read(&outcome);
            }
        }
        Ok(())
    }

    /// Ends all processes and looks at what they left: how often workers had ended by themselves, how many chunks there
    /// were, and the evidence.
    pub(super) async fn end(&self, mut evidence: Evidence) -> Result<(u64, u64, Evidence), Error> {
        let crashes = self.pipeline.stop_workers().await?;
        let broker = format!("nats://{}", self.pipeline.watcher.address());
        let collect = ["kv", "gc", "--grace", "0s", "--max-age", "0s", "--json"];
        let output = self.program.attempt(&collect, &broker).await?;
        if !output.status.success() {
            evidence.missing.push(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        let collected: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let stored_chunks = collected["stored"]["chunks"].as_u64().unwrap_or_default();
        evidence.orphans = match &self.pipeline.store {
            Some(store) => {
                let files = store.lock().await.files().map_err(Error::Store)?;
                files.iter().map(|path| path.display().to_string()).collect()
            }
            None => {
                let output = self.program.baton(&["kv", "ls", "--json"], &broker).await?;
                String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
            }
        };
        self.pipeline.broker.lock().await.stop().await;
        evidence.processes = self.program.remaining();
        evidence.panics = self.program.panics();
        Ok((crashes, stored_chunks, evidence))
    }
}
