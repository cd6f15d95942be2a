//! How the heads of a layer attend, and what happens to queries and keys before: norm, rotation, mixing.

use std::sync::Arc;

use baton_model::config::Heads;
use rayon::prelude::*;

use super::isa::{Isa, Kernel, LANES, Lanes, Level};
use super::rows::{Norm, SMALL};

/// What attention is in one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    pub(crate) heads: Heads,
    /// What the products of queries and keys are multiplied with.
    pub(crate) scale: f32,
    /// Positions that a row sees at most, its own among them; none is no limit.
    pub(crate) window: Option<usize>,
}

impl Attention {
    /// The first position that the row at `position` sees.
    pub(super) fn first(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// The cosines and sines of the rows of a pass, each `[rows, pairs]`: pair `i` of a head is its values `i` and `pairs + i`.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    pub(crate) pairs: usize,
    pub(crate) cos: Arc<[f32]>,
    pub(crate) sin: Arc<[f32]>,
}

/// RMS norm of each head of the queries and of the keys; weights are `[size]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadNorms<'a> {
    pub(crate) queries: &'a [f32],
    pub(crate) keys: &'a [f32],
    pub(crate) epsilon: f32,
}

/// The queries and keys of `qkv` (`[rows, row width]`), normed, rotated and mixed: `[rows, queries + kv, size]`.
///
/// Mixing multiplies each head by an orthogonal matrix that spreads every value evenly over a power-of-two block of the
/// head (Sylvester's Hadamard matrix, scaled). It leaves the products of queries and keys as they are; but keys have a few
/// channels far larger than the rest, in which rounding does most of its damage, and mixed keys have none (Ashkboos et al.,
/// "QuaRot", 2024).
pub(crate) fn prepare_heads(
    level: Level,
    heads: Heads,
    qkv: &[f32],
    norms: Option<HeadNorms<'_>>,
    rotation: &Rotation,
) -> Vec<f32> {
    let width = heads.query_width() + heads.kv_width();
    let mut out = vec![0.0; qkv.len() / heads.row_width() * width];
    let pairs = rotation.pairs;
    let turns = rotation.cos.par_chunks(pairs).zip(rotation.sin.par_chunks(pairs));
    let rows = out.par_chunks_mut(width).zip(qkv.par_chunks(heads.row_width())).zip(turns);
    rows.with_min_len(SMALL.div_ceil(2 * width)).for_each(|((out, row), (cos, sin))| {
        out.copy_from_slice(&row[..width]);
        if let Some(HeadNorms { queries, keys, epsilon }) = norms {
            for (index, out) in out.chunks_exact_mut(heads.size).enumerate() {
                let weight = if index < heads.queries { queries } else { keys };
                let x = &row[index * heads.size..(index + 1) * heads.size];
                level.run(Norm { x, weight, epsilon, out });
            }
        }
        level.run(Turn { size: heads.size, cos, sin, row: out });
    });
    out
}

struct Turn<'a> {
    size: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    /// Heads.
    row: &'a mut [f32],
}

impl Kernel for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Turn { size, cos, sin, row } = self;
        let block = (1 << size.trailing_zeros()) / LANES;
        let scale = 1.0 / ((block * LANES) as f32).sqrt();
        let ((cos_vectors, cos_rest), (sin_vectors, sin_rest)) = (cos.as_chunks(), sin.as_chunks());
        for head in row.chunks_exact_mut(size) {
            let (first, second) = head.split_at_mut(cos.len());
            let (a_vectors, a_rest) = first.as_chunks_mut();
            let (b_vectors, b_rest) = second[..cos.len()].as_chunks_mut();
            for ((a, b), (cos, sin)) in a_vectors.iter_mut().zip(b_vectors).zip(cos_vectors.iter().zip(sin_vectors)) {
                let (x, y, cos, sin) = (isa.load(a), isa.load(b), isa.load(cos), isa.load(sin));
                isa.store(isa.sub(isa.mul(x, cos), isa.mul(y, sin)), a);
                isa.store(isa.add(isa.mul(y, cos), isa.mul(x, sin)), b);
            }
            for ((a, b), (cos, sin)) in a_rest.iter_mut().zip(b_rest).zip(cos_rest.iter().zip(sin_rest)) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
            for block in head.as_chunks_mut().0.chunks_exact_mut(block) {
                mix(isa, block, scale);
            }
        }
    }
}

/// Multiplies with the Hadamard matrix by halves: each stage adds and subtracts values at a distance.
#[inline(always)]
fn mix<I: Isa>(isa: I, vectors: &mut [Lanes], scale: f32) {
    let mut distance = vectors.len() / 2;
    while distance > 0 {
        for pair in vectors.chunks_exact_mut(2 * distance) {
            let (low, high) = pair.split_at_mut(distance);
            for (low, high) in low.iter_mut().zip(high) {
                let (a, b) = (isa.load(low), isa.load(high));
                isa.store(isa.add(a, b), low);
                isa.store(isa.sub(a, b), high);
            }
        }
        distance /= 2;
    }
    let scale = isa.splat(scale);
    for vector in vectors {
        let v = stage::<I, 8>(isa, isa.load(vector));
        let v = stage::<I, 4>(isa, v);
        let v = stage::<I, 2>(isa, v);
        let v = stage::<I, 1>(isa, v);
        isa.store(isa.mul(v, scale), vector);
    }
}

/// A stage inside a vector: the lower lane of a pair becomes the sum, the higher one the difference.
#[inline(always)]
fn stage<I: Isa, const DISTANCE: usize>(isa: I, v: I::V) -> I::V {
    let mut signs = [1.0; LANES];
    for (lane, sign) in signs.iter_mut().enumerate() {
        if lane & DISTANCE != 0 {
            *sign = -1.0;
        }
    }
    isa.fma(v, isa.load(&signs), isa.swap::<DISTANCE>(v))
}
