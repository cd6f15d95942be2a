//! What each codec promises of values, and what it does with frames that nobody wrote.

use half::bf16;
use proptest::{collection::vec, prelude::*};

use super::{Codec, Decoder, Encoder, quantized::BALANCED, quantized::Levels, quantized::NEAR};

const ROUNDING: [(Codec, Levels); 2] = [(Codec::Near, NEAR), (Codec::Balanced, BALANCED)];

fn pack(codec: Codec, values: &[u16], width: usize) -> Vec<u8> {
    let mut out = Vec::new();
    Encoder::new(codec, width).unwrap().encode(values, &mut out).unwrap();
    out
}

fn unpack(codec: Codec, frame: &[u8], values: usize, width: usize) -> Result<Vec<u16>, super::Error> {
    Decoder::default().decode(codec, frame, values, width)
}

fn float(value: u16) -> f64 {
    bf16::from_bits(value).to_f64()
}

/// K and V as models have them: bell-shaped around the mean of each channel, whose sign is so mostly one, with channels of
/// different scales.
fn ordinary(tokens: usize, width: usize, seed: u64) -> Vec<u16> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1 << 24)
    };
    let mut out = Vec::new();
    for half in [1.0, 0.3] {
        let channels: Vec<_> = (0..width).map(|_| (3.0 * (uniform() - 0.5), 0.5 + uniform())).collect();
        for _ in 0..tokens {
            for (mean, scale) in &channels {
                let bell = (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
                out.push(bf16::from_f64(half * (mean + scale * bell)).to_bits());
            }
        }
    }
    out
}

/// Multiplies a token's values in K (0) or V (1).
fn scale(values: &mut [u16], width: usize, half: usize, token: usize, by: f64) {
    let start = half * values.len() / 2 + token * width;
    for value in &mut values[start..start + width] {
        *value = bf16::from_f64(float(*value) * by).to_bits();
    }
}

/// Root mean square of what is left of the rows without their channels' means.
fn deviation(rows: &[&[u16]], width: usize) -> f64 {
    let mean = |channel: usize| rows.iter().map(|row| float(row[channel])).sum::<f64>() / rows.len() as f64;
    let squares = (0..width).map(|channel| {
        let mean = mean(channel);
        rows.iter().map(|row| (float(row[channel]) - mean).powi(2)).sum::<f64>()
    });
    (squares.sum::<f64>() / (rows.len() * width) as f64).sqrt()
}

proptest! {
    /// Also of blocks that are large enough for a list of channels, with and without values that are far from the others.
    #[test]
    fn lossless_loses_nothing(tokens in 0usize..80, width in 1usize..70, seed: u64, odd in vec((any::<usize>(), any::<u16>()), 0..4)) {
        let mut values = ordinary(tokens, width, seed);
        for (at, value) in odd {
            if !values.is_empty() {
                let at = at % values.len();
                values[at] = value;
            }
        }
        let frame = pack(Codec::Lossless, &values, width);
        prop_assert!(frame.len() <= Codec::Lossless.max_frame(values.len()).unwrap());
        prop_assert_eq!(unpack(Codec::Lossless, &frame, values.len(), width).unwrap(), values);
    }

    /// Half a step from every value, an eighth in the keys of tokens with quiet values; and no bit is lost of tokens that
    /// are quieter still, too loud or not numbers.
    #[test]
    fn rounding_stays_within_its_steps(tokens in 40usize..120, width in 24usize..80, seed: u64, special in 0..7) {
        let mut values = ordinary(tokens, width, seed);
        let (exact, fine) = (tokens / 3, tokens / 2);
        scale(&mut values, width, 1, fine, 0.45);
        // Chance may make its values louder than those that are told from others.
        let loudness = |token: usize| -> f64 {
            let row = &values[(tokens + token) * width..][..width];
            row.iter().map(|&value| float(value).powi(2)).sum()
        };
        let mut all: Vec<f64> = (0..tokens).map(loudness).collect();
        all.sort_by(f64::total_cmp);
        let is_fine = loudness(fine) < all[tokens / 2] * 0.55 * 0.55;
        match special {
            0 => scale(&mut values, width, 0, exact, 0.2),
            1 => scale(&mut values, width, 1, exact, 0.1),
            2 => scale(&mut values, width, 0, exact, 40.0),
            3 => scale(&mut values, width, 1, exact, 1e30),
            4 => values[exact * width] = 0x7fc1,
            5 => values[tokens * width + exact * width] = 0xff80,
            _ => values[exact * width + 1] = 0x7f7f,
        }
        for (codec, Levels(levels)) in ROUNDING {
            let frame = pack(codec, &values, width);
            let found = unpack(codec, &frame, values.len(), width).unwrap();
            for (half, levels) in levels.into_iter().enumerate() {
                let rows = |values| <[u16]>::chunks_exact(values, width).skip(half * tokens).take(tokens);
                let rounded: Vec<&[u16]> =
                    rows(&values).enumerate().filter(|(token, _)| *token != exact).map(|(_, row)| row).collect();
                let step = deviation(&rounded, width) / f64::from(levels);
                for (token, (row, found)) in rows(&values).zip(rows(&found)).enumerate() {
                    if token == exact {
                        prop_assert_eq!(row, found);
                        continue;
                    }
                    let finer = if half == 0 && token == fine && is_fine { 4.0 } else { 1.0 };
                    for (value, found) in row.iter().zip(found) {
                        let (value, found) = (float(*value), float(*found));
                        // 8 significant bits, so a relative error of 2^-8; and a chance token more that is exact.
                        let bound = 0.5 * step / finer * 1.02 + (value.abs() + step) / 256.0;
                        prop_assert!((value - found).abs() <= bound, "{codec}: token {token}, {value} became {found}, step {step}");
                    }
                }
            }
        }
    }

    #[test]
    fn any_values_are_stored(tokens in 0usize..40, width in 1usize..30, seed in vec(any::<u16>(), 1..200)) {
        let values: Vec<u16> = seed.into_iter().cycle().take(2 * tokens * width).collect();
        for codec in Codec::ALL {
            let frame = pack(codec, &values, width);
            prop_assert!(frame.len() <= codec.max_frame(values.len()).unwrap());
            let found = unpack(codec, &frame, values.len(), width).unwrap();
            prop_assert_eq!(found.len(), values.len());
            for (value, found) in values.iter().zip(&found) {
                prop_assert!(value == found || !codec.is_lossless() && float(*value).is_finite());
            }
        }
    }

    /// Frames made by nobody, and genuine ones that were cut, overwritten or read as of another shape: an error, or as many
    /// values as the shape has.
    #[test]
    fn hostile_frames_do_no_harm(
        seed: u64,
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
        noise in vec(any::<u8>(), 0..300),
    ) {
        let (tokens, width) = (40, 24);
        let mut values = ordinary(tokens, width, seed);
        scale(&mut values, width, 1, 3, 0.1);
        for codec in Codec::ALL {
            let genuine = pack(codec, &values, width);
            let mut changed = genuine.clone();
            for (at, byte) in &changes {
                // Half of the changes are where numbers and tables are.
                let len = if byte % 2 == 0 { changed.len() } else { 120.min(changed.len()) };
                changed[at.index(len)] ^= byte;
            }
            let cut = &genuine[..cut.index(genuine.len())];
            prop_assert!(unpack(codec, cut, values.len(), width).is_err());
            let longer = [&genuine[..], &[0]].concat();
            prop_assert!(unpack(codec, &longer, values.len(), width).is_err());
            for (frame, tokens, width) in [
                (&changed[..], tokens, width),
                (&noise, tokens, width),
                (&noise, 1, 3),
                (&genuine, tokens + 1, width),
                (&genuine, width, tokens),
                (&genuine, 0, 0),
            ] {
                let count = 2 * tokens * width;
                prop_assert!(unpack(codec, frame, count, width).map_or(true, |found| found.len() == count));
            }
        }
    }
}

/// One value beyond all levels, in a token that is not loud on the whole: in K, in V, and in keys with finer steps.
#[test]
fn a_token_beyond_all_levels_is_exact() {
    let (tokens, width) = (100, 80);
    for (half, quiet, spike) in [(0, 1.0, 40.0), (1, 1.0, -20.0), (0, 0.5, 10.0)] {
        for (codec, _) in ROUNDING {
            let mut values = ordinary(tokens, width, 3);
            let token = 17;
            scale(&mut values, width, 1, token, quiet);
            values[half * tokens * width + token * width + 5] =
                bf16::from_f32(spike * if codec == Codec::Near { 1.0 } else { 2.0 }).to_bits();
            let found = unpack(codec, &pack(codec, &values, width), values.len(), width).unwrap();
            let row = |values: &[u16], half: usize| values[(half * tokens + token) * width..][..width].to_vec();
            for half in [0, 1] {
                assert_eq!(row(&found, half), row(&values, half), "{codec}: {spike}");
            }
            assert_ne!(found, values, "{codec}: nothing was rounded");
        }
    }
}

/// Steps that are no steps, and means in parts that are none.
#[test]
fn forged_grids_are_refused() {
    let (tokens, width) = (40, 24);
    let values = ordinary(tokens, width, 1);
    let frame = pack(Codec::Near, &values, width);
    let care = 1 + tokens / 4;
    let with = |at: usize, bytes: &[u8]| {
        let mut forged = frame.clone();
        forged[at..at + bytes.len()].copy_from_slice(bytes);
        unpack(Codec::Near, &forged, values.len(), width)
    };
    assert!(with(care, &[]).is_ok());
    for step in [0.0, -1.0, 1e-40, f32::MAX, f32::NAN, f32::INFINITY] {
        assert!(matches!(with(care, &step.to_le_bytes()), Err(super::Error::Grid { .. })), "{step}");
    }
    assert!(matches!(with(care + 4, &[9]), Err(super::Error::Grid { .. })));
    assert!(matches!(with(1, &[3]), Err(super::Error::Care { .. })));
}

/// What is stored today must mean the same numbers on any machine and in later builds.
#[test]
fn a_frame_means_the_same_everywhere() {
    let frame = [
        &[1][..],                                          // rounded
        &[0b_00_10_01_00],                                 // of three tokens: plain, fine, exact
        &[12, 0, 0, 0],                                    // bytes of the exact tokens' frame
        &[1, 0, 0, 0, 1, 0, 0, 0, 0x7f, 0x80, 0x00, 0x81], // plain: 1.0 and -2.03125
        &0.1f32.to_le_bytes(),                             // K: the step,
        &[8, 0, 1],                                        // in two bytes: the mean is 256 parts of 256 to a step
        &[2, 0, 0, 0, 130, 130],
        &3f32.to_le_bytes(),
        &[0x83, 0xf8], // in one byte: minus 8 eighths of a step
        &[2, 0, 0, 0, 0, 255],
    ]
    .concat();
    let found = unpack(Codec::Balanced, &frame, 6, 1).unwrap();
    // 3 steps; 2 quarters and 1; as it was. Then -128 steps and 127, less one; as it was.
    let expected = [0.3, 0.15, 1.0, -387.0, 378.0, -2.015625_f32].map(|value| bf16::from_f32(value).to_bits());
    assert_eq!(found, expected);
}

/// On values like a model's the codecs shrink as much as they should; the bounds are a little under what was measured.
#[test]
fn ordinary_values_shrink() {
    let (tokens, width) = (256, 192);
    let values = ordinary(tokens, width, 7);
    for (codec, ratio) in [(Codec::Lossless, 1.54), (Codec::Near, 3.4), (Codec::Balanced, 4.3)] {
        let found = 2.0 * values.len() as f64 / pack(codec, &values, width).len() as f64;
        assert!(found > ratio, "{codec}: {found}");
    }
}

#[test]
fn names_and_numbers_are_each_codecs_own() {
    for (number, codec) in (0..).zip(Codec::ALL) {
        assert_eq!(codec.number(), number);
        assert_eq!(Codec::from_number(number), Some(codec));
        assert_eq!(codec.to_string().parse::<Codec>().unwrap(), codec);
    }
    assert_eq!(Codec::from_number(Codec::ALL.len() as u8), None);
    let error = "zip".parse::<Codec>().unwrap_err().to_string();
    assert!(Codec::ALL.iter().all(|codec| error.contains(&codec.to_string())), "{error}");
}
