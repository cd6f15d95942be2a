//! The tensors of a model file, of the dimensions that its configuration demands.

use super::error::Error;
use crate::checkpoint::{Checkpoint, Tensor};

/// A weight matrix of `outputs` rows with `inputs` values each.
pub fn matrix<'a>(file: &'a Checkpoint, name: &str, inputs: usize, outputs: usize) -> Result<Tensor<'a>, Error> {
    let tensor = file.tensor(name).ok_or_else(|| Error::MissingTensor { tensor: name.to_owned() })?;
    if tensor.dims == [inputs, outputs] {
        return Ok(tensor);
    }
    let (tensor, found) = (name.to_owned(), tensor.dims.to_vec());
    Err(Error::TensorShape { tensor, expected: vec![inputs, outputs], found })
}

/// A vector of `len` weights.
pub fn vector(file: &Checkpoint, name: &str, len: usize) -> Result<Vec<f32>, Error> {
    let tensor = file.tensor(name).ok_or_else(|| Error::MissingTensor { tensor: name.to_owned() })?;
    if tensor.dims != [len] {
        let (tensor, found) = (name.to_owned(), tensor.dims.to_vec());
        return Err(Error::TensorShape { tensor, expected: vec![len], found });
    }
    let mut values = vec![0.0; len];
    tensor.dequantize_row(0, &mut values);
    Ok(values)
}
