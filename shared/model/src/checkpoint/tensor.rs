//! A tensor of an open model, and its rows.

use crate::quants::Type;

/// A tensor of an open model.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// How its numbers are stored.
    pub dtype: Type,
    /// Elements along each dimension in ggml's order: the first runs fastest, so a matrix of `[out, in]` has `[in, out]`.
    pub dims: &'a [usize],
    /// The elements, row after row, encoded as `dtype` says.
    pub bytes: &'a [u8],
}

impl Tensor<'_> {
    /// Values in a row: the dimension that runs fastest.
    pub fn row_len(&self) -> usize {
        self.dims[0]
    }

    /// Rows of [`Self::row_len`] values.
    pub fn rows(&self) -> usize {
        self.dims[1..].iter().product()
    }

    /// Writes row `row` to `out`, both of [`Self::row_len`] values.
    ///
    /// # Panics
    /// If the tensor has no such row.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        self.dtype.dequantize(self.row(row), out);
    }

    /// Splits row `row` into [`Self::row_len`] quants and the scales and offsets of its groups ([`Type::unpack`]).
    ///
    /// # Panics
    /// If the tensor has no such row.
    pub fn unpack_row(&self, row: usize, quants: &mut [u8], scales: &mut [f32], offsets: &mut [f32]) {
        self.dtype.unpack(self.row(row), quants, scales, offsets);
    }

    fn row(&self, row: usize) -> &[u8] {
        let len = self.row_len() / self.dtype.block_len() * self.dtype.block_bytes();
        &self.bytes[row * len..(row + 1) * len]
    }
}
