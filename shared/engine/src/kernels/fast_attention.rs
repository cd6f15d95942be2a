//! Attention on the cache's copies in 8 bits.
//!
//! Queries are quantized by head, and the weights that softmax gives by page, so both products are integer. The values'
//! scales differ from position to position: they are multiplied into the weights before these are quantized.

use super::attention::Attention;
use super::bytes_tile::integer_tile;
use super::exact_attention::highest;
use super::isa::{Isa, Kernel, LANES};
use super::packed::PANEL;
use super::pages::{PAGE, Quantized, Segment, head_lines, scale_range, signed_bytes};
use super::rectangle::Rectangle;
use super::tile::{ROWS, split};
use super::{exp, sum_lanes};

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

/// One query of a tile.
#[derive(Clone, Copy, Default)]
struct Query {
    /// What a product of bytes is worth, but for the key's scale.
    scale: f32,
    /// What the products are too high by, since the keys are unsigned: 128 times the sum of the query's quants.
    excess: f32,
    /// The positions it sees.
    from: usize,
    to: usize,
}

impl Kernel for FastBlock<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let FastBlock { attention, kv, segment, copies, prepared, out } = self;
        let heads = attention.heads;
        let (size, group) = (heads.size, heads.group());
        let position = |row: usize| segment.start + row - segment.row;
        let first_page = attention.first(position(out.rows.start)) / PAGE;
        let pages = &segment.pages[first_page..position(out.rows.end).div_ceil(PAGE)];
        let stride = pages.len() * PAGE;
        let mut scores = vec![0.0; ROWS * stride];
        let mut quants = vec![[0; 4]; ROWS * size / 4];
        let mut weights = vec![[0; 4]; ROWS * stride / 4];
        let mut weight_scales = vec![0.0; ROWS * pages.len()];

        let first_row = out.rows.start;
        for tile in split(out.rows.len() * group) {
            let count = tile.len();
            let mut queries = [Query::default(); ROWS];
            for ((index, query), quants) in tile.clone().zip(&mut queries).zip(quants.chunks_exact_mut(size / 4)) {
                let (row, head) = (first_row + index / group, kv * group + index % group);
                let from = &prepared[(row * (heads.queries + heads.kv) + head) * size..][..size];
                let quants = quants.as_flattened_mut();
                query.scale = signed_bytes(isa, from, quants) * attention.scale;
                let sum: i32 = quants.iter().map(|byte| i32::from(*byte as i8)).sum();
                query.excess = (128 * sum) as f32;
                let position = position(row);
                query.from = attention.first(position) - first_page * PAGE;
                query.to = position + 1 - first_page * PAGE;
            }

            // Pages before the first that any query of the tile sees are left out; the rest belong to all of them, a
            // query's own limits are kept by weights of 0, which integer sums take no notice of.
            let range = queries[0].from / PAGE..queries[count - 1].to.div_ceil(PAGE);
            let mut x: [&[[u8; 4]]; ROWS] = [&[]; ROWS];
            for (x, quants) in x.iter_mut().zip(quants.chunks_exact(size / 4)) {
                *x = quants;
            }
            for index in range.clone() {
                let lines = head_lines(heads, copies.keys, pages[index], kv);
                let scales = &copies.key_scales[scale_range(heads, pages[index], kv)];
                for half in 0..PAGE / PANEL {
                    let mut found = [[0.0; PANEL]; ROWS];
                    let lines = &lines[half * size / 2..(half + 1) * size / 2];
                    integer_tile::<I, false>(isa, &x[..count], lines, &mut found);
                    let (key_scales, _) = scales[half * PANEL..(half + 1) * PANEL].as_chunks::<LANES>();
                    for ((query, found), scores) in queries.iter().zip(&found).zip(scores.chunks_exact_mut(stride)).take(count)
                    {
                        let (scores, _) = scores[index * PAGE + half * PANEL..].as_chunks_mut::<LANES>();
                        let (found, _) = found.as_chunks::<LANES>();
                        for n in 0..PANEL / LANES {
                            let product = isa.sub(isa.load(&found[n]), isa.splat(query.excess));
                            let scaled = isa.mul(isa.mul(product, isa.splat(query.scale)), isa.load(&key_scales[n]));
                            isa.store(scaled, &mut scores[n]);
                        }
                    }
                }
            }

            let mut sums = [0.0; ROWS];
            for r in 0..count {
                let scores = &mut scores[r * stride..][range.start * PAGE..range.end * PAGE];
                let Query { from, to, .. } = queries[r];
                scores[..from - range.start * PAGE].fill(f32::NEG_INFINITY);
                scores[to - range.start * PAGE..].fill(f32::NEG_INFINITY);
                let weights = &mut weights[r * stride / 4..][range.start * PAGE / 4..range.end * PAGE / 4];
                let scales = &mut weight_scales[r * pages.len()..][range.clone()];
                let value_scales = pages[range.clone()].iter().map(|page| &copies.value_scales[scale_range(heads, *page, kv)]);
                sums[r] = softmax(isa, scores, value_scales, weights, scales);
            }

            for block in 0..size.div_ceil(PANEL) {
                let mut totals = [[0.0; PANEL]; ROWS];
                for index in range.clone() {
                    let lines = head_lines(heads, copies.values, pages[index], kv);
                    let lines = &lines[block * PAGE / 2..(block + 1) * PAGE / 2];
                    let mut x: [&[[u8; 4]]; ROWS] = [&[]; ROWS];
                    for (x, weights) in x.iter_mut().zip(weights.chunks_exact(stride / 4)) {
                        *x = &weights[index * PAGE / 4..(index + 1) * PAGE / 4];
                    }
                    let mut found = [[0.0; PANEL]; ROWS];
                    integer_tile::<I, true>(isa, &x[..count], lines, &mut found);
                    for r in 0..count {
                        let scale = isa.splat(weight_scales[r * pages.len() + index]);
                        let (found, _) = found[r].as_chunks::<LANES>();
                        let (totals, _) = totals[r].as_chunks_mut::<LANES>();
                        for n in 0..PANEL / LANES {
                            let total = isa.fma(isa.load(&found[n]), scale, isa.load(&totals[n]));
                            isa.store(total, &mut totals[n]);
                        }
                    }
                }
                for ((index, totals), sum) in tile.clone().zip(&totals).zip(sums) {
                    let head = index % group * size;
                    let to = &mut out.row(first_row + index / group)[head + block * PANEL..head + size];
                    for (to, total) in to.iter_mut().zip(totals) {
                        *to = total / sum;
                    }
                }
            }
        }
    }
}

/// Quantizes, page by page, `e^(score - highest)` times the scale of the position's values; returns the sum of the
/// exponentials. `scores`, which are used up, and `weights` are whole pages; a page has one entry in `scales`.
#[inline(always)]
fn softmax<'a, I: Isa>(
    isa: I,
    scores: &mut [f32],
    value_scales: impl Iterator<Item = &'a [f32]>,
    weights: &mut [[u8; 4]],
    scales: &mut [f32],
) -> f32 {
    let (pages, _) = scores.as_chunks_mut::<PAGE>();
    let (weights, _) = weights.as_chunks_mut::<{ PAGE / 4 }>();
    let highest_score = isa.splat(highest(isa, pages.as_flattened().as_chunks().0));
    let mut sum = isa.splat(0.0);
    for (((page, weights), value_scales), scale) in pages.iter_mut().zip(weights).zip(value_scales).zip(scales) {
        let (vectors, _) = page.as_chunks_mut::<LANES>();
        for (vector, value_scales) in vectors.iter_mut().zip(value_scales.as_chunks::<LANES>().0) {
            let e = exp(isa, isa.sub(isa.load(vector), highest_score));
            sum = isa.add(sum, e);
            isa.store(isa.mul(e, isa.load(value_scales)), vector);
        }
        let largest = highest(isa, vectors);
        let inverse = isa.splat(if largest > 0.0 { 255.0 / largest } else { 0.0 });
        let (bytes, _) = weights.as_flattened_mut().as_chunks_mut::<LANES>();
        for (vector, bytes) in vectors.iter().zip(bytes) {
            isa.store_unsigned(isa.mul(isa.load(vector), inverse), bytes);
        }
        *scale = largest / 255.0;
    }
    sum_lanes(isa, sum)
}
