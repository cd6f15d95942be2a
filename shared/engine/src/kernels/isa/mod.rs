//! Sixteen lanes of f32, or of i32 with 64 bytes to multiply into them, on every instruction set, with the same results
//! to the bit.
//!
//! A level's token can only be had where the processor has its instructions, which is what makes the methods safe. The
//! compiler must see a kernel inside a function that enables those instructions, or it would compile intrinsics as calls:
//! hence [`Level::run`], and `inline(always)` on everything generic over [`Isa`].

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::sync::OnceLock;

use portable::Portable;
#[cfg(target_arch = "x86_64")]
use {avx2::Avx2, avx512::Avx512};

/// Lanes of a vector, whatever the machine's own width.
pub(super) const LANES: usize = 16;

pub(super) type Lanes = [f32; LANES];

/// Sixteen lanes of four bytes each.
pub(super) type Line = [u8; 4 * LANES];

/// Vector operations; each is the IEEE operation on every lane, with round to nearest even.
pub(super) trait Isa: Copy {
    /// Vectors of 16 f32, of a [`Line`], of 16 i32.
    type V: Copy;
    type B: Copy;
    type I: Copy;
    /// Whether a tile should use two vectors of columns at once: there are registers for 12 accumulators.
    const WIDE: bool;

    fn splat(self, value: f32) -> Self::V;
    fn load(self, from: &Lanes) -> Self::V;
    fn store(self, v: Self::V, to: &mut Lanes);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a` where it is greater than `b`, else `b`.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a` where it is less than `b`, else `b`.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn load_bytes(self, from: &Line) -> Self::B;
    fn store_bytes(self, v: Self::B, to: &mut Line);
    /// The same four bytes in every lane.
    fn splat_bytes(self, quad: [u8; 4]) -> Self::B;
    /// The low four bits of every byte.
    fn low_nibbles(self, v: Self::B) -> Self::B;
    /// The high four bits of every byte, shifted down.
    fn high_nibbles(self, v: Self::B) -> Self::B;
    /// Byte `index` (0 to 3) of every lane, unsigned.
    fn byte_of_lanes(self, v: Self::B, index: usize) -> Self::V;
    /// The highest lane; which, if one is NaN, is open.
    fn highest_lane(self, v: Self::V) -> f32;
    /// Every lane `i` becomes lane `i ^ DISTANCE`; distances are 1, 2, 4 and 8.
    fn swap<const DISTANCE: usize>(self, v: Self::V) -> Self::V;
    fn splat_int(self, value: i32) -> Self::I;
    /// Adds to each lane the four products of its bytes: `unsigned` from 0 to 255, `signed` from -127 to 127. Exact.
    fn dot(self, sum: Self::I, unsigned: Self::B, signed: Self::B) -> Self::I;
    fn to_floats(self, v: Self::I) -> Self::V;
    /// Sixteen f16 numbers, low byte first.
    fn load_halves(self, from: &[u8; 2 * LANES]) -> Self::V;
    /// Sixteen f32 numbers, low byte first.
    fn load_floats(self, from: &Line) -> Self::V;
    /// Lanes rounded to the nearest even integer, as bytes; they must lie between -127 and 127.
    fn store_signed(self, v: Self::V, to: &mut [u8; LANES]);
    /// Lanes rounded to the nearest even integer, as bytes; they must lie between 0 and 255.
    fn store_unsigned(self, v: Self::V, to: &mut [u8; LANES]);
    /// `2^n` for the integer `n` in the low bits of the lanes, -127 (for which it is 0) to 127.
    fn pow2_low_bits(self, v: Self::V) -> Self::V;
}

/// A computation that [`Level::run`] compiles for an instruction set.
pub(super) trait Kernel {
    type Output;
    /// The body, which must be `#[inline(always)]`.
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Level(Set);

#[derive(Clone, Copy, Debug)]
enum Set {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    Portable(Portable),
}

impl Level {
    /// The fastest level of this processor.
    pub(crate) fn best() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Level::all()[0])
    }

    /// All levels of this processor, the fastest first and the portable one last.
    pub(crate) fn all() -> Vec<Level> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(Avx512::detect().map(|isa| Level(Set::Avx512(isa))));
            levels.extend(Avx2::detect().map(|isa| Level(Set::Avx2(isa))));
        }
        levels.push(Level(Set::Portable(Portable)));
        levels
    }

    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(isa) => isa.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(isa) => isa.run(kernel),
            Set::Portable(isa) => kernel.run(isa),
        }
    }
}
