//! Linear layers with what stands before and after them: `[rows, inputs] x [inputs, outputs]`.

use rayon::prelude::*;

use super::activations::{Activations, Quantize, TileMut};
use super::bytes_tile::quantized_tile;
use super::isa::{Isa, Kernel, LANES, Level};
use super::packed::{Format, Matrix, PANEL, Panel, Quantized, Unpacked};
use super::rectangle::Rectangle;
use super::rows::{Norm, SMALL, rms_norm};
use super::tile::{ROWS, split, tile};
use super::vectors::exp;

/// Rows below which more threads don't share them: each thread unpacks a panel once for its rows.
const SHARED_ROWS: usize = 64;

/// Products below which threads cost more than they save.
const SMALL_PRODUCT: usize = 1 << 16;

/// How the products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// In f32.
    Exact,
    /// Of quantized weights on activations in 8 bits; other weights as in `Exact`.
    Fast,
}

/// What happens to the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Store,
    /// It is added to what is there.
    Add,
    /// Every 32 outputs are 16 gates and their 16 values, of which `activation(gate) * value` is stored, 16 outputs.
    Gate(Activation),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x / (1 + e^-x)` (Shazeer, "GLU variants improve transformer", 2020).
    Silu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))` (Hendrycks and Gimpel, "Gaussian error linear units", 2016).
    Gelu,
}

/// RMS norm of the rows, before the product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Normed<'a> {
    /// `[inputs]`.
    pub(crate) weight: &'a [f32],
    pub(crate) epsilon: f32,
}

impl Then {
    /// Values that `outputs` outputs leave in a row.
    pub(crate) fn width(self, outputs: usize) -> usize {
        match self {
            Then::Store | Then::Add => outputs,
            Then::Gate(_) => outputs / 2,
        }
    }
}

/// Multiplies the rows of `x` with the weights into `out`, `[rows, then.width(outputs)]`.
pub(crate) fn linear(
    level: Level,
    mode: Mode,
    x: &[f32],
    norm: Option<Normed<'_>>,
    weights: Matrix<'_>,
    then: Then,
    out: &mut [f32],
) {
    let rows = x.len() / weights.inputs;
    let prepared = match (mode, weights.format) {
        (Mode::Fast, Format::Quantized(format)) => {
            Prepared::Quantized(quantize(level, x, weights.inputs, norm, format))
        }
        _ => Prepared::Floats(match norm {
            Some(norm) => rms_norm(level, x, norm.weight, norm.epsilon),
            None => x.to_vec(),
        }),
    };

    let width = PANEL * then.width(weights.outputs) / weights.outputs;
    // The last panel may be narrower than what it computes.
    let stride = then.width(weights.outputs);
    let threads = rayon::current_num_threads();
    let tasks = if x.len() * weights.outputs < SMALL_PRODUCT || threads == 1 {
        1
    } else if rows == 1 {
        // Of one row, threads wait for memory alike; a task each costs least.
        threads
    } else {
        4 * threads
    };
    let panels = weights.panels();
    let row_parts = tasks.div_ceil(panels).clamp(1, rows.div_ceil(SHARED_ROWS));
    let part_panels = panels.div_ceil(tasks.div_ceil(row_parts).min(panels));
    let work = |mut to: Rectangle<'_>| {
        let mut scratch = Scratch::default();
        let first = to.columns.start / width;
        for index in 0..to.columns.len().div_ceil(width) {
            let task = Task { level, prepared: &prepared, then, to: &mut to, from: index * width };
            task.panel(&weights, first + index, &mut scratch);
        }
    };
    // Whole tiles.
    let tiles: Vec<_> = split(rows).collect();
    let row_parts = tiles.chunks(tiles.len().div_ceil(row_parts)).map(|part| part[0].start..part[part.len() - 1].end);
    let rectangles = Rectangle::cut(out, stride, row_parts, part_panels * width);
    if tasks == 1 {
        rectangles.into_iter().for_each(work);
    } else {
        rectangles.into_par_iter().with_max_len(1).for_each(work);
    }
}

/// The rows, ready to multiply.
enum Prepared {
    /// `[rows, inputs]`.
    Floats(Vec<f32>),
    Quantized(Activations),
}

/// What a task keeps from panel to panel.
#[derive(Default)]
struct Scratch {
    unpacked: Unpacked,
    /// `[inputs]`.
    floats: Vec<[f32; PANEL]>,
}

fn quantize(level: Level, x: &[f32], inputs: usize, norm: Option<Normed<'_>>, format: Quantized) -> Activations {
    let mut activations = Activations::new(x.len() / inputs, inputs, format);
    let tile = |(values, largest): &mut (Vec<f32>, Vec<f32>), mut to: TileMut<'_>| {
        values.resize(inputs, 0.0);
        for (row, x) in x[to.rows.start * inputs..to.rows.end * inputs].chunks_exact(inputs).enumerate() {
            match norm {
                Some(Normed { weight, epsilon }) => level.run(Norm { x, weight, epsilon, out: values }),
                None => values.copy_from_slice(x),
            }
            level.run(Quantize { values, row, to: &mut to, largest });
        }
    };
    let tiles = activations.tiles_mut();
    if x.len() < SMALL {
        let mut scratch = Default::default();
        tiles.into_iter().for_each(|to| tile(&mut scratch, to));
    } else {
        let least = SMALL.div_ceil(2 * ROWS * inputs);
        tiles.into_par_iter().with_min_len(least).for_each_init(Default::default, tile);
    }
    activations
}

/// One rectangle's part of one panel.
struct Task<'a, 'b> {
    level: Level,
    prepared: &'a Prepared,
    then: Then,
    to: &'a mut Rectangle<'b>,
    /// The panel's first column in the rectangle.
    from: usize,
}

impl Task<'_, '_> {
    fn panel(self, weights: &Matrix<'_>, index: usize, scratch: &mut Scratch) {
        let Task { level, prepared, then, to, from } = self;
        match prepared {
            Prepared::Quantized(rows) => {
                let panel = weights.unpack(level, index, &mut scratch.unpacked);
                level.run(QuantizedPanel { rows, panel, then, to, from });
            }
            Prepared::Floats(x) => {
                scratch.floats.resize(weights.inputs, [0.0; PANEL]);
                weights.dequantize(level, index, &mut scratch.unpacked, &mut scratch.floats);
                level.run(FloatPanel { x, panel: &scratch.floats, then, to, from });
            }
        }
    }
}

struct QuantizedPanel<'a, 'b> {
    rows: &'a Activations,
    panel: Panel<'a>,
    then: Then,
    to: &'a mut Rectangle<'b>,
    from: usize,
}

impl Kernel for QuantizedPanel<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let QuantizedPanel { rows, panel, then, to, from } = self;
        let mine = to.rows.clone();
        for tile in rows.tiles().skip_while(|tile| tile.start < mine.start).take_while(|tile| tile.end <= mine.end) {
            let mut sums = [[0.0; PANEL]; ROWS];
            quantized_tile(isa, rows.tile(tile.clone()), panel, &mut sums);
            for (sums, row) in sums.iter().zip(tile) {
                finish(isa, then, sums, &mut to.row(row)[from..]);
            }
        }
    }
}

struct FloatPanel<'a, 'b> {
    x: &'a [f32],
    panel: &'a [[f32; PANEL]],
    then: Then,
    to: &'a mut Rectangle<'b>,
    from: usize,
}

impl Kernel for FloatPanel<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let FloatPanel { x, panel, then, to, from } = self;
        let (first, inputs) = (to.rows.start, panel.len());
        for part in split(to.rows.len()) {
            let mut tile_x: [&[f32]; ROWS] = [&[]; ROWS];
            for (to, row) in tile_x.iter_mut().zip(part.clone()) {
                *to = &x[(first + row) * inputs..(first + row + 1) * inputs];
            }
            let mut sums = [[0.0; PANEL]; ROWS];
            tile(isa, &tile_x[..part.len()], panel, &mut sums);
            for (sums, row) in sums.iter().zip(part) {
                finish(isa, then, sums, &mut to.row(first + row)[from..]);
            }
        }
    }
}

/// Writes a row's sums over a panel as far as `to` goes.
#[inline(always)]
fn finish<I: Isa>(isa: I, then: Then, sums: &[f32; PANEL], to: &mut [f32]) {
    match then {
        // Nearly always whole panels: those without a call to copy a few bytes.
        Then::Store => match to.first_chunk_mut() {
            Some(to) => *to = *sums,
            None => to.copy_from_slice(&sums[..to.len()]),
        },
        Then::Add => match to.first_chunk_mut::<PANEL>() {
            Some(to) => {
                let (sums, (to, _)) = (sums.as_chunks::<LANES>().0, to.as_chunks_mut::<LANES>());
                for n in 0..2 {
                    isa.store(isa.add(isa.load(&to[n]), isa.load(&sums[n])), &mut to[n]);
                }
            }
            None => {
                for (to, sum) in to.iter_mut().zip(sums) {
                    *to += sum;
                }
            }
        },
        Then::Gate(activation) => {
            let (halves, _) = sums.as_chunks::<LANES>();
            let (x, value) = (isa.load(&halves[0]), isa.load(&halves[1]));
            let exponent = match activation {
                Activation::Silu => isa.sub(isa.splat(0.0), x),
                // x / 2 (1 + tanh(y)) is x / (1 + e^-2y).
                Activation::Gelu => {
                    let square = isa.mul(x, x);
                    let factor = isa.fma(square, isa.splat(-0.071_354_81), isa.splat(-1.595_769));
                    isa.mul(x, factor)
                }
            };
            let gated = isa.mul(isa.div(x, isa.add(isa.splat(1.0), exp(isa, exponent))), value);
            match to.first_chunk_mut() {
                Some(to) => isa.store(gated, to),
                None => {
                    let mut lanes = [0.0; LANES];
                    isa.store(gated, &mut lanes);
                    to.copy_from_slice(&lanes[..to.len()]);
                }
            }
        }
    }
}
