//! Which bodies compute a pass, and what they read besides weights and cache.

use baton_model::model::Compute;
use burn::backend::DispatchDevice;
use burn::tensor::{Device, Tensor};

use crate::kernels::{Mode, PANEL, Rotation, Segment};

/// Panels are whole: a gated layer's outputs come by as many.
pub(super) const GATE_BLOCK: usize = PANEL / 2;

/// Which bodies compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operators {
    /// [`crate::kernels`]; `flex` only. Bit-identical for any batch and split.
    Kernels(Mode),
    /// Burn's operators; every device.
    Stock,
}

/// RMS norms of each head of queries and keys, weights `[head size]`.
pub(super) struct HeadNorms {
    pub(super) queries: Tensor<1>,
    pub(super) keys: Tensor<1>,
    pub(super) epsilon: f32,
}

/// A norm before a linear layer.
pub(super) struct Norm<'a> {
    /// `[inputs]`.
    pub(super) weight: &'a Tensor<1>,
    pub(super) epsilon: f32,
}

/// What attention reads besides the queries, keys and values of a pass.
pub(super) struct Pass<'a> {
    pub(super) rotation: &'a Rotation,
    pub(super) segments: &'a [Segment],
}

impl Operators {
    /// The fastest that `device` has.
    pub(super) fn of(device: &Device, compute: Compute) -> Operators {
        match device.as_dispatch() {
            DispatchDevice::Flex(_) => Operators::Kernels(match compute {
                Compute::Exact => Mode::Exact,
                Compute::Fast => Mode::Fast,
            }),
            #[allow(unreachable_patterns, reason = "builds differ in their devices")]
            _ => Operators::Stock,
        }
    }

    /// Names the bodies and their numerics; to be raised when a change of a body changes any bit of its results.
    pub(super) fn tag(self) -> &'static [u8] {
        match self {
            Operators::Kernels(Mode::Exact) => b"kernels 2",
            Operators::Kernels(Mode::Fast) => b"fast kernels 2",
            Operators::Stock => b"stock 2",
        }
    }
}
