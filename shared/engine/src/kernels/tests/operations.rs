//! What the kernels are made of: vector operations, the exponential, the norm, rectangles.

use std::ops::Range;
use std::panic::catch_unwind;

use half::f16;
use proptest::prelude::*;

use super::super::isa::Line;
use super::super::rectangle::Rectangle;
use super::*;

struct Exp(Vec<f32>);

impl Kernel for Exp {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) -> Vec<f32> {
        for lanes in self.0.as_chunks_mut::<LANES>().0 {
            isa.store(exp(isa, isa.load(lanes)), lanes);
        }
        self.0
    }
}

#[test]
fn exp_is_accurate_and_the_same_everywhere() {
    let x: Vec<f32> = (0..160_000).map(|i| (i as f32 - 80_000.0) / 920.0).collect();
    let y = Level::best().run(Exp(x.clone()));
    let worst = x.iter().zip(&y).map(|(x, y)| ((f64::from(*y) / f64::from(*x).exp()) - 1.0).abs()).fold(0.0, f64::max);
    assert!(worst < 2e-7, "relative error {worst}");
    let edges: Vec<f32> = [f32::NEG_INFINITY, -1e30, -104.0, 0.0, 88.0, 1e30].into_iter().cycle().take(LANES).collect();
    for level in Level::all() {
        assert_eq!(bits(&level.run(Exp(x.clone()))), bits(&y), "{level:?}");
        let edges = level.run(Exp(edges.clone()));
        assert_eq!(edges[..4], [0.0, 0.0, 0.0, 1.0], "{level:?}");
        assert!(edges[4].is_finite() && edges[4] == edges[5], "{level:?}");
    }
}

/// The sum after every product of `lines`.
struct Dots<'a>(&'a [(Line, Line)]);

impl Kernel for Dots<'_> {
    type Output = Vec<[f32; LANES]>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let mut sum = isa.splat_int(-7);
        let mut found = Vec::new();
        for (unsigned, signed) in self.0 {
            sum = isa.dot(sum, isa.load_bytes(unsigned), isa.load_bytes(signed));
            let mut lanes = [0.0; LANES];
            isa.store(isa.to_floats(sum), &mut lanes);
            found.push(lanes);
        }
        found
    }
}

#[test]
fn products_of_bytes_are_exact_at_their_extremes() {
    let mut lines: Vec<(Line, Line)> = Vec::new();
    // Where sums of two products would saturate at 16 bits, either way, and where the highest bit alone is set.
    for unsigned in [0, 1, 127, 128, 255] {
        for signed in [[127; 4], [-127; 4], [127, -127, 127, -127], [-127, -127, 127, 1], [-1; 4], [0; 4]] {
            lines.push(([unsigned; 64], std::array::from_fn(|i| signed[i % 4] as u8)));
        }
    }
    for seed in 0..200 {
        let (a, b) = (numbers(seed, 64), numbers(!seed, 64));
        let unsigned = std::array::from_fn(|i| ((a[i] + 1.0) * 128.0) as u8);
        lines.push((unsigned, std::array::from_fn(|i| (b[i] * 127.5) as i8 as u8)));
    }
    // So many that the sums leave what f32 holds exactly: they are rounded once, at the end.
    lines.extend([([255; 64], [127; 64]); 300]);
    let mut sums = [-7i32; LANES];
    let expected: Vec<[f32; LANES]> = lines
        .iter()
        .map(|(unsigned, signed)| {
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum +=
                    (4 * lane..4 * lane + 4).map(|i| i32::from(unsigned[i]) * i32::from(signed[i] as i8)).sum::<i32>();
            }
            sums.map(|sum| sum as f32)
        })
        .collect();
    assert!(sums[0] > 1 << 25);
    for level in Level::all() {
        assert_eq!(level.run(Dots(&lines)), expected, "{level:?}");
    }
}

/// Every operation on bytes, as far as the outcome is a vector of floats or bytes.
struct Bytes<'a> {
    line: &'a Line,
    floats: &'a [f32; LANES],
}

impl Kernel for Bytes<'_> {
    type Output = (Vec<Line>, Vec<[f32; LANES]>, [[u8; LANES]; 2]);

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let line = isa.load_bytes(self.line);
        let mut lines = vec![[0; 64]; 3];
        isa.store_bytes(isa.low_nibbles(line), &mut lines[0]);
        isa.store_bytes(isa.high_nibbles(line), &mut lines[1]);
        isa.store_bytes(isa.splat_bytes([self.line[0], self.line[1], self.line[2], self.line[3]]), &mut lines[2]);
        let mut floats = vec![[0.0; LANES]; 6];
        for (i, floats) in floats.iter_mut().take(4).enumerate() {
            isa.store(isa.byte_of_lanes(line, i), floats);
        }
        isa.store(isa.load_halves(self.line.first_chunk().unwrap_or(&[0; 32])), &mut floats[4]);
        isa.store(isa.load_floats(self.line), &mut floats[5]);
        let mut bytes = [[0; LANES]; 2];
        let v = isa.load(self.floats);
        isa.store_signed(v, &mut bytes[0]);
        isa.store_unsigned(isa.max(v, isa.sub(isa.splat(0.0), v)), &mut bytes[1]);
        (lines, floats, bytes)
    }
}

#[test]
fn bytes_are_taken_apart_and_put_together_everywhere() {
    // All finite f16 numbers, subnormal ones too, as bytes; floats at and around what rounds to even.
    let halves: Vec<u16> = (0..=u16::MAX).filter(|bits| f16::from_bits(*bits).is_finite()).collect();
    for (index, halves) in halves.as_chunks::<32>().0.iter().enumerate() {
        let mut line: Line = [0; 64];
        line.as_chunks_mut::<2>().0.iter_mut().zip(halves).for_each(|(to, half)| *to = half.to_le_bytes());
        let floats: [f32; LANES] = std::array::from_fn(|i| ((index * LANES + i) % 1017) as f32 / 4.0 - 127.0);
        let expected_lines: Vec<Line> =
            vec![line.map(|b| b % 16), line.map(|b| b / 16), std::array::from_fn(|i| line[i % 4])];
        let mut expected_floats: Vec<[f32; LANES]> =
            (0..4).map(|i| std::array::from_fn(|lane| f32::from(line[4 * lane + i]))).collect();
        expected_floats.push(std::array::from_fn(|lane| f16::from_bits(halves[lane]).to_f32()));
        let float = |lane: usize| f32::from_bits(u32::from(halves[2 * lane]) | u32::from(halves[2 * lane + 1]) << 16);
        expected_floats.push(std::array::from_fn(float));
        let rounded = floats.map(|x| x.round_ties_even());
        let expected_bytes = [rounded.map(|x| x as i8 as u8), rounded.map(|x| x.abs() as u8)];
        for level in Level::all() {
            let (lines, floats, bytes) = level.run(Bytes { line: &line, floats: &floats });
            assert_eq!((lines, bytes), (expected_lines.clone(), expected_bytes), "{level:?}");
            assert_eq!(bits(floats.as_flattened()), bits(expected_floats.as_flattened()), "{level:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn norm_is_its_formula_and_the_same_everywhere(seed: u64, rows in 1usize..40, width in 1usize..300) {
        let (x, weight) = (numbers(seed, rows * width), numbers(!seed, width));
        let found = rms_norm(Level::best(), &x, &weight, 1e-5);
        for level in Level::all() {
            prop_assert_eq!(bits(&rms_norm(level, &x, &weight, 1e-5)), bits(&found), "{:?}", level);
        }
        for (x, found) in x.chunks(width).zip(found.chunks(width)) {
            prop_assert_eq!(bits(&rms_norm(Level::best(), x, &weight, 1e-5)), bits(found));
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
            for ((x, weight), found) in x.iter().zip(&weight).zip(found) {
                let expected = f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*weight);
                prop_assert!((expected - f64::from(*found)).abs() < 2e-6, "{} is not {}", found, expected);
            }
        }
    }

    /// Rectangles cover the rows that they were cut from, each value once.
    #[test]
    fn rectangles_cover_their_rows(heights in prop::collection::vec((0usize..3, 0usize..5), 1..6), stride in 1usize..80,
        columns in 1usize..40) {
        let mut rows: Vec<Range<usize>> = Vec::new();
        let mut free = 0;
        for (gap, height) in heights {
            rows.push(free + gap..free + gap + height);
            free += gap + height;
        }
        let mut matrix = vec![0.0; free * stride];
        for mut rectangle in Rectangle::cut(&mut matrix, stride, rows.clone(), columns) {
            for row in rectangle.rows.clone() {
                rectangle.row(row).iter_mut().for_each(|value| *value += 1.0);
            }
        }
        for (row, values) in matrix.chunks(stride).enumerate() {
            let expected = f32::from(u8::from(rows.iter().any(|rows| rows.contains(&row))));
            prop_assert!(values.iter().all(|value| *value == expected), "row {} is {:?}", row, values);
        }
    }
}

#[test]
fn rectangles_never_overlap() {
    let cut = |rows: &[(usize, usize)]| {
        let rows: Vec<Range<usize>> = rows.iter().map(|&(start, end)| start..end).collect();
        catch_unwind(|| Rectangle::cut(&mut [0.0; 60], 6, rows, 4).len())
    };
    assert_eq!(cut(&[(0, 3), (3, 3), (5, 10)]).unwrap(), 6);
    for bad in [&[(0, 3), (2, 4)][..], &[(4, 6), (0, 2)], &[(0, 11)], &[(11, 11)], &[(5, 4)], &[(0, 2), (0, 2)]] {
        assert!(cut(bad).is_err(), "{bad:?} were cut");
    }
    let foreign_row = || {
        let mut matrix = [0.0; 60];
        Rectangle::cut(&mut matrix, 6, std::iter::once(2..4), 4)[1].row(4)[0] = 1.0;
    };
    assert!(catch_unwind(foreign_row).is_err(), "a row outside the rectangle was handed out");
}
