//! The KV cache of a layer, in pages that sequences share out among them.
//!
//! What is kept and exported is bf16: `[slots, kv * size]` for keys and for values, slot `page * PAGE + position % PAGE`. For
//! the fast mode each page has a copy in 8 bits, made from the bf16 values when they are written, in the order in which the
//! products want it:
//! - keys, for every 32 positions of a page, by quads of a head's values: two lines, positions 0 to 15 and 16 to 31, unsigned
//!   (plus 128);
//! - values, for every 32 values of a head, by quads of positions: two lines, of 16 values each, signed.
//!
//! Each position of each head has a scale, the largest magnitude over 127.

use std::ops::Range;

use baton_model::config::Heads;
use half::bf16;

use super::isa::{Isa, Kernel, LANES, Level, Line};
use super::packed::PANEL;
use super::vectors::TINY;

/// Positions in a page.
pub(crate) const PAGE: usize = 64;

/// Consecutive positions of one sequence in a pass.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    /// The first of its rows in the pass.
    pub(crate) row: usize,
    pub(crate) rows: usize,
    /// The position of the first row.
    pub(crate) start: usize,
    /// The sequence's pages, as many as its positions up to the last row need.
    pub(crate) pages: Vec<u32>,
}

impl Segment {
    pub(super) fn end(&self) -> usize {
        self.start + self.rows
    }

    fn slot(&self, position: usize) -> usize {
        self.pages[position / PAGE] as usize * PAGE + position % PAGE
    }

    /// The segment's rows, counted from its first, as runs of consecutive slots, each with its first slot.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        (self.start / PAGE..self.end().div_ceil(PAGE)).map(|page| {
            let first = self.start.max(page * PAGE);
            let end = self.end().min((page + 1) * PAGE);
            (self.slot(first), first - self.start..end - self.start)
        })
    }
}

/// Where keys and values lie, in bf16.
pub(crate) struct Pages<T> {
    /// `[slots, kv * size]`.
    pub(crate) keys: T,
    pub(crate) values: T,
}

/// Their copies in 8 bits: keys and values as [`page_bytes`] bytes a page, scales as `[pages, kv, 64]`.
pub(crate) struct Quantized<B, F> {
    pub(crate) keys: B,
    pub(crate) values: B,
    pub(crate) key_scales: F,
    pub(crate) value_scales: F,
}

/// Bytes of the copy of a page's keys, or of its values.
pub(crate) fn page_bytes(heads: Heads) -> usize {
    heads.kv * head_bytes(heads)
}

/// Bytes of one head in a page; heads that are no multiple of 32 are filled up.
fn head_bytes(heads: Heads) -> usize {
    PAGE * heads.size.next_multiple_of(PANEL)
}

pub(super) fn scale_range(heads: Heads, page: u32, head: usize) -> Range<usize> {
    let first = (page as usize * heads.kv + head) * PAGE;
    first..first + PAGE
}

/// The lines of a head in a page.
pub(super) fn head_lines(heads: Heads, bytes: &[u8], page: u32, head: usize) -> &[Line] {
    let first = page as usize * page_bytes(heads) + head * head_bytes(heads);
    bytes[first..first + head_bytes(heads)].as_chunks().0
}

/// Writes rows of keys or values of a segment, `row(position)` being `[kv * size]`, to `to`, rounded to bf16.
pub(super) fn write<'a>(heads: Heads, segment: &Segment, row: impl Fn(usize) -> &'a [f32], to: &mut [bf16]) {
    let width = heads.kv_width();
    for position in segment.start..segment.end() {
        let first = segment.slot(position) * width;
        for (to, value) in to[first..first + width].iter_mut().zip(row(position - segment.start)) {
            *to = bf16::from_f32(*value);
        }
    }
}

/// Which of both.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Keys,
    Values,
}

/// Makes the copies in 8 bits of the segment's positions.
pub(super) fn quantize(
    level: Level,
    heads: Heads,
    segment: &Segment,
    part: Part,
    from: &[bf16],
    bytes: &mut [u8],
    scales: &mut [f32],
) {
    level.run(Copy { heads, segment, part, from, bytes, scales });
}

struct Copy<'a> {
    heads: Heads,
    segment: &'a Segment,
    part: Part,
    from: &'a [bf16],
    bytes: &'a mut [u8],
    scales: &'a mut [f32],
}

impl Kernel for Copy<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Copy { heads, segment, part, from, bytes, scales } = self;
        let Heads { kv, size, .. } = heads;
        let mut values = vec![0.0; size];
        let mut quants = vec![0; size];
        for position in segment.start..segment.end() {
            let (page, offset) = (segment.pages[position / PAGE], position % PAGE);
            for head in 0..kv {
                let first = segment.slot(position) * kv * size + head * size;
                for (value, from) in values.iter_mut().zip(&from[first..first + size]) {
                    *value = widen(*from);
                }
                scales[scale_range(heads, page, head).start + offset] = signed_bytes(isa, &values, &mut quants);
                let first = page as usize * page_bytes(heads) + head * head_bytes(heads);
                let page = &mut bytes[first..first + head_bytes(heads)];
                match part {
                    Part::Keys => {
                        // [32 positions][quads][position][4]
                        let lines = &mut page[offset / PANEL * PANEL * size..];
                        let column = offset % PANEL * 4;
                        for (quad, quants) in quants.as_chunks::<4>().0.iter().enumerate() {
                            for (i, quant) in quants.iter().enumerate() {
                                lines[quad * 4 * PANEL + column + i] = quant.wrapping_add(128);
                            }
                        }
                    }
                    Part::Values => {
                        // [32 values][quads of positions][value][4]
                        let column = offset / 4 * 4 * PANEL + offset % 4;
                        for (block, quants) in quants.chunks(PANEL).enumerate() {
                            let lines = &mut page[block * PAGE * PANEL + column..];
                            for (i, quant) in quants.iter().enumerate() {
                                lines[4 * i] = *quant;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Quantizes values, a multiple of 16 of them, to signed bytes; returns their scale.
#[inline(always)]
pub(super) fn signed_bytes<I: Isa>(isa: I, values: &[f32], to: &mut [u8]) -> f32 {
    let (vectors, _) = values.as_chunks::<LANES>();
    let zero = isa.splat(0.0);
    let mut largest = zero;
    for vector in vectors {
        let v = isa.load(vector);
        largest = isa.max(isa.max(v, isa.sub(zero, v)), largest);
    }
    let highest = isa.highest_lane(largest);
    // A scale is finite whatever the values: pages are used again, and what they held must not reach who uses them next.
    let highest = if highest.is_finite() { highest } else { 0.0 };
    let inverse = isa.splat(if highest > TINY { 127.0 / highest } else { 0.0 });
    for (vector, to) in vectors.iter().zip(to.as_chunks_mut::<LANES>().0) {
        isa.store_signed(isa.mul(isa.load(vector), inverse), to);
    }
    highest / 127.0
}

/// bf16 to f32 without the quieting of NaN that `half` does, which would keep loops scalar.
#[inline(always)]
pub(super) fn widen(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

impl Segment {
    /// The bf16 rows of a head's positions from `first` to the segment's end.
    pub(super) fn rows_from<'a>(
        &'a self,
        heads: Heads,
        head: usize,
        first: usize,
        from: &'a [bf16],
    ) -> impl Iterator<Item = &'a [bf16]> {
        (first..self.end()).map(move |position| {
            let at = self.slot(position) * heads.kv_width() + head * heads.size;
            &from[at..at + heads.size]
        })
    }
}
