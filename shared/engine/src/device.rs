//! Where a model computes, chosen by name at run time.

use burn::tensor::Device;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("device {name} is not in this build: build baton with `--features cuda`, or use flex (the CPU)")]
    NotBuilt { name: String },
    #[error("device {name} is unknown: expected flex (the CPU) or cuda")]
    Unknown { name: String },
}

/// The device called `name`: `flex` is the CPU, `cuda` the first Nvidia GPU in builds with that cargo feature.
pub fn by_name(name: &str) -> Result<Device, Error> {
    match name {
        "flex" => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(burn::tensor::DeviceIndex::Default)),
        #[cfg(not(feature = "cuda"))]
        "cuda" => Err(Error::NotBuilt { name: name.to_owned() }),
        _ => Err(Error::Unknown { name: name.to_owned() }),
    }
}
