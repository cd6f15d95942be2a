//! What CUDA needs of the machine. Where some of it is missing, Burn's device thread fails unseen and computes nothing, so it is
//! looked for before.

use std::path::{Path, PathBuf};

use super::Error;

/// By the names that the CUDA binding looks for.
const DRIVER: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
const COMPILER: [&str; 4] = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11"];
const HEADERS: [&str; 2] = ["cuda_fp16.h", "cuda_bf16.h"];
/// Where the toolkit is without `CUDA_PATH`.
const TOOLKIT: &str = "/usr/local/cuda";

/// Refuses a machine that lacks something.
pub(super) fn check() -> Result<(), Error> {
    check_with(&DRIVER, &COMPILER, std::env::var_os("CUDA_PATH").map(PathBuf::from))
}

fn check_with(driver: &[&str], compiler: &[&str], toolkit: Option<PathBuf>) -> Result<(), Error> {
    let missing = |what: String, remedy| Err(Error::Missing { device: "cuda", what, remedy });
    if !driver.iter().any(|name| loads(name)) {
        return missing(driver[0].into(), "install Nvidia's driver, and give a container access to the GPU");
    }
    if !compiler.iter().any(|name| loads(name)) {
        return missing(compiler[0].into(), "install the CUDA toolkit, and put its libraries on the loader's path");
    }
    let include = toolkit.unwrap_or_else(|| Path::new(TOOLKIT).into()).join("include");
    match HEADERS.iter().map(|name| include.join(name)).find(|path| !path.is_file()) {
        Some(path) => {
            missing(path.display().to_string(), "install the CUDA toolkit's headers, and set CUDA_PATH to it")
        }
        None => Ok(()),
    }
}

/// Whether the system's loader finds a library.
#[cfg(unix)]
#[expect(unsafe_code, reason = "the loader has no safe form")]
fn loads(name: &str) -> bool {
    let Ok(name) = std::ffi::CString::new(name) else { return false };
    // SAFETY: the name ends in a zero. The libraries are those that the device loads next, whose initializers run then, too.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY) };
    !library.is_null()
}

/// Whether the system's loader finds a library; elsewhere that shows when the device is tried.
#[cfg(not(unix))]
fn loads(_: &str) -> bool {
    true
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let there: &[&str] = &["libno-such.so", "libc.so.6"];
        let found =
            |driver, compiler| check_with(driver, compiler, Some("/no/such/toolkit".into())).unwrap_err().to_string();
        assert!(found(&["libno-such.so"], there).contains("libno-such.so was not found; install Nvidia's driver"));
        assert!(found(there, &["libno-such.so"]).contains("install the CUDA toolkit, "));
        assert!(found(there, there).contains("/no/such/toolkit/include/cuda_fp16.h was not found"));
        assert!(check().is_ok() || check().unwrap_err().to_string().contains("device cuda can't compute"));
    }
}
