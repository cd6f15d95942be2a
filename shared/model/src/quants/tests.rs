use proptest::prelude::*;

use super::*;

const ALL: [Type; 13] = [
    Type::F32,
    Type::F16,
    Type::BF16,
    Type::Q4_0,
    Type::Q4_1,
    Type::Q5_0,
    Type::Q5_1,
    Type::Q8_0,
    Type::Q2_K,
    Type::Q3_K,
    Type::Q4_K,
    Type::Q5_K,
    Type::Q6_K,
];

/// Written by `tests/quants/make.py`.
const EXPECTED: &[u8] = include_bytes!("../../tests/quants/values.bin");

/// What `unpack` writes, a scale and an offset for each value, and NaN or 77 where it wrote nothing.
fn unpack(dtype: Type, bytes: &[u8], values: usize) -> Option<Vec<(u8, f32, f32)>> {
    let len = dtype.grouping()?.len;
    let (mut quants, mut scales, mut offsets) = (vec![77; values], vec![0.5; values / len], vec![0.5; values / len]);
    dtype.unpack(bytes, &mut quants, &mut scales, &mut offsets);
    Some(
        (0..values)
            .map(|i| (quants[i], scales.get(i / len).map_or(0.5, |s| *s), offsets.get(i / len).map_or(0.5, |o| *o)))
            .collect(),
    )
}

fn numbers<T>(bytes: &mut &[u8], count: usize, read: impl Fn([u8; 4]) -> T) -> Vec<T> {
    let (taken, rest) = bytes.split_at(4 * count);
    *bytes = rest;
    taken.as_chunks().0.iter().map(|bytes| read(*bytes)).collect()
}

/// Another implementation's values, to the bit; only a symmetric type's zero has lost its sign.
#[test]
fn values_are_what_ggml_defines() {
    let mut file = EXPECTED;
    let mut seen = Vec::new();
    while !file.is_empty() {
        let header = numbers(&mut file, 3, u32::from_le_bytes);
        let dtype = Type::from_ggml(header[0]).unwrap();
        let (bytes, rest) = file.split_at(header[1] as usize);
        file = rest;
        let expected = numbers(&mut file, header[2] as usize, f32::from_le_bytes);
        assert_eq!(bytes.len() / dtype.block_bytes() * dtype.block_len(), expected.len(), "{dtype:?}");

        let mut values = vec![f32::NAN; expected.len()];
        dtype.dequantize(bytes, &mut values);
        let unpacked = unpack(dtype, bytes, expected.len());
        let symmetric = dtype.grouping().is_some_and(|grouping| grouping.zero.is_some());
        for (i, expected) in expected.into_iter().enumerate() {
            let expected = if symmetric { expected + 0.0 } else { expected };
            assert_eq!(values[i].to_bits(), expected.to_bits(), "{dtype:?} {i}: {}, not {expected}", values[i]);
            if let Some((q, scale, offset)) = unpacked.as_ref().map(|unpacked| unpacked[i]) {
                let fused = scale.mul_add(f32::from(q), offset);
                assert_eq!(fused.to_bits(), expected.to_bits(), "{dtype:?} {i}: fma({scale}, {q}, {offset})");
            }
        }
        seen.push(dtype);
    }
    assert_eq!(seen.len(), ALL.len());
}

#[test]
fn other_types_are_named() {
    assert_eq!(ALL.iter().filter(|dtype| Type::SUPPORTED.contains(&format!("{dtype:?}"))).count(), ALL.len());
    assert_eq!((0..64).filter(|id| Type::from_ggml(*id).is_some()).count(), ALL.len());
    assert_eq!(Type::describe_ggml(23), "23 (IQ4_XS)");
}

proptest! {
    /// Any bytes, which have NaN and infinite scales among them, and any lengths: no panic, whole blocks only, and what a
    /// `Grouping` promises.
    #[test]
    fn any_bytes_unpack_as_promised(
        dtype in prop::sample::select(&ALL[..]),
        mut bytes in prop::collection::vec(any::<u8>(), 0..700),
        values in 0usize..800,
        special in prop::option::of((0usize..700, prop::sample::select(vec![0x7c00u16, 0xfc00, 0x7e01, 0xfe01, 0x8000]))),
    ) {
        // Somewhere: some of it falls on a scale.
        if let Some((at, number)) = special && at + 2 <= bytes.len() {
            bytes[at..at + 2].copy_from_slice(&number.to_le_bytes());
        }
        let mut out = vec![f32::from_bits(0xdead_beef); values];
        dtype.dequantize(&bytes, &mut out);
        let written = (bytes.len() / dtype.block_bytes()).min(values / dtype.block_len()) * dtype.block_len();
        prop_assert!(out[written..].iter().all(|value| value.to_bits() == 0xdead_beef), "wrote beyond {}", written);

        if let (Some(grouping), Some(unpacked)) = (dtype.grouping(), unpack(dtype, &bytes, values)) {
            for (i, ((q, scale, offset), value)) in unpacked.into_iter().zip(out).enumerate() {
                if i >= written {
                    prop_assert_eq!((q, scale, offset), (77, 0.5, 0.5));
                    continue;
                }
                prop_assert!(q <= grouping.max, "q = {}", q);
                let fused = scale.mul_add(f32::from(q), offset);
                prop_assert!(fused.to_bits() == value.to_bits() || fused.is_nan() && value.is_nan());
                if let Some(zero) = grouping.zero {
                    let implied = -f32::from(zero) * scale;
                    prop_assert!(offset.to_bits() == implied.to_bits() || offset.is_nan() && implied.is_nan());
                }
                if grouping.half {
                    let kept = |number: f32| number.is_nan() || f16::from_f32(number).to_f32() == number;
                    prop_assert!(kept(scale) && (grouping.zero.is_some() || kept(offset)));
                }
            }
        }
    }
}
