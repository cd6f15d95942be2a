//! The kernels' operations against Burn's stock operators.

use burn::tensor::{Device, Distribution, Tensor};

use super::ops::Linear;
use super::*;
use crate::kernels::Heads;

#[path = "../../tests/llama/writer.rs"]
mod writer;

fn assert_close(found: Tensor<2>, expected: Tensor<2>, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims());
    let error = (found - expected).abs().max().into_scalar::<f32>();
    assert!(error < tolerance, "error {error}");
}

#[test]
fn kernels_agree_with_stock_operators() {
    let device = Device::flex();
    let random = |rows, width| Tensor::<2>::random([rows, width], Distribution::Normal(0.0, 1.0), &device);
    for rows in [1, 5, 50] {
        let (inputs, outputs) = (70, 45);
        let x = random(rows, inputs);
        let row = |o: usize, row: &mut [f32]| row.iter_mut().zip(o..).for_each(|(w, i)| *w = (i as f32).sin());
        let [kernels, stock] = [Operators::Kernels, Operators::Stock].map(|operators| {
            let layer: Linear = operators.load(&device, inputs, outputs, row);
            operators.linear(x.clone(), &layer)
        });
        assert_close(kernels, stock, 1e-4);

        let weight = Tensor::random([inputs], Distribution::Normal(0.0, 1.0), &device);
        let [kernels, stock] =
            [Operators::Kernels, Operators::Stock].map(|operators| operators.rms_norm(x.clone(), &weight, 1e-5));
        assert_close(kernels, stock, 1e-5);
        let [kernels, stock] = [Operators::Kernels, Operators::Stock].map(|operators| operators.gate(x.clone()));
        assert_close(kernels, stock, 1e-5);
    }

    let heads = Heads { queries: 6, kv: 2, size: 32 };
    let capacity = 90;
    let mut caches = [(); 2].map(|()| Cache::new(capacity, heads.kv_width(), &device));
    for (start, rows) in [(0, 37), (37, 1), (38, 50)] {
        let qkv = [random(rows, 6 * 32), random(rows, 64), random(rows, 64)];
        let [kernels, stock] = [0, 1].map(|i| {
            let operators = [Operators::Kernels, Operators::Stock][i];
            operators.attention(heads, qkv.clone(), &mut caches[i], start)
        });
        assert_close(kernels, stock, 1e-5);
    }
    let [kernels, stock] = caches;
    assert_close(kernels.keys.cast(DType::F32), stock.keys.cast(DType::F32), f32::MIN_POSITIVE);
    assert_close(kernels.values.cast(DType::F32), stock.values.cast(DType::F32), f32::MIN_POSITIVE);
}

#[test]
fn a_model_computes_the_same_with_stock_operators() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), writer::Tiny { rope: 8, ..writer::Tiny::new(5) }.file()).unwrap();
    let [kernels, stock] = [Operators::Kernels, Operators::Stock].map(|operators| {
        let file = crate::gguf::open(file.path()).unwrap();
        let mut model = Llama::load_with(file, Device::flex(), operators).unwrap();
        let [one, two] = [(); 2].map(|()| model.open());
        let tokens: Vec<u32> = (0..50).map(|i| i * 37 % 90).collect();
        model.forward(&[Step { sequence: one, tokens: &tokens, logits: 0 }]).unwrap();
        let steps =
            [Step { sequence: one, tokens: &[3], logits: 1 }, Step { sequence: two, tokens: &tokens, logits: 1 }];
        let logits = model.forward(&steps).unwrap();
        let logits: Vec<f32> = logits.into_iter().flatten().collect();
        Tensor::<1>::from_data(TensorData::new(logits, [180]), &Device::flex()).reshape([2, 90])
    });
    let scale = stock.clone().abs().max().into_scalar::<f32>();
    assert!(scale > 1.0);
    // Now and then a rounding to bf16 falls the other way.
    assert_close(kernels, stock, 0.02 * scale);
}
