//! Where users' batches of requests are kept, and what brings a batch whose task was lost back to a gateway.

use std::time::Duration;

use baton_contract::{JobId, Name, batch::Batch, message_id};
use bytes::Bytes;

use crate::{
    Bus, Error,
    gateways::{
        errands::Errands,
        shelf::{Keeping, Shelf},
    },
};

/// How long a batch can be asked for after its last change.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Finds batches that have not ended and that no errand is about, which takes a disaster such as a purged stream, and leaves
/// the errand again; whoever takes it goes on where the last run was. One that was accepted less than `grace` ago may still
/// get its first. Returns whose errand was lost. May run beside itself and beside whoever drives them.
pub async fn revive(batches: &Shelf<Batch>, errands: &Errands, grace: Duration) -> Result<Vec<(Name, JobId)>, Error> {
    let accepted_by = (batches.clock().now_ms().await? / 1_000).saturating_sub(grace.as_secs());
    let due = |batch: &Batch| !batch.status.is_final() && batch.created_at <= accepted_by;
    // Batches first: an errand goes only when its batch has ended, so one that is there all the time is seen.
    let open = batches.select(due).await?;
    if open.is_empty() {
        return Ok(Vec::new());
    }
    let known = errands.open().await?;
    let mut lost = open;
    lost.retain(|(tenant, id, _)| !known.contains_key(&(tenant.clone(), Bytes::from(id.as_str().to_owned()))));
    let mut revived = Vec::new();
    for (tenant, id, _) in lost {
        let Some(batch) = batches.get(&tenant, &id).await?.map(|kept| kept.value).filter(due) else { continue };
        // Two who look at once leave it once. The id it was first left with is still known to the broker.
        let again = message_id::batch_again(&id, batch.run.as_deref());
        errands.leave(&tenant, &again, id.as_str().into()).await?;
        tracing::warn!(batch = %id, %tenant, "a batch had lost its errand, and got it again");
        revived.push((tenant, id));
    }
    Ok(revived)
}

impl Bus {
    /// Users' batches; creates what it needs.
    pub async fn batches(&self, replicas: usize) -> Result<Shelf<Batch>, Error> {
        Shelf::open(self, self.batch_keeping(replicas)).await
    }

    pub(crate) fn batch_keeping(&self, replicas: usize) -> Keeping {
        Keeping {
            bucket: self.layout.batch_bucket(),
            description: "users' batches of requests",
            max_age: KEPT,
            replicas,
        }
    }
}
