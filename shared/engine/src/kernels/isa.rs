//! Sixteen f32 lanes on every instruction set, with the same results to the bit.
//!
//! A level's token can only be had where the processor has its instructions, which is what makes the methods safe. The
//! compiler must see a kernel inside a function that enables those instructions, or it would compile intrinsics as calls:
//! hence [`Level::run`], and `inline(always)` on everything generic over [`Isa`].

use std::sync::OnceLock;

/// Lanes of a vector, whatever the machine's own width.
pub(super) const LANES: usize = 16;

type Lanes = [f32; LANES];

/// Vector operations; each is the IEEE operation on every lane, with round to nearest even.
pub(super) trait Isa: Copy {
    type V: Copy;
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
    Avx512(x86::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
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
            levels.extend(x86::Avx512::detect().map(|isa| Level(Set::Avx512(isa))));
            levels.extend(x86::Avx2::detect().map(|isa| Level(Set::Avx2(isa))));
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

/// Plain Rust: the oracle of the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

#[inline(always)]
fn zip(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Isa for Portable {
    type V = Lanes;
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Lanes {
        [value; LANES]
    }
    #[inline(always)]
    fn load(self, from: &Lanes) -> Lanes {
        *from
    }
    #[inline(always)]
    fn store(self, v: Lanes, to: &mut Lanes) {
        *to = v;
    }
    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn pow2_low_bits(self, v: Lanes) -> Lanes {
        v.map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(1.0f32.to_bits())))
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "intrinsics; each block relies on the token's promise")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Isa, Kernel, LANES, Lanes};

    /// Promises that the processor has AVX-512F; made by [`Self::detect`] only.
    #[derive(Clone, Copy, Debug)]
    pub(in super::super) struct Avx512(());

    /// Promises that the processor has AVX2 and FMA; made by [`Self::detect`] only.
    #[derive(Clone, Copy, Debug)]
    pub(in super::super) struct Avx2(());

    impl Avx512 {
        pub(super) fn detect() -> Option<Self> {
            // AVX2 and FMA besides, so that what the compiler itself vectorises there has them too.
            (is_x86_feature_detected!("avx512f") && Avx2::detect().is_some()).then_some(Self(()))
        }

        #[inline]
        pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
            #[target_feature(enable = "avx512f,avx2,fma")]
            fn inner<K: Kernel>(isa: Avx512, kernel: K) -> K::Output {
                kernel.run(isa)
            }
            // SAFETY: the token promises the features that `inner` is compiled for.
            unsafe { inner(self, kernel) }
        }
    }

    impl Avx2 {
        pub(super) fn detect() -> Option<Self> {
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
        }

        #[inline]
        pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
            #[target_feature(enable = "avx2,fma")]
            fn inner<K: Kernel>(isa: Avx2, kernel: K) -> K::Output {
                kernel.run(isa)
            }
            // SAFETY: the token promises the features that `inner` is compiled for.
            unsafe { inner(self, kernel) }
        }
    }

    /// A method that is one intrinsic on registers.
    macro_rules! avx512 {
        ($($name:ident($($arg:ident),+) = $intrinsic:ident;)+) => {$(
            #[inline(always)]
            fn $name(self, $($arg: __m512),+) -> __m512 {
                // SAFETY: the token promises AVX-512F; no memory is touched.
                unsafe { $intrinsic($($arg),+) }
            }
        )+};
    }

    impl Isa for Avx512 {
        type V = __m512;
        const WIDE: bool = true;

        #[inline(always)]
        fn splat(self, value: f32) -> __m512 {
            // SAFETY: the token promises AVX-512F; no memory is touched.
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        fn load(self, from: &Lanes) -> __m512 {
            // SAFETY: the token promises AVX-512F; `from` is 16 readable floats, alignment is not needed.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }
        #[inline(always)]
        fn store(self, v: __m512, to: &mut Lanes) {
            // SAFETY: the token promises AVX-512F; `to` is 16 writable floats, alignment is not needed.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
        }
        avx512! {
            add(a, b) = _mm512_add_ps;
            sub(a, b) = _mm512_sub_ps;
            mul(a, b) = _mm512_mul_ps;
            div(a, b) = _mm512_div_ps;
            max(a, b) = _mm512_max_ps;
            min(a, b) = _mm512_min_ps;
            fma(a, b, c) = _mm512_fmadd_ps;
        }
        #[inline(always)]
        fn pow2_low_bits(self, v: __m512) -> __m512 {
            // SAFETY: the token promises AVX-512F; no memory is touched.
            unsafe {
                let shifted = _mm512_slli_epi32::<23>(_mm512_castps_si512(v));
                _mm512_castsi512_ps(_mm512_add_epi32(shifted, _mm512_castps_si512(_mm512_set1_ps(1.0))))
            }
        }
    }

    /// A method that is one intrinsic on each of a vector's halves.
    macro_rules! avx2 {
        ($($name:ident($($arg:ident),+) = $intrinsic:ident;)+) => {$(
            #[inline(always)]
            fn $name(self, $($arg: [__m256; 2]),+) -> [__m256; 2] {
                // SAFETY: the token promises AVX2 and FMA; no memory is touched.
                unsafe { [$intrinsic($($arg[0]),+), $intrinsic($($arg[1]),+)] }
            }
        )+};
    }

    impl Isa for Avx2 {
        type V = [__m256; 2];
        const WIDE: bool = false;

        #[inline(always)]
        fn splat(self, value: f32) -> [__m256; 2] {
            // SAFETY: the token promises AVX2; no memory is touched.
            unsafe { [_mm256_set1_ps(value); 2] }
        }
        #[inline(always)]
        fn load(self, from: &Lanes) -> [__m256; 2] {
            let (low, high) = from.split_at(LANES / 2);
            // SAFETY: the token promises AVX2; both halves are 8 readable floats, alignment is not needed.
            unsafe { [_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())] }
        }
        #[inline(always)]
        fn store(self, v: [__m256; 2], to: &mut Lanes) {
            let (low, high) = to.split_at_mut(LANES / 2);
            // SAFETY: the token promises AVX2; both halves are 8 writable floats, alignment is not needed.
            unsafe {
                _mm256_storeu_ps(low.as_mut_ptr(), v[0]);
                _mm256_storeu_ps(high.as_mut_ptr(), v[1]);
            }
        }
        avx2! {
            add(a, b) = _mm256_add_ps;
            sub(a, b) = _mm256_sub_ps;
            mul(a, b) = _mm256_mul_ps;
            div(a, b) = _mm256_div_ps;
            max(a, b) = _mm256_max_ps;
            min(a, b) = _mm256_min_ps;
            fma(a, b, c) = _mm256_fmadd_ps;
        }
        #[inline(always)]
        fn pow2_low_bits(self, v: [__m256; 2]) -> [__m256; 2] {
            v.map(|v| {
                // SAFETY: the token promises AVX2; no memory is touched.
                unsafe {
                    let shifted = _mm256_slli_epi32::<23>(_mm256_castps_si256(v));
                    _mm256_castsi256_ps(_mm256_add_epi32(shifted, _mm256_castps_si256(_mm256_set1_ps(1.0))))
                }
            })
        }
    }
}
