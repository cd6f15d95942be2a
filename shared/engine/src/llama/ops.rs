//! The operations that a forward pass needs beyond Burn's own: on `flex` the hand-written kernels, on any other device
//! the same functions in Burn's operators.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, DispatchDevice, Flex, backend_extension};
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::bf16;

use super::stock;
use crate::kernels::{self, Heads, Level, PANEL};

/// Which bodies compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operators {
    /// [`crate::kernels`]; `flex` only. Bit-identical for any batch and split.
    Kernels,
    /// Burn's operators; every device.
    Stock,
}

/// The weights of a linear layer as its operators want them.
pub(super) enum Linear {
    /// As [`kernels::pack`] makes them, `[panels, inputs, 32]`.
    Packed { weights: Tensor<3>, outputs: usize },
    /// `[outputs, inputs]`.
    Plain(Tensor<2>),
}

/// The KV cache of one layer of one sequence: both `[capacity, kv * size]` in bf16.
pub(super) struct Cache {
    pub(super) keys: Tensor<2>,
    pub(super) values: Tensor<2>,
}

impl Operators {
    /// The fastest that `device` has.
    pub(super) fn of(device: &Device) -> Operators {
        match device.as_dispatch() {
            DispatchDevice::Flex(_) => Operators::Kernels,
            #[allow(unreachable_patterns, reason = "builds differ in their devices")]
            _ => Operators::Stock,
        }
    }

    /// Names the bodies and their numerics; to be raised when a change of a body changes any bit of its results.
    pub(super) fn tag(self) -> &'static [u8] {
        match self {
            Operators::Kernels => b"kernels 1",
            Operators::Stock => b"stock 1",
        }
    }

    /// Loads weights; `row(o, values)` writes the `inputs` weights of output `o`.
    pub(super) fn load(
        self,
        device: &Device,
        inputs: usize,
        outputs: usize,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Linear {
        match self {
            Operators::Kernels => {
                let shape = [outputs.div_ceil(PANEL), inputs, PANEL];
                let packed = TensorData::new(kernels::pack(inputs, outputs, row), shape);
                Linear::Packed { weights: Tensor::from_data(packed, device), outputs }
            }
            Operators::Stock => {
                let mut plain = vec![0.0; outputs * inputs];
                plain.chunks_exact_mut(inputs).enumerate().for_each(|(output, values)| row(output, values));
                Linear::Plain(Tensor::from_data(TensorData::new(plain, [outputs, inputs]), device))
            }
        }
    }

    /// `x` (`[rows, inputs]`) times the weights: `[rows, outputs]`.
    pub(super) fn linear(self, x: Tensor<2>, layer: &Linear) -> Tensor<2> {
        match layer {
            Linear::Packed { weights, outputs } => {
                let weights = weights.clone().into_dispatch();
                Tensor::from_dispatch(Dispatch::packed_linear(x.into_dispatch(), weights, *outputs))
            }
            Linear::Plain(weights) => x.matmul(weights.clone().transpose()),
        }
    }

    /// RMS norm of every row of `x` (`[rows, width]`), times `weight` (`[width]`).
    pub(super) fn rms_norm(self, x: Tensor<2>, weight: &Tensor<1>, epsilon: f32) -> Tensor<2> {
        match self {
            Operators::Kernels => {
                let weight = weight.clone().into_dispatch();
                Tensor::from_dispatch(Dispatch::rms_norm(x.into_dispatch(), weight, epsilon))
            }
            Operators::Stock => stock::rms_norm(x, weight.clone(), epsilon),
        }
    }

    /// `silu(gates) * ups`, where a row of `x` (`[rows, 2 width]`) is its gates and then its ups.
    pub(super) fn gate(self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Operators::Kernels => Tensor::from_dispatch(Dispatch::gate(x.into_dispatch())),
            Operators::Stock => stock::gate(x),
        }
    }

    /// Writes `k` and `v` (`[rows, kv * size]`) to the cache at position `start` and returns the attention of `q`
    /// (`[rows, queries * size]`) over everything up to each row's own position. Sees the new rows as the cache has them.
    pub(super) fn attention(
        self,
        heads: Heads,
        [q, k, v]: [Tensor<2>; 3],
        cache: &mut Cache,
        start: usize,
    ) -> Tensor<2> {
        // Taken out, so that the cache has one owner and is written in place.
        let device = q.device();
        let take = |tensor: &mut Tensor<2>| std::mem::replace(tensor, Tensor::empty([1, 1], &device));
        let (keys, values) = (take(&mut cache.keys), take(&mut cache.values));
        let (out, keys, values) = match self {
            Operators::Kernels => {
                let (out, keys, values) = Dispatch::cached_attention(
                    q.into_dispatch(),
                    k.into_dispatch(),
                    v.into_dispatch(),
                    keys.into_dispatch(),
                    values.into_dispatch(),
                    heads,
                    start,
                );
                (Tensor::from_dispatch(out), Tensor::from_dispatch(keys), Tensor::from_dispatch(values))
            }
            Operators::Stock => stock::attention(heads, [q, k, v], keys, values, start),
        };
        *cache = Cache { keys, values };
        out
    }
}

impl Cache {
    pub(super) fn new(capacity: usize, width: usize, device: &Device) -> Cache {
        let zeros = || Tensor::zeros([capacity, width], (device, DType::BF16));
        Cache { keys: zeros(), values: zeros() }
    }
}

/// The operations with hand-written bodies. Shapes are those of the methods of [`Operators`].
#[backend_extension(Flex)]
pub(super) trait KernelOps: Backend {
    fn packed_linear(x: FloatTensor<Self>, weights: FloatTensor<Self>, outputs: usize) -> FloatTensor<Self>;

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;

    fn gate(x: FloatTensor<Self>) -> FloatTensor<Self>;

    fn cached_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        heads: Heads,
        start: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

type Primitive = FloatTensor<Flex>;

impl KernelOps for Flex {
    fn packed_linear(x: Primitive, weights: Primitive, outputs: usize) -> Primitive {
        let (rows, inputs) = matrix_shape(&x);
        let out = with_values(x, |x| kernels::linear(Level::best(), x, inputs, weights.storage(), outputs));
        from_values(out, rows, outputs)
    }

    fn rms_norm(x: Primitive, weight: Primitive, epsilon: f32) -> Primitive {
        let (rows, width) = matrix_shape(&x);
        from_values(with_values(x, |x| kernels::rms_norm(Level::best(), x, weight.storage(), epsilon)), rows, width)
    }

    fn gate(x: Primitive) -> Primitive {
        let (rows, width) = matrix_shape(&x);
        from_values(with_values(x, |x| kernels::gate(Level::best(), x, width / 2)), rows, width / 2)
    }

    fn cached_attention(
        q: Primitive,
        k: Primitive,
        v: Primitive,
        mut keys: Primitive,
        mut values: Primitive,
        heads: Heads,
        start: usize,
    ) -> (Primitive, Primitive, Primitive) {
        let (rows, width) = matrix_shape(&q);
        for (cache, new) in [(&mut keys, k), (&mut values, v)] {
            let cache = &mut cache.storage_mut::<bf16>()[start * heads.kv_width()..];
            with_values(new, |new| {
                for (to, value) in cache.iter_mut().zip(new) {
                    *to = bf16::from_f32(*value);
                }
            });
        }
        let (cached_keys, cached_values) = (keys.storage::<bf16>(), values.storage::<bf16>());
        let out = with_values(q, |q| kernels::attention(Level::best(), heads, q, cached_keys, cached_values, start));
        (from_values(out, rows, width), keys, values)
    }
}

fn matrix_shape(tensor: &Primitive) -> (usize, usize) {
    let shape = tensor.layout().shape();
    (shape[0], shape[1])
}

/// Calls `f` with the tensor's values in row-major order, copied only if they aren't stored so.
fn with_values<T>(tensor: Primitive, f: impl FnOnce(&[f32]) -> T) -> T {
    match tensor.as_slice::<f32>() {
        Some(values) => f(values),
        None => f(tensor.to_contiguous().storage()),
    }
}

fn from_values(values: Vec<f32>, rows: usize, width: usize) -> Primitive {
    Primitive::from_data(TensorData::new(values, [rows, width]))
}
