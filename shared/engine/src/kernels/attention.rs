//! Causal attention of a ragged batch with grouped queries and the KV cache in pages.

use baton_model::config::Heads;
use half::bf16;
use rayon::prelude::*;

use super::exact_attention::{ExactBlock, Pack, Panels};
use super::fast_attention::FastBlock;
use super::heads::{Attention, HeadNorms, Rotation, prepare_heads};
use super::isa::Level;
use super::linear::Mode;
use super::pages::{self, Pages, Part, Quantized, Segment};
use super::rectangle::Rectangle;

/// Rows that a task takes at once.
pub(super) const ROW_BLOCK: usize = 32;

/// Products below which threads cost more than they save.
const SMALL: usize = 1 << 16;

/// Writes the keys and values of `qkv` (`[rows, row width]`) to the cache, and the attention of its queries over everything
/// up to each row's own position to `out` (`[rows, queries * size]`). Sees the new rows as the cache has them.
///
/// The copies in 8 bits are kept if there are any, and read in the fast mode.
#[expect(clippy::too_many_arguments, reason = "each is another thing of the layer or the pass")]
pub(crate) fn attention(
    level: Level,
    mode: Mode,
    attention: Attention,
    qkv: &[f32],
    norms: Option<HeadNorms<'_>>,
    rotation: &Rotation,
    segments: &[Segment],
    cache: Pages<&mut [bf16]>,
    copies: Option<Quantized<&mut [u8], &mut [f32]>>,
    out: &mut [f32],
) {
    let Attention { heads, .. } = attention;
    let prepared = prepare_heads(level, heads, qkv, norms, rotation);
    let copies = store(level, heads, qkv, &prepared, segments, (cache.keys, cache.values), copies);
    let cache = Pages { keys: &*cache.keys, values: &*cache.values };

    let panels: Vec<Panels> = match (mode, &copies) {
        (Mode::Fast, Some(_)) => Vec::new(),
        _ => {
            let all = segments.par_iter().flat_map_iter(|segment| (0..heads.kv).map(move |kv| (segment, kv)));
            all.map(|(segment, kv)| level.run(Pack { attention, kv, segment, cache: &cache })).collect()
        }
    };
    let blocks = segments.iter().flat_map(|segment| {
        let blocks = (0..segment.rows).step_by(ROW_BLOCK);
        blocks.map(|first| segment.row + first..segment.row + segment.rows.min(first + ROW_BLOCK))
    });
    let rectangles = Rectangle::cut(out, heads.query_width(), blocks, heads.group() * heads.size);
    let block = |mut out: Rectangle<'_>| {
        let kv = out.columns.start / (heads.group() * heads.size);
        let index = segments.partition_point(|segment| segment.row + segment.rows <= out.rows.start);
        let segment = &segments[index];
        match &copies {
            Some(copies) if mode == Mode::Fast => {
                level.run(FastBlock { attention, kv, segment, copies, prepared: &prepared, out: &mut out });
            }
            _ => {
                let panels = &panels[index * heads.kv + kv];
                level.run(ExactBlock { attention, kv, segment, panels, prepared: &prepared, out: &mut out });
            }
        }
    };
    let work: usize = segments.iter().map(|segment| segment.rows * segment.end()).sum();
    if work * heads.query_width() < SMALL {
        rectangles.into_iter().for_each(block);
    } else {
        rectangles.into_par_iter().for_each(block);
    }
}

/// Writes the segments' keys and values, which come mixed from `prepared` and as they are from `qkv`.
fn store<'a>(
    level: Level,
    heads: Heads,
    qkv: &[f32],
    prepared: &[f32],
    segments: &[Segment],
    (keys, values): (&mut [bf16], &mut [bf16]),
    copies: Option<Quantized<&'a mut [u8], &'a mut [f32]>>,
) -> Option<Quantized<&'a [u8], &'a [f32]>> {
    let (queries, kv) = (heads.query_width(), heads.kv_width());
    let (key_copy, value_copy) = match copies {
        Some(Quantized { keys, values, key_scales, value_scales }) => {
            (Some((keys, key_scales)), Some((values, value_scales)))
        }
        None => (None, None),
    };
    type Copy<'a> = Option<(&'a mut [u8], &'a mut [f32])>;
    let write_part = |part: Part, to: &mut [bf16], copy: Copy<'a>| {
        for segment in segments {
            let row = |row: usize| match part {
                Part::Keys => &prepared[(segment.row + row) * (queries + kv) + queries..][..kv],
                Part::Values => &qkv[(segment.row + row) * heads.row_width() + queries + kv..][..kv],
            };
            pages::write(heads, segment, row, to);
        }
        copy.map(|(bytes, scales)| {
            for segment in segments {
                pages::quantize(level, heads, segment, part, to, bytes, scales);
            }
            (&*bytes, &*scales)
        })
    };
    let write_keys = || write_part(Part::Keys, keys, key_copy);
    let write_values = || write_part(Part::Values, values, value_copy);
    let (keys, values) =
        if qkv.len() < SMALL { (write_keys(), write_values()) } else { rayon::join(write_keys, write_values) };
    let ((keys, key_scales), (values, value_scales)) = keys.zip(values)?;
    Some(Quantized { keys, values, key_scales, value_scales })
}

/// Makes the copies in 8 bits of positions that were written to the cache by other means.
pub(crate) fn copy_imported(
    level: Level,
    heads: Heads,
    segment: &Segment,
    cache: &Pages<&[bf16]>,
    copies: Quantized<&mut [u8], &mut [f32]>,
) {
    let Quantized { keys, values, key_scales, value_scales } = copies;
    pages::quantize(level, heads, segment, Part::Keys, cache.keys, keys, key_scales);
    pages::quantize(level, heads, segment, Part::Values, cache.values, values, value_scales);
}
