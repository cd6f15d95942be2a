//! Memory for packed weights: one range of the system's large pages.
//!
//! A step of one sequence reads all weights once, in order. In pages of 4 KiB the processor would spend a seventh of that
//! time on finding them.

use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use memmap2::{Mmap, MmapMut, MmapOptions};

/// The weights of a model, while they are loaded.
pub(super) struct Arena {
    map: MmapMut,
    used: usize,
    frozen: Arc<OnceLock<Mmap>>,
}

/// A part of an [`Arena`], to be read once that is frozen.
pub(super) struct Stored {
    arena: Arc<OnceLock<Mmap>>,
    range: Range<usize>,
}

impl Arena {
    /// Room for `bytes` bytes; memory is taken from the system as it is written.
    pub(super) fn reserve(bytes: usize) -> io::Result<Arena> {
        let map = MmapOptions::new().len(bytes.max(1)).no_reserve_swap().map_anon()?;
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(memmap2::Advice::HugePage) {
            tracing::debug!(error = %baton_contract::causes(&error), "the system has no large pages; weights are in small ones");
        }
        Ok(Arena { map, used: 0, frozen: Arc::default() })
    }

    /// The next `bytes` bytes, zeros, to be written now.
    ///
    /// # Panics
    /// If there is no room.
    pub(super) fn take(&mut self, bytes: usize) -> (&mut [u8], Stored) {
        let range = self.used..self.used + bytes;
        // The next begins on a line of the processor's cache.
        self.used = range.end.next_multiple_of(64);
        let stored = Stored { arena: self.frozen.clone(), range: range.clone() };
        (&mut self.map[range], stored)
    }

    pub(super) fn freeze(self) -> io::Result<()> {
        let Arena { map, frozen, .. } = self;
        frozen.set(map.make_read_only()?).map_err(|_| io::Error::other("weights were frozen before"))
    }
}

impl Stored {
    /// # Panics
    /// Before the arena is frozen.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.arena.get().expect("weights are frozen when they are loaded")[self.range.clone()]
    }
}
