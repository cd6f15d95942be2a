//! Causal attention over a bf16 KV cache, with grouped queries.
//!
//! `softmax(q k / sqrt(head size)) v` (Vaswani et al., "Attention is all you need", 2017), several query heads sharing a KV
//! head (Ainslie et al., "GQA", 2023). Keys and values are laid out as panels, so scores and weighted sums are the same
//! product as a linear layer: a score is one chain over the head's dimensions, an output one chain over the positions.
//! Memory grows with the positions, not with rows times positions.

use half::bf16;
use rayon::prelude::*;

use super::isa::{Isa, Kernel, LANES, Level};
use super::tile::{ROWS, split, tile};
use super::{PANEL, exp, sum_lanes};

/// Rows that a task takes at once when there are many.
const ROW_BLOCK: usize = 32;

/// Products below which threads cost more than they save.
const SMALL: usize = 1 << 17;

/// How the values of a row divide into heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    pub(crate) queries: usize,
    pub(crate) kv: usize,
    /// Values a head, a multiple of 16.
    pub(crate) size: usize,
}

impl Heads {
    fn group(self) -> usize {
        self.queries / self.kv
    }

    pub(crate) fn kv_width(self) -> usize {
        self.kv * self.size
    }
}

/// The attention of rows `start..` of a sequence, as `[rows, queries * size]`; `q` has the same shape.
///
/// `keys` and `values` are `[positions, kv * size]` and hold all positions up to the last row's own.
pub(crate) fn attention(
    level: Level,
    heads: Heads,
    q: &[f32],
    keys: &[bf16],
    values: &[bf16],
    start: usize,
) -> Vec<f32> {
    let rows = q.len() / (heads.queries * heads.size);
    let end = start + rows;
    let few = rows * end * heads.queries * heads.size < SMALL;
    let group_width = heads.group() * heads.size;

    // One entry a KV head: the outputs of its query heads, `[rows, group, size]`.
    let mut grouped = vec![0.0; q.len()];
    let head = |(kv, out): (usize, &mut [f32])| {
        let panels = level.run(Pack { heads, kv, end, keys, values });
        let block = |(index, out): (usize, &mut [f32])| {
            level.run(Block { heads, kv, panels: &panels, q, row: index * ROW_BLOCK, start, out });
        };
        if few || rows <= ROW_BLOCK {
            out.chunks_mut(ROW_BLOCK * group_width).enumerate().for_each(block);
        } else {
            out.par_chunks_mut(ROW_BLOCK * group_width).enumerate().for_each(block);
        }
    };
    if few {
        grouped.chunks_mut(rows * group_width).enumerate().for_each(head);
    } else {
        grouped.par_chunks_mut(rows * group_width).enumerate().for_each(head);
    }

    let mut out = vec![0.0; q.len()];
    for (kv, grouped) in grouped.chunks_exact(rows * group_width).enumerate() {
        let to = out.chunks_exact_mut(heads.queries * heads.size).map(|row| &mut row[kv * group_width..]);
        for (to, from) in to.zip(grouped.chunks_exact(group_width)) {
            to[..group_width].copy_from_slice(from);
        }
    }
    out
}

/// A KV head's cache in f32, ready for [`tile`].
struct Panels {
    /// For every 32 positions `[size][32]`; positions beyond the last are zero.
    keys: Vec<[f32; PANEL]>,
    /// For every 32 of a head's values `[positions][32]`, filled up with zeros.
    values: Vec<[f32; PANEL]>,
}

struct Pack<'a> {
    heads: Heads,
    kv: usize,
    end: usize,
    keys: &'a [bf16],
    values: &'a [bf16],
}

impl Kernel for Pack<'_> {
    type Output = Panels;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> Panels {
        let Heads { size, .. } = self.heads;
        let width = self.heads.kv_width();
        let first = self.kv * size;

        let mut keys = vec![[0.0; PANEL]; self.end.div_ceil(PANEL) * size];
        for (panel, positions) in keys.chunks_exact_mut(size).zip(self.keys[..self.end * width].chunks(PANEL * width)) {
            for (column, key) in positions.chunks_exact(width).enumerate() {
                for (to, value) in panel.iter_mut().zip(&key[first..first + size]) {
                    to[column] = widen(*value);
                }
            }
        }
        let mut values = vec![[0.0; PANEL]; size.div_ceil(PANEL) * self.end];
        for (index, panel) in values.chunks_exact_mut(self.end).enumerate() {
            let columns = first + index * PANEL..first + size.min((index + 1) * PANEL);
            for (to, value) in panel.iter_mut().zip(self.values.chunks_exact(width)) {
                for (to, value) in to.iter_mut().zip(&value[columns.clone()]) {
                    *to = widen(*value);
                }
            }
        }
        Panels { keys, values }
    }
}

/// bf16 to f32 without the quieting of NaN that `half` does, which would keep loops scalar.
#[inline(always)]
fn widen(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// The query heads of one KV head in the rows from `row` on, as many as `out` has room for.
struct Block<'a> {
    heads: Heads,
    kv: usize,
    panels: &'a Panels,
    q: &'a [f32],
    row: usize,
    start: usize,
    out: &'a mut [f32],
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Block { heads, kv, panels, q, row, start, out } = self;
        let (size, group) = (heads.size, heads.group());
        let scale = 1.0 / (size as f32).sqrt();
        let queries = out.len() / size;
        let end = start + row + queries.div_ceil(group);
        let stride = end.next_multiple_of(PANEL);
        let mut scores = vec![0.0; ROWS * stride];
        let mut scaled = vec![0.0; ROWS * size];

        for tile_queries in split(queries) {
            let count = tile_queries.len();
            // Positions that each query of the tile may attend to; they never decrease.
            let mut limits = [0; ROWS];
            for ((query, limit), to) in tile_queries.clone().zip(&mut limits).zip(scaled.chunks_exact_mut(size)) {
                let (row, head) = (row + query / group, kv * group + query % group);
                *limit = start + row + 1;
                let from = &q[(row * heads.queries + head) * size..][..size];
                for (to, from) in to.iter_mut().zip(from) {
                    *to = from * scale;
                }
            }

            let longest = limits[count - 1];
            let mut x: [&[f32]; ROWS] = [&[]; ROWS];
            for (x, scaled) in x.iter_mut().zip(scaled.chunks_exact(size)) {
                *x = scaled;
            }
            for (index, keys) in panels.keys.chunks_exact(size).take(longest.div_ceil(PANEL)).enumerate() {
                let mut found = [[0.0; PANEL]; ROWS];
                tile(isa, &x[..count], keys, &mut found);
                for (scores, found) in scores.chunks_exact_mut(stride).zip(&found[..count]) {
                    scores[index * PANEL..(index + 1) * PANEL].copy_from_slice(found);
                }
            }

            let mut sums = [0.0; ROWS];
            for ((scores, limit), sum) in scores.chunks_exact_mut(stride).zip(limits).zip(&mut sums).take(count) {
                *sum = exponentials(isa, scores, limit);
            }

            let out = &mut out[tile_queries.start * size..tile_queries.end * size];
            weigh(isa, panels, &scores, &limits[..count], &sums, out);
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
    let mut highest = isa.splat(f32::NEG_INFINITY);
    for vector in vectors.iter() {
        highest = isa.max(isa.load(vector), highest);
    }
    let mut lanes = [0.0; LANES];
    isa.store(highest, &mut lanes);
    let highest = isa.splat(lanes.into_iter().fold(f32::NEG_INFINITY, f32::max));
    let mut sum = isa.splat(0.0);
    for vector in vectors.iter_mut() {
        let e = exp(isa, isa.sub(isa.load(vector), highest));
        isa.store(e, vector);
        sum = isa.add(sum, e);
    }
    sum_lanes(isa, sum)
}

/// Writes each query's weighted mean of the values to `out`, `[limits.len(), size]`.
#[inline(always)]
fn weigh<I: Isa>(isa: I, panels: &Panels, scores: &[f32], limits: &[usize], sums: &[f32; ROWS], out: &mut [f32]) {
    let count = limits.len();
    let size = out.len() / count;
    let stride = scores.len() / ROWS;
    // A longer query must not drag a shorter one past its limit: not even a zero weight is neutral (-0, NaN).
    let common = limits[0];
    for (index, values) in panels.values.chunks_exact(panels.values.len() / size.div_ceil(PANEL)).enumerate() {
        let mut x: [&[f32]; ROWS] = [&[]; ROWS];
        for (x, scores) in x.iter_mut().zip(scores.chunks_exact(stride)) {
            *x = &scores[..common];
        }
        let mut weighted = [[0.0; PANEL]; ROWS];
        tile(isa, &x[..count], &values[..common], &mut weighted);
        for r in 0..count {
            let rest = common..limits[r];
            if !rest.is_empty() {
                tile(isa, &[&scores[r * stride..][rest.clone()]], &values[rest], &mut weighted[r..=r]);
            }
            let to = &mut out[r * size + index * PANEL..(r + 1) * size];
            for (to, value) in to.iter_mut().zip(weighted[r]) {
                *to = value / sums[r];
            }
        }
    }
}
