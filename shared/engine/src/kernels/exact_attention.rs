//! Attention in f32 on the bf16 cache.

use half::bf16;

use super::heads::Attention;
use super::isa::{Isa, Kernel, LANES};
use super::packed::PANEL;
use super::pages::{Pages, Segment, widen};
use super::rectangle::Rectangle;
use super::tile::{ROWS, split, tile};
use super::vectors::{exp, sum_lanes};

/// A KV head's cache in f32, ready for [`tile`].
pub(super) struct Panels {
    /// The position they begin with.
    first: usize,
    /// For every 32 positions `[size][32]`; positions beyond the last are zero.
    keys: Vec<[f32; PANEL]>,
    /// For every 32 of a head's values `[positions][32]`, filled up with zeros.
    values: Vec<[f32; PANEL]>,
}

/// Makes the panels of what a segment's rows see.
pub(super) struct Pack<'a> {
    pub(super) attention: Attention,
    pub(super) kv: usize,
    pub(super) segment: &'a Segment,
    pub(super) cache: &'a Pages<&'a [bf16]>,
}

impl Kernel for Pack<'_> {
    type Output = Panels;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> Panels {
        let Pack { attention, kv, segment, cache } = self;
        let (heads, size) = (attention.heads, attention.heads.size);
        // Whole vectors, so that a lane means the same positions in every pass.
        let first = attention.first(segment.start) / LANES * LANES;
        let count = segment.end() - first;
        let mut keys = vec![[0.0; PANEL]; count.div_ceil(PANEL) * size];
        for (index, key) in segment.rows_from(heads, kv, first, cache.keys).enumerate() {
            let panel = &mut keys[index / PANEL * size..][..size];
            for (to, value) in panel.iter_mut().zip(key) {
                to[index % PANEL] = widen(*value);
            }
        }
        let mut values = vec![[0.0; PANEL]; size.div_ceil(PANEL) * count];
        for (index, value) in segment.rows_from(heads, kv, first, cache.values).enumerate() {
            for (panel, value) in value.chunks(PANEL).enumerate() {
                for (to, value) in values[panel * count + index].iter_mut().zip(value) {
                    *to = widen(*value);
                }
            }
        }
        Panels { first, keys, values }
    }
}

/// The query heads of one KV head in the rows of `out`, all of one segment.
pub(super) struct ExactBlock<'a, 'b> {
    pub(super) attention: Attention,
    pub(super) kv: usize,
    pub(super) segment: &'a Segment,
    pub(super) panels: &'a Panels,
    /// `[rows, queries + kv, size]` of the whole pass.
    pub(super) prepared: &'a [f32],
    pub(super) out: &'a mut Rectangle<'b>,
}

impl Kernel for ExactBlock<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let ExactBlock { attention, kv, segment, panels, prepared, out } = self;
        let (heads, scale) = (attention.heads, attention.scale);
        let (size, group) = (heads.size, heads.group());
        let position = |row: usize| segment.start + row - segment.row;
        let stride = (position(out.rows.end) - panels.first).next_multiple_of(PANEL);
        let mut scores = vec![0.0; ROWS * stride];
        let mut scaled = vec![0.0; ROWS * size];

        let first_row = out.rows.start;
        for queries in split(out.rows.len() * group) {
            let count = queries.len();
            // What each query of the tile sees, counted from the panels' first position; neither end ever decreases.
            let mut seen = [(0, 0); ROWS];
            for ((query, seen), to) in queries.clone().zip(&mut seen).zip(scaled.chunks_exact_mut(size)) {
                let (row, head) = (first_row + query / group, kv * group + query % group);
                let position = position(row);
                *seen = (attention.first(position) - panels.first, position + 1 - panels.first);
                let from = &prepared[(row * (heads.queries + heads.kv) + head) * size..][..size];
                for (to, from) in to.iter_mut().zip(from) {
                    *to = from * scale;
                }
            }

            let keys = seen[0].0 / PANEL..seen[count - 1].1.div_ceil(PANEL);
            let mut x: [&[f32]; ROWS] = [&[]; ROWS];
            for (x, scaled) in x.iter_mut().zip(scaled.chunks_exact(size)) {
                *x = scaled;
            }
            for index in keys {
                let mut found = [[0.0; PANEL]; ROWS];
                tile(isa, &x[..count], &panels.keys[index * size..(index + 1) * size], &mut found);
                for (scores, found) in scores.chunks_exact_mut(stride).zip(&found[..count]) {
                    scores[index * PANEL..(index + 1) * PANEL].copy_from_slice(found);
                }
            }

            let mut sums = [0.0; ROWS];
            let start = seen[0].0 / LANES * LANES;
            for ((scores, (from, to)), sum) in scores.chunks_exact_mut(stride).zip(seen).zip(&mut sums).take(count) {
                scores[start..from].fill(f32::NEG_INFINITY);
                *sum = exponentials(isa, &mut scores[start..], to - start);
            }
            let mut weighted = [[0.0; PANEL]; ROWS];
            for panel in 0..size.div_ceil(PANEL) {
                weigh(isa, panels, panel, size, &scores, (start, &seen[..count]), &mut weighted);
                for ((query, weighted), sum) in queries.clone().zip(&weighted).zip(sums) {
                    let head = query % group * size;
                    let to = &mut out.row(first_row + query / group)[head + panel * PANEL..head + size];
                    for (to, value) in to.iter_mut().zip(weighted) {
                        *to = value / sum;
                    }
                }
            }
        }
    }
}

/// Replaces the first `limit` scores by `e^(score - highest)` and returns their sum.
#[inline(always)]
fn exponentials<I: Isa>(isa: I, scores: &mut [f32], limit: usize) -> f32 {
    let scores = &mut scores[..limit.next_multiple_of(LANES)];
    // The lanes beyond the limit become exact zeros.
    scores[limit..].fill(f32::NEG_INFINITY);
    let (vectors, _) = scores.as_chunks_mut::<LANES>();
    let highest = isa.splat(highest(isa, vectors));
    let mut sum = isa.splat(0.0);
    for vector in vectors.iter_mut() {
        let e = exp(isa, isa.sub(isa.load(vector), highest));
        isa.store(e, vector);
        sum = isa.add(sum, e);
    }
    sum_lanes(isa, sum)
}

/// The highest of all lanes.
#[inline(always)]
pub(super) fn highest<I: Isa>(isa: I, vectors: &[[f32; LANES]]) -> f32 {
    let mut highest = isa.splat(f32::NEG_INFINITY);
    for vector in vectors {
        highest = isa.max(isa.load(vector), highest);
    }
    isa.highest_lane(highest)
}

/// The sums of one panel of the values, weighed with each query's scores.
#[inline(always)]
fn weigh<I: Isa>(
    isa: I,
    panels: &Panels,
    panel: usize,
    size: usize,
    scores: &[f32],
    (start, seen): (usize, &[(usize, usize)]),
    weighted: &mut [[f32; PANEL]; ROWS],
) {
    let count = panels.values.len() / size.div_ceil(PANEL);
    let values = &panels.values[panel * count..(panel + 1) * count];
    let stride = scores.len() / ROWS;
    // A longer query must not drag a shorter one past its limit: not even a zero weight is neutral (-0, NaN). Before its
    // first position it is, since the sums are still +0 there.
    let common = start..seen[0].1;
    let mut x: [&[f32]; ROWS] = [&[]; ROWS];
    for (x, scores) in x.iter_mut().zip(scores.chunks_exact(stride)) {
        *x = &scores[common.clone()];
    }
    *weighted = [[0.0; PANEL]; ROWS];
    tile(isa, &x[..seen.len()], &values[common.clone()], weighted);
    for (r, (_, end)) in seen.iter().enumerate() {
        let rest = common.end..*end;
        if !rest.is_empty() {
            tile(isa, &[&scores[r * stride..][rest.clone()]], &values[rest], &mut weighted[r..=r]);
        }
    }
}
