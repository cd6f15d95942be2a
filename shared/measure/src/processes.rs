//! What a pipeline's processes take, as the kernel counts it.

use std::{fs, process};

use crate::machine::Memory;

/// Ticks of the kernel's clock in a second, as it shows them to programs on every Linux there is.
const TICKS: f64 = 100.0;

/// One process of a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// `nats-server`, a worker's name, or `client` for this process.
    pub name: String,
    /// As the system numbers it.
    pub pid: u32,
}

impl Process {
    /// This process and its children; nothing on systems without `/proc`.
    pub fn all() -> Vec<Process> {
        let own = process::id();
        let mut all: Vec<Process> = children_of(own).into_iter().filter_map(Process::of_child).collect();
        all.sort_by(|a, b| rank(&a.name).cmp(&rank(&b.name)).then_with(|| a.name.cmp(&b.name)));
        if fs::exists("/proc/self/stat").unwrap_or(false) {
            all.push(Process { name: "client".to_owned(), pid: own });
        }
        all
    }

    /// A child with the name that its command line gives it.
    fn of_child(pid: u32) -> Option<Process> {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<&str> = line.split('\0').collect();
        let named = words.iter().position(|word| *word == "--name").and_then(|at| words.get(at + 1));
        let program = words.first()?.rsplit('/').next()?;
        Some(Process { name: named.unwrap_or(&program).to_string(), pid })
    }

    /// Seconds of processor time so far, in user and kernel mode, by threads that have ended too.
    pub fn cpu_seconds(&self) -> Option<f64> {
        let ticks = |fields: &[&str]| Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?);
        Some(ticks(&stat(self.pid)?.split(' ').collect::<Vec<_>>())? / TICKS)
    }

    /// Memory that is resident now, in MiB.
    pub fn resident_mib(&self) -> Option<f64> {
        Some(Memory::of(self.pid)?.resident)
    }
}

/// The order of a job's way.
fn rank(name: &str) -> usize {
    let order = ["nats-server", "ingest", "prefill", "decode"];
    order.iter().position(|known| name.starts_with(known)).unwrap_or(order.len())
}

fn children_of(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parent = parent.to_string();
    pids.filter(|pid| stat(*pid).is_some_and(|stat| stat.split(' ').nth(1) == Some(&parent))).collect()
}

/// The kernel's figures of a process, from its state on: what comes before may contain spaces.
fn stat(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.trim_end().to_owned())
}
