//! Where a model computes, chosen by name at run time.

#[cfg(any(feature = "cuda", test))]
mod cuda;

use burn::tensor::Device;

/// Why a device can't compute.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error("device {name} is not in this build: build baton with `--features {name}`, or use flex (the CPU)")]
    NotBuilt { name: String },
    #[error("device {name} is unknown: expected flex (the CPU), cuda or wgpu")]
    Unknown { name: String },
    #[error("device {name} was not found: install a driver (Vulkan, on Linux), or use flex (the CPU)")]
    NotFound { name: String },
    #[error("device {device} can't compute: {what} was not found; {remedy}, or use flex (the CPU)")]
    Missing { device: &'static str, what: String, remedy: &'static str },
}

/// The device called `name`: `flex` is the CPU, `cuda` the first Nvidia GPU and `wgpu` the GPU that the system prefers, each
/// in builds with the cargo feature of that name.
pub fn by_name(name: &str) -> Result<Device, Error> {
    match name {
        "flex" => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        "cuda" => {
            cuda::check()?;
            Ok(Device::cuda(burn::tensor::DeviceIndex::Default))
        }
        #[cfg(feature = "wgpu")]
        "wgpu" => {
            use burn::tensor::{DeviceKind, DeviceType};
            if Device::enumerate(DeviceType::Wgpu).is_empty() {
                return Err(Error::NotFound { name: name.to_owned() });
            }
            Ok(Device::wgpu(DeviceKind::DefaultDevice))
        }
        #[allow(unreachable_patterns, reason = "builds differ in their devices")]
        "cuda" | "wgpu" => Err(Error::NotBuilt { name: name.to_owned() }),
        _ => Err(Error::Unknown { name: name.to_owned() }),
    }
}
