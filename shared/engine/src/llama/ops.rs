//! The operations that a forward pass needs beyond Burn's own: on `flex` the hand-written kernels, on any other device
//! the functions of `stock` in Burn's operators.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Device, Tensor, TensorData};

use super::arena::{Arena, Stored};
use super::cache::{Cache, KernelCache};
use super::operators::{HeadNorms, Norm, Operators, Pass};
use super::stock;
use crate::kernels::{self, Activation, Attention, Format, Level, Matrix, Mode, Normed, Rows, Then};

/// The weights of a linear layer as its operators want them.
pub(super) enum Linear {
    Packed(Packed),
    /// `[outputs, inputs]`.
    Plain(Tensor<2>),
}

/// Weights in the bits of the model file, see [`kernels::pack`].
pub(super) struct Packed {
    format: Format,
    inputs: usize,
    outputs: usize,
    stored: Stored,
}

impl Operators {
    /// Loads weights, of which `format` can hold every value. The kernels' are kept in `arena`.
    pub(super) fn load(
        self,
        device: &Device,
        arena: &mut Arena,
        format: Format,
        inputs: usize,
        outputs: usize,
        rows: &impl Rows,
    ) -> Linear {
        match self {
            Operators::Kernels(_) => {
                let (to, stored) = arena.take(format.matrix_bytes(inputs, outputs));
                kernels::pack(format, inputs, outputs, rows, to);
                Linear::Packed(Packed { format, inputs, outputs, stored })
            }
            Operators::Stock => {
                let mut plain = vec![0.0; outputs * inputs];
                plain.chunks_exact_mut(inputs).enumerate().for_each(|(output, values)| rows.dequantize(output, values));
                Linear::Plain(Tensor::from_data(TensorData::new(plain, [outputs, inputs]), device))
            }
        }
    }

    /// `x` (`[rows, inputs]`), normed if `norm` says so, times the weights: `[rows, outputs]`.
    pub(super) fn linear(self, x: Tensor<2>, norm: Option<Norm<'_>>, layer: &Linear) -> Tensor<2> {
        match (self, layer) {
            (Operators::Kernels(mode), Linear::Packed(layer)) => kernel_linear(mode, x, norm, layer, Then::Store),
            (_, layer) => normed(x, norm).matmul(layer.plain().transpose()),
        }
    }

    /// As [`Self::linear`], added to `to`.
    pub(super) fn add_linear(self, to: Tensor<2>, x: Tensor<2>, layer: &Linear) -> Tensor<2> {
        match (self, layer) {
            (Operators::Kernels(mode), Linear::Packed(layer)) => {
                Tensor::from_dispatch(Dispatch::add_linear(to.into_dispatch(), x.into_dispatch(), layer, mode))
            }
            (_, layer) => to + x.matmul(layer.plain().transpose()),
        }
    }

    /// As [`Self::linear`], every 32 outputs being 16 gates and their 16 values: `activation(gate) * value`,
    /// `[rows, outputs / 2]`.
    pub(super) fn gated_linear(
        self,
        x: Tensor<2>,
        norm: Norm<'_>,
        layer: &Linear,
        activation: Activation,
    ) -> Tensor<2> {
        match (self, layer) {
            (Operators::Kernels(mode), Linear::Packed(layer)) => {
                kernel_linear(mode, x, Some(norm), layer, Then::Gate(activation))
            }
            (_, layer) => stock::gate(normed(x, Some(norm)).matmul(layer.plain().transpose()), activation),
        }
    }

    /// RMS norm of every row of `x` (`[rows, width]`), times `weight` (`[width]`).
    pub(super) fn rms_norm(self, x: Tensor<2>, norm: Norm<'_>) -> Tensor<2> {
        match self {
            Operators::Kernels(_) => {
                let weight = norm.weight.clone().into_dispatch();
                Tensor::from_dispatch(Dispatch::rms_norm(x.into_dispatch(), weight, norm.epsilon))
            }
            Operators::Stock => normed(x, Some(norm)),
        }
    }

    /// Writes the keys and values of `qkv` (`[rows, row width]`) to the cache, and returns the attention of its queries over
    /// everything up to each row's own position, `[rows, queries * size]`. Sees the new rows as the cache has them.
    pub(super) fn attention(
        self,
        attention: Attention,
        qkv: Tensor<2>,
        norms: Option<&HeadNorms>,
        pass: Pass<'_>,
        cache: &mut Cache,
    ) -> Tensor<2> {
        match (self, cache) {
            (Operators::Kernels(mode), Cache::Kernels(cache)) => {
                let norms = norms.map(|HeadNorms { queries, keys, epsilon }| {
                    let values = |tensor: &Tensor<1>| tensor.to_data().iter::<f32>().collect::<Vec<f32>>();
                    (values(queries), values(keys), *epsilon)
                });
                let out = Dispatch::paged_attention(qkv.into_dispatch(), mode, attention, norms, pass, cache);
                Tensor::from_dispatch(out)
            }
            (_, Cache::Stock(cache)) => stock::attention(attention, qkv, norms, pass, cache),
            (Operators::Stock, Cache::Kernels(_)) => unreachable!("a cache is made for its operators"),
        }
    }
}

impl Linear {
    fn plain(&self) -> Tensor<2> {
        match self {
            Linear::Plain(weights) => weights.clone(),
            Linear::Packed(_) => unreachable!("weights are loaded for their operators"),
        }
    }

    /// The weights of some outputs: `[outputs.len(), inputs]`.
    pub(super) fn rows(&self, outputs: &[u32], device: &Device) -> Tensor<2> {
        match self {
            Linear::Packed(packed) => {
                let mut values = vec![0.0; outputs.len() * packed.inputs];
                for (row, output) in values.chunks_exact_mut(packed.inputs).zip(outputs) {
                    packed.matrix().row(*output as usize, row);
                }
                Tensor::from_data(TensorData::new(values, [outputs.len(), packed.inputs]), device)
            }
            Linear::Plain(weights) => {
                let outputs: Vec<i64> = outputs.iter().map(|output| i64::from(*output)).collect();
                let count = outputs.len();
                weights.clone().select(0, Tensor::from_data(TensorData::new(outputs, [count]), device))
            }
        }
    }
}

impl Packed {
    fn matrix(&self) -> Matrix<'_> {
        Matrix { format: self.format, inputs: self.inputs, outputs: self.outputs, bytes: self.stored.bytes() }
    }
}

fn normed(x: Tensor<2>, norm: Option<Norm<'_>>) -> Tensor<2> {
    match norm {
        Some(Norm { weight, epsilon }) => stock::rms_norm(x, weight.clone(), epsilon),
        None => x,
    }
}

fn kernel_linear(mode: Mode, x: Tensor<2>, norm: Option<Norm<'_>>, layer: &Packed, then: Then) -> Tensor<2> {
    let x = x.into_dispatch();
    Tensor::from_dispatch(match norm {
        Some(Norm { weight, epsilon }) => {
            Dispatch::normed_linear(x, weight.clone().into_dispatch(), epsilon, layer, mode, then)
        }
        None => Dispatch::plain_linear(x, layer, mode, then),
    })
}

/// The operations with hand-written bodies. Shapes are those of the methods of [`Operators`].
#[backend_extension(Flex)]
pub(super) trait KernelOps: Backend {
    fn plain_linear(x: FloatTensor<Self>, layer: &Packed, mode: Mode, then: Then) -> FloatTensor<Self>;

    fn normed_linear(
        x: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        epsilon: f32,
        layer: &Packed,
        mode: Mode,
        then: Then,
    ) -> FloatTensor<Self>;

    fn add_linear(to: FloatTensor<Self>, x: FloatTensor<Self>, layer: &Packed, mode: Mode) -> FloatTensor<Self>;

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;

    fn paged_attention(
        qkv: FloatTensor<Self>,
        mode: Mode,
        attention: Attention,
        norms: Option<(Vec<f32>, Vec<f32>, f32)>,
        pass: Pass<'_>,
        cache: &mut KernelCache,
    ) -> FloatTensor<Self>;
}

type Primitive = FloatTensor<Flex>;

impl KernelOps for Flex {
    fn plain_linear(x: Primitive, layer: &Packed, mode: Mode, then: Then) -> Primitive {
        product(x, None, layer, mode, then)
    }

    fn normed_linear(x: Primitive, norm: Primitive, epsilon: f32, layer: &Packed, mode: Mode, then: Then) -> Primitive {
        product(x, Some(Normed { weight: norm.storage(), epsilon }), layer, mode, then)
    }

    fn add_linear(mut to: Primitive, x: Primitive, layer: &Packed, mode: Mode) -> Primitive {
        if to.as_slice::<f32>().is_none() {
            to = to.to_contiguous();
        }
        let out = to.storage_mut::<f32>();
        with_values(x, |x| kernels::linear(Level::best(), mode, x, None, layer.matrix(), Then::Add, out));
        to
    }

    fn rms_norm(x: Primitive, weight: Primitive, epsilon: f32) -> Primitive {
        let (rows, width) = matrix_shape(&x);
        from_values(with_values(x, |x| kernels::rms_norm(Level::best(), x, weight.storage(), epsilon)), rows, width)
    }

    fn paged_attention(
        qkv: Primitive,
        mode: Mode,
        attention: Attention,
        norms: Option<(Vec<f32>, Vec<f32>, f32)>,
        pass: Pass<'_>,
        cache: &mut KernelCache,
    ) -> Primitive {
        let norms =
            norms.as_ref().map(|(queries, keys, epsilon)| kernels::HeadNorms { queries, keys, epsilon: *epsilon });
        let (rows, width) = (matrix_shape(&qkv).0, attention.heads.query_width());
        let mut out = vec![0.0; rows * width];
        let (pages, copies) = cache.parts();
        with_values(qkv, |qkv| {
            let Pass { rotation, segments } = pass;
            kernels::attention(Level::best(), mode, attention, qkv, norms, rotation, segments, pages, copies, &mut out);
        });
        from_values(out, rows, width)
    }
}

fn product(x: Primitive, norm: Option<Normed<'_>>, layer: &Packed, mode: Mode, then: Then) -> Primitive {
    let (rows, _) = matrix_shape(&x);
    let width = then.width(layer.outputs);
    let mut out = vec![0.0; rows * width];
    with_values(x, |x| kernels::linear(Level::best(), mode, x, norm, layer.matrix(), then, &mut out));
    from_values(out, rows, width)
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
