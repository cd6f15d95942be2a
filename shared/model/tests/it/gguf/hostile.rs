//! Files that are cut or lie about their sizes: an error, never a panic.

use baton_model::checkpoint::{self, Value};
use baton_model::gguf::Error;

use super::open;
use super::writer::{F32, Q4_0, Tiny, Writer};

/// Why a file is not even read.
fn refused(bytes: &[u8]) -> Error {
    match open(bytes) {
        Err(checkpoint::Error::Gguf(error)) => error,
        other => panic!("the file is damaged, but was {other:?}"),
    }
}

#[test]
fn values_and_tensors_are_read_as_written() {
    let mut writer = Writer::new(1);
    writer.pair("u8", 0, &[200]);
    writer.pair("i16", 3, &(-5i16).to_le_bytes());
    writer.pair("bool", 7, &[1]);
    writer.pair("f64", 12, &0.1f64.to_le_bytes());
    writer.pair(
        "nested",
        9,
        &[&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[0; 4], &2u64.to_le_bytes(), &[7, 8]].concat(),
    );
    writer.tensor("t", &[2, 3], F32, &[1.5f32.to_le_bytes(), 2.5f32.to_le_bytes()].concat().repeat(3));
    let file = open(&writer.finish()).unwrap();
    assert_eq!(file.unsigned("u8").unwrap(), 200);
    assert_eq!(file.get("i16").unwrap().as_i64(), Some(-5));
    assert_eq!(file.get("i16").unwrap().as_u64(), None);
    assert_eq!(file.get("bool").unwrap().as_bool(), Some(true));
    assert_eq!(file.float("f64").unwrap(), 0.1);
    let inner = Value::Array(vec![Value::Unsigned(7), Value::Unsigned(8)]);
    assert_eq!(file.get("nested").unwrap().as_array(), Some(&[inner][..]));
    let tensor = file.tensor("t").unwrap();
    assert_eq!((tensor.dims, tensor.rows(), tensor.row_len()), (&[2, 3][..], 3, 2));
    let mut row = [0.0; 2];
    tensor.dequantize_row(2, &mut row);
    assert_eq!(row, [1.5, 2.5]);
    assert_eq!(file.string("u8").unwrap_err().to_string(), "u8 must be a string, found an unsigned integer");
    assert!(matches!(file.unsigned("none"), Err(checkpoint::Error::MissingKey { .. })));
    assert_eq!(file.digest(), *blake3::hash(&writer.finish()).as_bytes());
}

#[test]
fn every_truncation_is_an_error() {
    let file = Tiny { layers: 1, ..Tiny::new(1) }.file();
    let header = 2600;
    for len in (0..header).chain((header..file.len() - 32).step_by(997)) {
        assert!(open(&file[..len]).is_err(), "{len} of {} bytes were accepted", file.len());
    }
}

#[test]
fn lies_about_sizes_are_errors() {
    let with = |build: &dyn Fn(&mut Writer)| {
        let mut writer = Writer::new(1);
        build(&mut writer);
        refused(&writer.finish())
    };
    let huge = u64::MAX.to_le_bytes();
    let truncated = |error| assert!(matches!(error, Error::Truncated { .. }), "{error}");
    let damaged = |error| assert!(matches!(error, Error::Damaged { .. }), "{error}");
    truncated(with(&|w| w.pair("string", 8, &huge)));
    let array = with(&|w| w.pair("array", 9, &[&[0; 4][..], &1_000_000u64.to_le_bytes()].concat()));
    assert!(matches!(array, Error::Truncated { what: "an array", .. }), "refused before its values: {array}");
    damaged(with(&|w| w.pair("array", 9, &[&[0; 4][..], &huge].concat())));
    damaged(with(&|w| w.pair("deep", 9, &[&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat().repeat(50))));
    damaged(with(&|w| w.pair("kind", 13, &[0; 64])));
    damaged(with(&|w| w.pair("general.alignment", 4, &3u32.to_le_bytes())));
    damaged(with(&|w| (0..2).for_each(|_| w.number("twice", 1))));
    damaged(with(&|w| w.tensor("overflow", &[32, usize::MAX, usize::MAX], F32, &[])));
    damaged(with(&|w| w.tensor("beyond", &[32, 1000], F32, &[0; 128])));
    damaged(with(&|w| w.tensor("empty", &[0, usize::MAX], F32, &[])));
    damaged(with(&|w| w.tensor("half a block", &[16], Q4_0, &[0; 18])));
    damaged(with(&|w| w.tensor("dimensions", &[1; 5], F32, &[0; 4])));
    let unsupported = with(&|w| w.tensor("t", &[256], 23, &[0; 136])).to_string();
    assert!(unsupported.contains("23 (IQ4_XS)") && unsupported.contains("Q4_K"), "{unsupported}");
    for at in [8, 16] {
        let mut file = Writer::new(1).finish();
        file[at..at + 8].copy_from_slice(&huge);
        truncated(refused(&file));
    }
    let mut other = Writer::new(1).finish();
    other[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert!(matches!(refused(&other), Error::Version { .. }));
}
