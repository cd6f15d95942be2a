//! bf16 values rounded to a few dozen levels a channel, and the levels entropy-coded; tokens that matter most are rounded
//! less or kept as they are.
//!
//! A frame is a byte that tells which of two it is. Either all tokens are exact, and their lossless frame follows: blocks of
//! one token are such, and those whose values lie too far apart, so no frame is longer than a lossless one but for that
//! byte. Or there follow every token's care ([`Rows`]), if any token is exact the length of their lossless frame (a
//! little-endian `u32`) and the frame, and for K and for V the [`Grid`], the packed length of the symbols of all other
//! tokens (`u32`) and the symbols.

use super::{
    Codec, Error,
    entropy::{Packer, Unpacker},
    grid::Grid,
    lossless,
    reader::Reader,
    rows::{Care, Rows},
};

const ALL_EXACT: u8 = 0;
const ROUNDED: u8 = 1;

/// The most bytes of a frame of `values` values: all tokens are exact.
pub(super) fn max_frame(values: usize) -> Option<usize> {
    lossless::max_frame(values)?.checked_add(1)
}

/// How many levels of K and of V make up the root mean square of what is rounded. K has more: its errors reach the
/// attention's exponential.
#[derive(Clone, Copy)]
pub(crate) struct Levels(pub(super) [f32; 2]);

/// Mean KL divergence 0.0006 to 0.0007 on the two English texts that these were chosen on; more where a text is harder, as
/// source code is.
pub(super) const NEAR: Levels = Levels([6.5, 4.4]);
/// Mean KL divergence 0.0022 to 0.0028 on the same texts.
pub(super) const BALANCED: Levels = Levels([3.5, 2.2]);

/// By how much a token's steps of K and of V are finer.
fn finer(care: Care) -> [f32; 2] {
    match care {
        Care::Fine => [4.0, 1.0],
        Care::Plain | Care::Exact => [1.0, 1.0],
    }
}

pub(crate) struct Encoder {
    codec: Codec,
    levels: Levels,
    lossless: lossless::Encoder,
    packer: Packer,
    rows: Rows,
    grids: [Grid; 2],
    symbols: [Vec<u8>; 2],
    exact: Vec<u16>,
}

impl Encoder {
    /// `codec` is for errors only.
    pub(super) fn new(codec: Codec, levels: Levels) -> Result<Self, Error> {
        Ok(Self {
            codec,
            levels,
            lossless: lossless::Encoder::new()?,
            packer: Packer::new()?,
            rows: Rows::default(),
            grids: Default::default(),
            symbols: Default::default(),
            exact: Vec::new(),
        })
    }

    /// Appends the frame of K and V, `[tokens, width]` each.
    pub(super) fn encode(&mut self, values: &[u16], width: usize, out: &mut Vec<u8>) -> Result<(), Error> {
        let start = out.len();
        if width > 0 && !values.is_empty() && self.quantize(values, width) {
            out.push(ROUNDED);
            self.write(values, width, out)?;
            if max_frame(values.len()).is_some_and(|max_frame| out.len() - start <= max_frame) {
                return Ok(());
            }
            out.truncate(start);
        }
        out.push(ALL_EXACT);
        self.lossless.encode(values, width, out)
    }

    /// Sets the grids, the symbols and every token's care. Returns whether any token is rounded.
    fn quantize(&mut self, values: &[u16], width: usize) -> bool {
        let (k, v) = values.split_at(values.len() / 2);
        self.rows.measure([k, v], width);
        let Levels(levels) = self.levels;
        let mut grids = self.grids.iter_mut().zip([k, v]).zip(levels).enumerate();
        if !grids.all(|(which, ((grid, half), levels))| grid.measure(half, width, &self.rows, which, levels)) {
            return false;
        }
        let ([k_grid, v_grid], [k_symbols, v_symbols]) = (&self.grids, &mut self.symbols);
        k_symbols.clear();
        v_symbols.clear();
        let rows = k.chunks_exact(width).zip(v.chunks_exact(width));
        for ((k, v), care) in rows.zip(&mut self.rows.care).filter(|(_, care)| **care != Care::Exact) {
            let before = k_symbols.len();
            let [k_finer, v_finer] = finer(*care);
            if !(k_grid.quantize(k, k_finer, k_symbols) && v_grid.quantize(v, v_finer, v_symbols)) {
                k_symbols.truncate(before);
                v_symbols.truncate(before);
                *care = Care::Exact;
            }
        }
        !k_symbols.is_empty()
    }

    fn write(&mut self, values: &[u16], width: usize, out: &mut Vec<u8>) -> Result<(), Error> {
        let too_long = |found| Error::Length { codec: self.codec, values: values.len(), found };
        let length = |found: usize| u32::try_from(found).map_err(|_| too_long(found)).map(u32::to_le_bytes);
        self.rows.write(out);
        self.exact.clear();
        for half in values.chunks_exact(values.len() / 2) {
            for (row, _) in half.chunks_exact(width).zip(&self.rows.care).filter(|(_, care)| **care == Care::Exact) {
                self.exact.extend_from_slice(row);
            }
        }
        if !self.exact.is_empty() {
            let at = out.len();
            out.extend_from_slice(&[0; size_of::<u32>()]);
            let start = out.len();
            self.lossless.encode(&self.exact, width, out)?;
            let len = length(out.len() - start)?;
            out[at..start].copy_from_slice(&len);
        }
        for (grid, symbols) in self.grids.iter().zip(&self.symbols) {
            grid.write(out);
            let packed = self.packer.pack(symbols)?;
            out.extend_from_slice(&length(packed.len())?);
            out.extend_from_slice(packed);
        }
        Ok(())
    }
}

pub(super) struct Decoder {
    lossless: lossless::Decoder,
    unpacker: Unpacker,
    rows: Rows,
    grid: Grid,
    symbols: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Result<Self, Error> {
        let (rows, grid, symbols) = (Rows::default(), Grid::default(), Vec::new());
        Ok(Self { lossless: lossless::Decoder::new()?, unpacker: Unpacker::new()?, rows, grid, symbols })
    }

    /// The `values` values of a frame; `codec` is for errors only.
    pub(super) fn decode(
        &mut self,
        codec: Codec,
        frame: &[u8],
        values: usize,
        width: usize,
    ) -> Result<Vec<u16>, Error> {
        let wrong = || Error::Length { codec, values, found: frame.len() };
        let mut reader = Reader(frame);
        match reader.take(1).ok_or_else(wrong)? {
            [ALL_EXACT] => return self.lossless.decode(reader.0, values, width),
            [ROUNDED] if width > 0 && values > 0 => {}
            _ => return Err(wrong()),
        }
        let tokens = values / 2 / width;
        self.rows.read(&mut reader, tokens).ok_or(Error::Care { codec, tokens })?;
        let exact_values = self.rows.exact_count() * width;
        let exact = if exact_values > 0 {
            let len = reader.u32().ok_or_else(wrong)? as usize;
            self.lossless.decode(reader.take(len).ok_or_else(wrong)?, 2 * exact_values, width)?
        } else {
            Vec::new()
        };
        let (k_exact, v_exact) = exact.split_at(exact_values);

        let mut out = vec![0; values];
        for (which, (half, exact)) in out.chunks_exact_mut(values / 2).zip([k_exact, v_exact]).enumerate() {
            self.grid.read(&mut reader, width).ok_or(Error::Grid { codec })?;
            let len = reader.u32().ok_or_else(wrong)? as usize;
            self.symbols.resize(tokens * width - exact_values, 0);
            self.unpacker.unpack(reader.take(len).ok_or_else(wrong)?, &mut self.symbols)?;
            let (mut exact, mut symbols) = (exact.chunks_exact(width), self.symbols.chunks_exact(width));
            for (row, care) in half.chunks_exact_mut(width).zip(&self.rows.care) {
                if *care == Care::Exact {
                    exact.next().into_iter().for_each(|exact| row.copy_from_slice(exact));
                } else if let Some(symbols) = symbols.next() {
                    self.grid.restore(symbols, finer(*care)[which], row);
                }
            }
        }
        if reader.is_empty() { Ok(out) } else { Err(wrong()) }
    }
}
