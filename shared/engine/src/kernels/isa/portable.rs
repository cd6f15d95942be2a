//! Plain Rust: the oracle of the others.

use half::f16;

use super::{Isa, LANES, Lanes, Line};

#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Portable;

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

    type B = Line;
    type I = [i32; LANES];

    #[inline(always)]
    fn load_bytes(self, from: &Line) -> Line {
        *from
    }
    #[inline(always)]
    fn store_bytes(self, v: Line, to: &mut Line) {
        *to = v;
    }
    #[inline(always)]
    fn splat_bytes(self, quad: [u8; 4]) -> Line {
        std::array::from_fn(|i| quad[i % 4])
    }
    #[inline(always)]
    fn low_nibbles(self, v: Line) -> Line {
        v.map(|byte| byte & 15)
    }
    #[inline(always)]
    fn high_nibbles(self, v: Line) -> Line {
        v.map(|byte| byte >> 4)
    }
    #[inline(always)]
    fn byte_of_lanes(self, v: Line, index: usize) -> Lanes {
        std::array::from_fn(|lane| f32::from(v[4 * lane + index]))
    }
    #[inline(always)]
    fn highest_lane(self, v: Lanes) -> f32 {
        let mut highest = f32::NEG_INFINITY;
        for lane in v {
            highest = if lane > highest { lane } else { highest };
        }
        highest
    }
    #[inline(always)]
    fn swap<const DISTANCE: usize>(self, v: Lanes) -> Lanes {
        std::array::from_fn(|lane| v[lane ^ DISTANCE])
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> [i32; LANES] {
        [value; LANES]
    }
    #[inline(always)]
    fn dot(self, sum: [i32; LANES], unsigned: Line, signed: Line) -> [i32; LANES] {
        std::array::from_fn(|lane| {
            let product = |i: usize| i32::from(unsigned[4 * lane + i]) * i32::from(signed[4 * lane + i] as i8);
            sum[lane] + product(0) + product(1) + product(2) + product(3)
        })
    }
    #[inline(always)]
    fn to_floats(self, v: [i32; LANES]) -> Lanes {
        v.map(|x| x as f32)
    }
    #[inline(always)]
    fn load_halves(self, from: &[u8; 2 * LANES]) -> Lanes {
        let (halves, _) = from.as_chunks::<2>();
        std::array::from_fn(|i| f16::from_le_bytes(halves[i]).to_f32())
    }
    #[inline(always)]
    fn load_floats(self, from: &Line) -> Lanes {
        let (floats, _) = from.as_chunks::<4>();
        std::array::from_fn(|i| f32::from_le_bytes(floats[i]))
    }
    #[inline(always)]
    fn store_signed(self, v: Lanes, to: &mut [u8; LANES]) {
        *to = v.map(|x| x.round_ties_even() as i8 as u8);
    }
    #[inline(always)]
    fn store_unsigned(self, v: Lanes, to: &mut [u8; LANES]) {
        *to = v.map(|x| x.round_ties_even() as u8);
    }
}
