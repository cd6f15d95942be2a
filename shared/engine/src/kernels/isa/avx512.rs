//! AVX-512 with VNNI, whose products of bytes are what the fast mode lives on.
#![expect(unsafe_code, reason = "intrinsics; each block relies on the token's promise")]

use std::arch::x86_64::*;

use super::avx2::Avx2;
use super::{Isa, Kernel, LANES, Lanes, Line};

/// Promises that the processor has AVX-512 F, BW and VNNI; made by [`Self::detect`] only.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        // AVX2 and FMA besides, so that what the compiler itself vectorises there has them too.
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni")
            && Avx2::detect().is_some())
        .then_some(Self(()))
    }

    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,f16c,fma")]
        fn inner<K: Kernel>(isa: Avx512, kernel: K) -> K::Output {
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

    type B = __m512i;
    type I = __m512i;

    #[inline(always)]
    fn load_bytes(self, from: &Line) -> __m512i {
        // SAFETY: the token promises AVX-512F; `from` is 64 readable bytes, alignment is not needed.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_bytes(self, v: __m512i, to: &mut Line) {
        // SAFETY: the token promises AVX-512F; `to` is 64 writable bytes, alignment is not needed.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), v) }
    }
    #[inline(always)]
    fn splat_bytes(self, quad: [u8; 4]) -> __m512i {
        // SAFETY: the token promises AVX-512F; no memory is touched.
        unsafe { _mm512_set1_epi32(i32::from_le_bytes(quad)) }
    }
    #[inline(always)]
    fn low_nibbles(self, v: __m512i) -> __m512i {
        // SAFETY: the token promises AVX-512F; no memory is touched.
        unsafe { _mm512_and_si512(v, _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    fn high_nibbles(self, v: __m512i) -> __m512i {
        // SAFETY: the token promises AVX-512 F and BW; no memory is touched.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(v), _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    fn byte_of_lanes(self, v: __m512i, index: usize) -> __m512 {
        // SAFETY: the token promises AVX-512F; no memory is touched.
        unsafe {
            let shifted = _mm512_srlv_epi32(v, _mm512_set1_epi32(8 * index as i32));
            _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255)))
        }
    }
    #[inline(always)]
    fn highest_lane(self, v: __m512) -> f32 {
        // SAFETY: the token promises AVX-512F; no memory is touched.
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    fn swap<const DISTANCE: usize>(self, v: __m512) -> __m512 {
        // SAFETY: the token promises AVX-512F; no memory is touched.
        unsafe {
            match DISTANCE {
                1 => _mm512_permute_ps::<0b10_11_00_01>(v),
                2 => _mm512_permute_ps::<0b01_00_11_10>(v),
                4 => _mm512_shuffle_f32x4::<0b10_11_00_01>(v, v),
                _ => _mm512_shuffle_f32x4::<0b01_00_11_10>(v, v),
            }
        }
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> __m512i {
        // SAFETY: the token promises AVX-512F; no memory is touched.
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    fn dot(self, sum: __m512i, unsigned: __m512i, signed: __m512i) -> __m512i {
        // SAFETY: the token promises AVX-512 VNNI; no memory is touched.
        unsafe { _mm512_dpbusd_epi32(sum, unsigned, signed) }
    }
    #[inline(always)]
    fn to_floats(self, v: __m512i) -> __m512 {
        // SAFETY: the token promises AVX-512F; no memory is touched.
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn load_halves(self, from: &[u8; 2 * LANES]) -> __m512 {
        // SAFETY: the token promises AVX-512F; `from` is 32 readable bytes, alignment is not needed.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_floats(self, from: &Line) -> __m512 {
        // SAFETY: the token promises AVX-512F; `from` is 64 readable bytes, alignment is not needed.
        unsafe { _mm512_loadu_ps(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_signed(self, v: __m512, to: &mut [u8; LANES]) {
        // SAFETY: the token promises AVX-512F; `to` is 16 writable bytes, alignment is not needed.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    fn store_unsigned(self, v: __m512, to: &mut [u8; LANES]) {
        // SAFETY: the token promises AVX-512F; `to` is 16 writable bytes, alignment is not needed.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(v))) }
    }
}
