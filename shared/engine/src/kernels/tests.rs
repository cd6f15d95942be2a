use half::bf16;
use proptest::prelude::*;

use super::isa::Kernel;
use super::*;

/// Numbers that look random and depend on `seed` only, in -1 to 1.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

struct Exp(Vec<f32>);

impl Kernel for Exp {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) -> Vec<f32> {
        for lanes in self.0.as_chunks_mut::<LANES>().0 {
            isa.store(exp(isa, isa.load(lanes)), lanes);
        }
        self.0
    }
}

#[test]
fn exp_is_accurate_and_the_same_everywhere() {
    let x: Vec<f32> = (0..160_000).map(|i| (i as f32 - 80_000.0) / 920.0).collect();
    let y = Level::best().run(Exp(x.clone()));
    let worst = x.iter().zip(&y).map(|(x, y)| ((f64::from(*y) / f64::from(*x).exp()) - 1.0).abs()).fold(0.0, f64::max);
    assert!(worst < 2e-7, "relative error {worst}");
    for level in Level::all() {
        assert_eq!(bits(&level.run(Exp(x.clone()))), bits(&y), "{level:?}");
    }
    let edges = [f32::NEG_INFINITY, -1e30, -104.0, 0.0, 88.0, 1e30].into_iter().cycle().take(LANES).collect();
    let edges = Level::best().run(Exp(edges));
    assert_eq!(edges[..4], [0.0, 0.0, 0.0, 1.0]);
    assert!(edges[4].is_finite() && edges[4] == edges[5]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Every level, and any number of rows, gives the bits of one plain chain of fused multiply-adds an output.
    #[test]
    fn linear_is_one_chain_an_output(seed: u64, rows in 1usize..120, inputs in 1usize..80, outputs in 1usize..100) {
        let (x, w) = (numbers(seed, rows * inputs), numbers(!seed, outputs * inputs));
        let packed = pack(inputs, outputs, |o, row| row.copy_from_slice(&w[o * inputs..][..inputs]));
        let mut expected = Vec::new();
        for x in x.chunks(inputs) {
            for w in w.chunks(inputs) {
                expected.push(x.iter().zip(w).fold(0.0f32, |sum, (x, w)| x.mul_add(*w, sum)));
            }
        }
        for level in Level::all() {
            prop_assert_eq!(bits(&linear(level, &x, inputs, &packed, outputs)), bits(&expected), "{:?}", level);
        }
    }

    #[test]
    fn attention_is_exact_and_the_same_everywhere(
        seed: u64, start in 0usize..70, rows in 1usize..80, kv in 1usize..3, group in 1usize..4, size in 1usize..5,
    ) {
        let heads = Heads { queries: kv * group, kv, size: size * LANES };
        let q: Vec<f32> = numbers(seed, rows * heads.queries * heads.size).iter().map(|x| x * 4.0).collect();
        let cache = |seed| numbers(seed, (start + rows) * heads.kv_width()).into_iter().map(bf16::from_f32).collect();
        let (keys, values): (Vec<_>, Vec<_>) = (cache(seed ^ 1), cache(seed ^ 2));
        let found = attention(Level::best(), heads, &q, &keys, &values, start);
        for level in Level::all() {
            prop_assert_eq!(bits(&attention(level, heads, &q, &keys, &values, start)), bits(&found), "{:?}", level);
        }
        let expected = plain_attention(heads, &q, &keys, &values, start);
        for (found, expected) in found.iter().zip(expected) {
            prop_assert!((f64::from(*found) - expected).abs() < 2e-6, "{} is not {}", found, expected);
        }
        // A row alone, with what comes after it unknown, is the same row.
        let row = rows / 2;
        let width = heads.queries * heads.size;
        let known = (start + row + 1) * heads.kv_width();
        let alone = attention(
            Level::best(), heads, &q[row * width..][..width], &keys[..known], &values[..known], start + row,
        );
        prop_assert_eq!(bits(&alone), bits(&found[row * width..][..width]));
    }

    #[test]
    fn rows_are_the_same_everywhere(seed: u64, rows in 1usize..40, width in 1usize..100) {
        let (x, weight) = (numbers(seed, 2 * rows * width), numbers(!seed, width));
        let (normed, gated) = (rms_norm(Level::best(), &x, &weight, 1e-5), gate(Level::best(), &x, width));
        for level in Level::all() {
            prop_assert_eq!(bits(&rms_norm(level, &x, &weight, 1e-5)), bits(&normed), "{:?}", level);
            prop_assert_eq!(bits(&gate(level, &x, width)), bits(&gated), "{:?}", level);
        }
        for (row, (x, gated)) in x.chunks(2 * width).zip(gated.chunks(width)).enumerate() {
            prop_assert_eq!(bits(&rms_norm(Level::best(), &x[..width], &weight, 1e-5)),
                bits(&normed[2 * row * width..][..width]));
            for i in 0..width {
                let (g, up) = (f64::from(x[i]), f64::from(x[width + i]));
                prop_assert!((g / (1.0 + (-g).exp()) * up - f64::from(gated[i])).abs() < 1e-6);
            }
            let mean = x[..width].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
            for i in 0..width {
                let expected = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
                prop_assert!((expected - f64::from(normed[2 * row * width + i])).abs() < 2e-6);
            }
        }
    }
}

/// Attention as its formula says, in f64.
fn plain_attention(heads: Heads, q: &[f32], keys: &[bf16], values: &[bf16], start: usize) -> Vec<f64> {
    let (size, width) = (heads.size, heads.kv_width());
    let mut out = Vec::new();
    for (index, q) in q.chunks(size).enumerate() {
        let (row, kv) = (index / heads.queries, index % heads.queries / (heads.queries / heads.kv));
        let limit = start + row + 1;
        let at = |cache: &[bf16], position: usize, i: usize| cache[position * width + kv * size + i].to_f64();
        let score = |position| {
            let dot: f64 = (0..size).map(|i| f64::from(q[i]) * at(keys, position, i)).sum();
            (dot / (size as f64).sqrt()).exp()
        };
        let weights: Vec<f64> = (0..limit).map(score).collect();
        let total: f64 = weights.iter().sum();
        out.extend((0..size).map(|i| {
            weights.iter().enumerate().map(|(position, weight)| weight * at(values, position, i)).sum::<f64>() / total
        }));
    }
    out
}
