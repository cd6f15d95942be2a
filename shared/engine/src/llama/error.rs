//! Why a model can't be loaded.

use baton_model::config;

use crate::device;

/// Why a model can't be loaded onto a device.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error(transparent)]
    Device(#[from] device::Error),
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error("tensor {tensor} holds weights that are infinite or no numbers; fetch or convert the file again")]
    NonFinite { tensor: String },
    #[error("the system gives no memory for the weights; take a smaller model, or a machine that has more")]
    Memory(#[source] std::io::Error),
    #[error("{reason}; mend that, or use another device (flex is the CPU)")]
    DoesNotCompute { reason: String },
    #[error("the model does not fit: {reason}; give its KV cache less memory, or take a device that has more")]
    DoesNotFit { reason: String },
}
