//! A matrix cut into rectangles that threads write at the same time.
#![expect(unsafe_code, reason = "rows of a rectangle are parts of one buffer that other threads write elsewhere")]

use std::marker::PhantomData;
use std::ops::Range;

/// The part of a row-major matrix that one task writes.
pub(super) struct Rectangle<'a> {
    /// The first value of the matrix.
    matrix: *mut f32,
    stride: usize,
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    buffer: PhantomData<&'a mut [f32]>,
}

// SAFETY: a rectangle is an exclusive borrow of its values, see `cut`; f32 can be written by any thread.
unsafe impl Send for Rectangle<'_> {}

impl<'a> Rectangle<'a> {
    /// Cuts a matrix with rows of `stride` values into rectangles of the given rows by at most `columns` columns.
    ///
    /// # Panics
    /// If the rows are not in order, overlap or reach beyond the matrix.
    pub(super) fn cut(
        matrix: &'a mut [f32],
        stride: usize,
        rows: impl IntoIterator<Item = Range<usize>>,
        columns: usize,
    ) -> Vec<Rectangle<'a>> {
        let height = matrix.len() / stride;
        let matrix = matrix.as_mut_ptr();
        let mut rectangles = Vec::new();
        let mut free = 0;
        for rows in rows {
            assert!(free <= rows.start && rows.start <= rows.end && rows.end <= height, "{rows:?} of {height} rows");
            free = rows.end;
            // The assertion keeps the rows apart, the step the columns: so all rectangles are disjoint.
            rectangles.extend((0..stride).step_by(columns).map(|first| Rectangle {
                matrix,
                stride,
                rows: rows.clone(),
                columns: first..stride.min(first + columns),
                buffer: PhantomData,
            }));
        }
        rectangles
    }

    /// The rectangle's part of row `row` of the matrix.
    ///
    /// # Panics
    /// If the row is not one of the rectangle's.
    pub(super) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(self.rows.contains(&row), "row {row} is outside the rectangle's {:?}", self.rows);
        // SAFETY: `cut` keeps rows and columns inside the matrix, which outlives `'a`, and gives these values to no other
        // rectangle; `&mut self` keeps this one from handing them out twice.
        unsafe {
            let first = self.matrix.add(row * self.stride + self.columns.start);
            std::slice::from_raw_parts_mut(first, self.columns.len())
        }
    }
}
