//! Attention on the cache's copies in 8 bits.
//!
//! Queries are quantized by head, and the weights that softmax gives by span, so both products are integer. The values'
//! scales differ from position to position: they are multiplied into the weights before these are quantized.
//!
//! Positions come in spans of a few pages, whose scores fit the nearest cache; from span to span the highest score so far is
//! kept, and what was summed is scaled down when it rises (Dao et al., "FlashAttention", 2022). Spans begin at fixed
//! positions, so a row's result doesn't depend on what is computed with it.

use super::bytes_tile::{Query, Weights, scores_tile, weigh_tile};
use super::exact_attention::highest;
use super::heads::Attention;
use super::isa::{Isa, Kernel, LANES};
use super::packed::PANEL;
use super::pages::{PAGE, Quantized, Segment, head_lines, scale_range, signed_bytes};
use super::rectangle::Rectangle;
use super::tile::{ROWS, split};
use super::vectors::{ROUND, TINY, sum_lanes};

/// Pages of a span.
const SPAN: usize = 2;

/// Positions of a span.
const SPAN_POSITIONS: usize = SPAN * PAGE;

/// The query heads of one KV head in the rows of `out`, all of one segment.
pub(super) struct FastBlock<'a, 'b> {
    pub(super) attention: Attention,
    pub(super) kv: usize,
    pub(super) segment: &'a Segment,
    pub(super) copies: &'a Quantized<&'a [u8], &'a [f32]>,
    /// `[rows, queries + kv, size]` of the whole pass.
    pub(super) prepared: &'a [f32],
    pub(super) out: &'a mut Rectangle<'b>,
}

/// How far softmax has come for one query.
#[derive(Clone, Copy)]
struct Softmax {
    /// What scores are multiplied with before they become exponents of 2.
    scale: f32,
    /// The positions that it sees.
    from: usize,
    to: usize,
    highest: f32,
    sum: f32,
}

impl Kernel for FastBlock<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let FastBlock { attention, kv, segment, copies, prepared, out } = self;
        let heads = attention.heads;
        let (size, group) = (heads.size, heads.group());
        let blocks = size.div_ceil(PANEL);
        let position = |row: usize| segment.start + row - segment.row;
        let mut quants = vec![[0; 4]; ROWS * size / 4];
        let mut scores = vec![0.0; ROWS * SPAN_POSITIONS];
        let mut weights = vec![[0; 4]; ROWS * SPAN_POSITIONS / 4];
        let mut totals = vec![[0.0; PANEL]; blocks * ROWS];

        let first_row = out.rows.start;
        for tile in split(out.rows.len() * group) {
            let count = tile.len();
            let mut states = [Softmax { scale: 0.0, from: 0, to: 0, highest: f32::NEG_INFINITY, sum: 0.0 }; ROWS];
            let mut queries = [Query::default(); ROWS];
            for (((index, state), query), quads) in
                tile.clone().zip(&mut states).zip(&mut queries).zip(quants.chunks_exact_mut(size / 4))
            {
                let (row, head) = (first_row + index / group, kv * group + index % group);
                let from = &prepared[(row * (heads.queries + heads.kv) + head) * size..][..size];
                let scale = signed_bytes(isa, from, quads.as_flattened_mut());
                // Above zero, for scores of positions that it doesn't see are infinite.
                state.scale = (scale * attention.scale * std::f32::consts::LOG2_E).max(f32::MIN_POSITIVE);
                (state.from, state.to) = (attention.first(position(row)), position(row) + 1);
                let sum: i32 = quads.as_flattened().iter().map(|byte| i32::from(*byte as i8)).sum();
                *query = Query { quads, excess: 128 * sum };
            }

            totals.fill([0.0; PANEL]);
            for span in states[0].from / SPAN_POSITIONS..states[count - 1].to.div_ceil(SPAN_POSITIONS) {
                let last = states[count - 1].to.div_ceil(PAGE).min((span + 1) * SPAN);
                let pages = &segment.pages[span * SPAN..last];
                let positions = pages.len() * PAGE;
                let mut parts: [&mut [f32]; ROWS] = [&mut [], &mut [], &mut [], &mut [], &mut [], &mut []];
                for (part, scores) in parts.iter_mut().zip(scores.chunks_exact_mut(SPAN_POSITIONS)) {
                    *part = scores;
                }
                for (index, page) in pages.iter().enumerate() {
                    let lines = head_lines(heads, copies.keys, *page, kv);
                    let scales = &copies.key_scales[scale_range(heads, *page, kv)];
                    for half in 0..PAGE / PANEL {
                        let keys = &lines[half * size / 2..(half + 1) * size / 2];
                        let scales = &scales[half * PANEL..(half + 1) * PANEL];
                        scores_tile(isa, &queries[..count], keys, scales, &mut parts, index * PAGE + half * PANEL);
                    }
                }

                let mut weighed = [Weights::default(); ROWS];
                for (r, (part, quads)) in
                    parts.into_iter().zip(weights.chunks_exact_mut(SPAN_POSITIONS / 4)).enumerate().take(count)
                {
                    let seen = |position: usize| position.saturating_sub(span * SPAN_POSITIONS).min(positions);
                    let scores = &mut part[..positions];
                    scores[..seen(states[r].from)].fill(f32::NEG_INFINITY);
                    scores[seen(states[r].to)..].fill(f32::NEG_INFINITY);
                    let value_scales = pages.iter().map(|page| &copies.value_scales[scale_range(heads, *page, kv)]);
                    let quads = &mut quads[..positions / 4];
                    let (keep, scale) = softmax(isa, &mut states[r], scores, value_scales, quads);
                    weighed[r] = Weights { quads, scale, keep };
                }
                for (block, totals) in totals.chunks_exact_mut(ROWS).enumerate() {
                    let values = pages.iter().map(|page| {
                        &head_lines(heads, copies.values, *page, kv)[block * PAGE / 2..(block + 1) * PAGE / 2]
                    });
                    weigh_tile(isa, &weighed[..count], values, totals);
                }
            }

            for (block, totals) in totals.chunks_exact(ROWS).enumerate() {
                for ((index, totals), state) in tile.clone().zip(totals).zip(&states) {
                    let head = index % group * size;
                    let to = &mut out.row(first_row + index / group)[head + block * PANEL..head + size];
                    for (to, total) in to.iter_mut().zip(totals) {
                        *to = total / state.sum;
                    }
                }
            }
        }
    }
}

/// Goes on by a span: quantizes `2^((score - highest) scale)` times the scale of the position's values to `weights`.
/// Returns what earlier sums and totals must be multiplied with, since the highest score may have risen, and what the
/// weights are worth.
///
/// `scores`, which are lost, and `weights` are whole pages.
#[inline(always)]
fn softmax<'a, I: Isa>(
    isa: I,
    state: &mut Softmax,
    scores: &mut [f32],
    value_scales: impl Iterator<Item = &'a [f32]>,
    weights: &mut [[u8; 4]],
) -> (f32, f32) {
    let (vectors, _) = scores.as_chunks_mut::<LANES>();
    let found = highest(isa, vectors);
    if found == f32::NEG_INFINITY {
        // It sees nothing of the span.
        weights.fill([0; 4]);
        return (1.0, 0.0);
    }
    let new = if found > state.highest { found } else { state.highest };
    let keep = if state.highest == f32::NEG_INFINITY {
        0.0
    } else {
        let mut lanes = [0.0; LANES];
        isa.store(exp2(isa, isa.splat((state.highest - new) * state.scale)), &mut lanes);
        lanes[0]
    };
    state.highest = new;
    let (scale, shift) = (isa.splat(state.scale), isa.splat(-new * state.scale));
    let (mut sum, mut largest) = (isa.splat(0.0), isa.splat(0.0));
    for (page, value_scales) in vectors.as_chunks_mut::<{ PAGE / LANES }>().0.iter_mut().zip(value_scales) {
        let (value_scales, _) = value_scales.as_chunks::<LANES>();
        for n in 0..PAGE / LANES {
            let e = exp2(isa, isa.fma(isa.load(&page[n]), scale, shift));
            sum = isa.add(sum, e);
            let weight = isa.mul(e, isa.load(&value_scales[n]));
            isa.store(weight, &mut page[n]);
            largest = isa.max(weight, largest);
        }
    }
    let largest = isa.highest_lane(largest);
    let inverse = isa.splat(if largest > TINY { 255.0 / largest } else { 0.0 });
    for (weight, bytes) in vectors.iter().zip(weights.as_flattened_mut().as_chunks_mut::<LANES>().0) {
        isa.store_unsigned(isa.mul(isa.load(weight), inverse), bytes);
    }
    state.sum = state.sum * keep + sum_lanes(isa, sum);
    (keep, largest / 255.0)
}

/// `2^x` in every lane for `x` up to 127, with a relative error of at most 7.5e-5, which is far below what a weight of 8 bits
/// can tell; 0 below -126.5.
///
/// `x = n + f` with `|f| <= 1/2`, then `2^n` times the polynomial of degree 3 that is nearest to `2^f` there (fitted).
#[inline(always)]
fn exp2<I: Isa>(isa: I, x: I::V) -> I::V {
    let x = isa.max(isa.splat(-127.0), x);
    let rounded = isa.add(x, isa.splat(ROUND));
    let f = isa.sub(x, isa.sub(rounded, isa.splat(ROUND)));
    let mut sum = isa.splat(0.055_171_62);
    for coefficient in [0.242_611_13, 0.693_261, 0.999_928_06] {
        sum = isa.fma(sum, f, isa.splat(coefficient));
    }
    isa.mul(sum, isa.pow2_low_bits(rounded))
}
