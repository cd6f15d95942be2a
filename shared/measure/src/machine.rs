//! What a measurement ran on, and the memory that this process takes.

use std::{fs, thread};

use serde::Serialize;

/// A processor.
#[derive(Clone, Debug, Serialize)]
pub struct Cpu {
    /// As the system calls it; nothing where it doesn't say.
    pub name: Option<String>,
    /// Cores that this process may use.
    pub cores: usize,
    /// Those instruction sets, of all that matter to the kernels, that the processor has.
    pub features: Vec<&'static str>,
}

impl Cpu {
    /// This machine's.
    pub fn of_this_machine() -> Cpu {
        let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Cpu {
            name: name.map(|(_, name)| name.to_owned()),
            cores: thread::available_parallelism().map_or(1, Into::into),
            features: features(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    macro_rules! present {
        ($($feature:tt),*) => {
            [$(($feature, is_x86_feature_detected!($feature))),*]
        };
    }
    let known =
        present!["avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512bf16"];
    known.iter().filter(|(_, present)| *present).map(|(feature, _)| *feature).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

/// Memory of a process in MiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// What is resident now.
    pub resident: f64,
    /// The most that was ever resident.
    pub peak: f64,
}

impl Memory {
    /// Of this process, as the kernel says now; nothing on systems without `/proc`.
    pub fn now() -> Option<Memory> {
        Self::of(std::process::id())
    }

    /// Of any process that there is.
    pub fn of(pid: u32) -> Option<Memory> {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name| {
            let kib = text.lines().find_map(|line| line.strip_prefix(name))?.trim().strip_suffix(" kB")?;
            Some(kib.parse::<f64>().ok()? / 1024.0)
        };
        Some(Memory { resident: field("VmRSS:")?, peak: field("VmHWM:")? })
    }
}
