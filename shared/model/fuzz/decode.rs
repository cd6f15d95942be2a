//! What the fuzz targets do with bytes. A panic is a finding. The tests of `baton-model` run it, too (`tests/it/gguf/fuzz.rs`).

use std::io::Write;

use baton_model::config;
use baton_model::source::{self, Source};

/// What bytes turned out to be.
pub struct Found {
    /// Whether they are a model that we can run.
    pub model: bool,
    /// Whether they have a tokenizer and a chat template that we can use, too.
    pub vocabulary: bool,
}

/// Takes any bytes for a model file: opens it, reads what the model is and the first and last row of every tensor.
///
/// # Panics
/// If what is read doesn't fit the bytes; that and any other panic is a defect.
pub fn gguf(bytes: &[u8]) -> Found {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    file.write_all(bytes).expect("a temporary file can be written");
    let Ok(checkpoint) = baton_model::gguf::open(file.path()) else {
        return Found { model: false, vocabulary: false };
    };

    let mut total = 0;
    for name in checkpoint.tensor_names() {
        let tensor = checkpoint.tensor(name).expect("a tensor of the directory can be read");
        total += tensor.bytes.len();
        let (row, rows) = (tensor.row_len(), tensor.rows());
        let blocks = row / tensor.dtype.block_len();
        assert_eq!(blocks * tensor.dtype.block_len(), row, "{name}: a row consists of whole blocks");
        assert_eq!(blocks * rows * tensor.dtype.block_bytes(), tensor.bytes.len(), "{name}: rows fill the tensor");

        let mut values = vec![0.0; row];
        let (mut quants, mut scales, mut offsets) = (vec![0; row], vec![0.0; row / 16], vec![0.0; row / 16]);
        for row in [0, rows - 1] {
            tensor.dequantize_row(row, &mut values);
            tensor.unpack_row(row, &mut quants, &mut scales, &mut offsets);
        }
    }
    assert!(total <= bytes.len(), "tensors of {total} bytes in a file of {}", bytes.len());

    Found {
        model: config::spec(&checkpoint).is_ok(),
        vocabulary: source::vocabulary(&Source::Checkpoint(file.path().to_owned())).is_ok(),
    }
}
