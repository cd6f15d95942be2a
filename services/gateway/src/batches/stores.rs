//! What files, batches and webhooks keep on the bus.

use baton_contract::batch::Batch;
use std::time::Duration;

use baton_bus::{
    Bus, Error,
    gateways::{
        errands::{Errands, Kind},
        files::File,
        shelf::Shelf,
    },
};

/// How batches are driven.
#[derive(Clone, Debug)]
pub struct Options {
    /// Batches that a gateway drives at a time; 0 leaves them to other gateways.
    pub slots: usize,
    /// A batch, or a webhook, whose gateway is not heard of for this long goes to another.
    pub ack_wait: Duration,
    /// Copies of what is kept, in a cluster: 1, 3 or 5.
    pub replicas: usize,
    /// Bytes that a batch's output file may have, and its error file.
    pub max_output: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { slots: 4, ack_wait: Duration::from_secs(30), replicas: 1, max_output: 16 << 30 }
    }
}

/// What is kept on the bus. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct BatchStores {
    pub(crate) files: Shelf<File>,
    pub(crate) batches: Shelf<Batch>,
    pub(crate) batch_errands: Errands,
    pub(crate) webhook_errands: Errands,
}

impl BatchStores {
    /// Creates what it needs.
    pub(crate) async fn open(bus: &Bus, options: &Options) -> Result<Self, Error> {
        let Options { ack_wait, replicas, .. } = *options;
        let (files, batches, batch_errands, webhook_errands) = tokio::try_join!(
            bus.files(replicas),
            bus.batches(replicas),
            bus.errands(Kind::Batch, replicas, ack_wait),
            bus.errands(Kind::Webhook, replicas, ack_wait),
        )?;
        Ok(Self { files, batches, batch_errands, webhook_errands })
    }
}
