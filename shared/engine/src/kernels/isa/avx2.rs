//! AVX2: every vector is two registers.
#![expect(unsafe_code, reason = "intrinsics; each block relies on the token's promise")]

use std::arch::x86_64::*;

use super::{Isa, Kernel, LANES, Lanes, Line};

/// Promises that the processor has AVX2, F16C and FMA; made by [`Self::detect`] only.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"))
            .then_some(Self(()))
    }

    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,f16c,fma")]
        fn inner<K: Kernel>(isa: Avx2, kernel: K) -> K::Output {
            kernel.run(isa)
        }
        // SAFETY: the token promises the features that `inner` is compiled for.
        unsafe { inner(self, kernel) }
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

    type B = [__m256i; 2];
    type I = [__m256i; 2];

    #[inline(always)]
    fn load_bytes(self, from: &Line) -> [__m256i; 2] {
        let (low, high) = from.split_at(2 * LANES);
        // SAFETY: the token promises AVX2; both halves are 32 readable bytes, alignment is not needed.
        unsafe { [_mm256_loadu_si256(low.as_ptr().cast()), _mm256_loadu_si256(high.as_ptr().cast())] }
    }
    #[inline(always)]
    fn store_bytes(self, v: [__m256i; 2], to: &mut Line) {
        let (low, high) = to.split_at_mut(2 * LANES);
        // SAFETY: the token promises AVX2; both halves are 32 writable bytes, alignment is not needed.
        unsafe {
            _mm256_storeu_si256(low.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(high.as_mut_ptr().cast(), v[1]);
        }
    }
    #[inline(always)]
    fn splat_bytes(self, quad: [u8; 4]) -> [__m256i; 2] {
        // SAFETY: the token promises AVX2; no memory is touched.
        unsafe { [_mm256_set1_epi32(i32::from_le_bytes(quad)); 2] }
    }
    #[inline(always)]
    fn low_nibbles(self, v: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: the token promises AVX2; no memory is touched.
        v.map(|v| unsafe { _mm256_and_si256(v, _mm256_set1_epi8(15)) })
    }
    #[inline(always)]
    fn high_nibbles(self, v: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: the token promises AVX2; no memory is touched.
        v.map(|v| unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(v), _mm256_set1_epi8(15)) })
    }
    #[inline(always)]
    fn byte_of_lanes(self, v: [__m256i; 2], index: usize) -> [__m256; 2] {
        // SAFETY: the token promises AVX2; no memory is touched.
        v.map(|v| unsafe {
            let shifted = _mm256_srlv_epi32(v, _mm256_set1_epi32(8 * index as i32));
            _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(255)))
        })
    }
    #[inline(always)]
    fn highest_lane(self, v: [__m256; 2]) -> f32 {
        // SAFETY: the token promises AVX2; no memory is touched.
        unsafe {
            let eight = _mm256_max_ps(v[0], v[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn swap<const DISTANCE: usize>(self, [low, high]: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: the token promises AVX2; no memory is touched.
        unsafe {
            match DISTANCE {
                1 => [_mm256_permute_ps::<0b10_11_00_01>(low), _mm256_permute_ps::<0b10_11_00_01>(high)],
                2 => [_mm256_permute_ps::<0b01_00_11_10>(low), _mm256_permute_ps::<0b01_00_11_10>(high)],
                4 => [_mm256_permute2f128_ps::<1>(low, low), _mm256_permute2f128_ps::<1>(high, high)],
                _ => [high, low],
            }
        }
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> [__m256i; 2] {
        // SAFETY: the token promises AVX2; no memory is touched.
        unsafe { [_mm256_set1_epi32(value); 2] }
    }
    #[inline(always)]
    fn dot(self, sum: [__m256i; 2], unsigned: [__m256i; 2], signed: [__m256i; 2]) -> [__m256i; 2] {
        // The instruction saturates its sums of two products at 16 bits, which 7 bits times 8 never reach: so the low 7
        // bits and the highest one are multiplied apart.
        std::array::from_fn(|i| {
            // SAFETY: the token promises AVX2; no memory is touched.
            unsafe {
                let low = _mm256_maddubs_epi16(_mm256_and_si256(unsigned[i], _mm256_set1_epi8(0x7f)), signed[i]);
                let high = _mm256_maddubs_epi16(_mm256_and_si256(unsigned[i], _mm256_set1_epi8(-0x80)), signed[i]);
                let ones = _mm256_set1_epi16(1);
                let products = _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones));
                _mm256_add_epi32(sum[i], products)
            }
        })
    }
    #[inline(always)]
    fn to_floats(self, v: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: the token promises AVX2; no memory is touched.
        v.map(|v| unsafe { _mm256_cvtepi32_ps(v) })
    }
    #[inline(always)]
    fn load_halves(self, from: &[u8; 2 * LANES]) -> [__m256; 2] {
        let (low, high) = from.split_at(LANES);
        // SAFETY: the token promises F16C; both halves are 16 readable bytes, alignment is not needed.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(low.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(high.as_ptr().cast())),
            ]
        }
    }
    #[inline(always)]
    fn load_floats(self, from: &Line) -> [__m256; 2] {
        let (low, high) = from.split_at(2 * LANES);
        // SAFETY: the token promises AVX2; both halves are 32 readable bytes, alignment is not needed.
        [low, high].map(|part| unsafe { _mm256_loadu_ps(part.as_ptr().cast()) })
    }
    #[inline(always)]
    fn store_signed(self, v: [__m256; 2], to: &mut [u8; LANES]) {
        // SAFETY: the token promises AVX2; `to` is 16 writable bytes, alignment is not needed.
        unsafe {
            let halves = v.map(|v| {
                let ints = _mm256_cvtps_epi32(v);
                _mm_packs_epi32(_mm256_castsi256_si128(ints), _mm256_extracti128_si256::<1>(ints))
            });
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_packs_epi16(halves[0], halves[1]));
        }
    }
    #[inline(always)]
    fn store_unsigned(self, v: [__m256; 2], to: &mut [u8; LANES]) {
        // SAFETY: the token promises AVX2; `to` is 16 writable bytes, alignment is not needed.
        unsafe {
            let halves = v.map(|v| {
                let ints = _mm256_cvtps_epi32(v);
                _mm_packs_epi32(_mm256_castsi256_si128(ints), _mm256_extracti128_si256::<1>(ints))
            });
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_packus_epi16(halves[0], halves[1]));
        }
    }
}
