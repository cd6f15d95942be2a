//! Reads a frame from its start, never past its end.

pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `count` bytes.
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(count)?;
        self.0 = left;
        Some(taken)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        let (bytes, left) = self.0.split_first_chunk()?;
        self.0 = left;
        Some(u32::from_le_bytes(*bytes))
    }

    pub(super) fn f32(&mut self) -> Option<f32> {
        self.u32().map(f32::from_bits)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
