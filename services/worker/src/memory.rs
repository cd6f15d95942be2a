//! How much memory this process may use.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use baton_topology::Compute;

/// Why the machine does not tell how much memory there is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's file can't be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel's file lacks the number.
    #[error("{path} has no line MemTotal in kB")]
    NoTotal {
        /// The file.
        path: PathBuf,
    },
}

/// Bytes that a worker's KV caches may take with these settings, those of all its models together.
pub fn for_kv_caches(settings: &Compute) -> Result<u64, Error> {
    match settings.kv_memory {
        Some(bytes) => Ok(bytes.0),
        None => Ok((of_this_process()? as f64 * settings.memory_fraction) as u64),
    }
}

/// Bytes: the machine's memory, or less if a control group of the process says so.
fn of_this_process() -> Result<u64, Error> {
    below(Path::new("/"))
}

/// What the files below `root` say.
fn below(root: &Path) -> Result<u64, Error> {
    let path = root.join("proc/meminfo");
    let text = fs::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
    let total = total(&text).ok_or(Error::NoTotal { path })?;
    // A machine without control groups has no such file.
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(limit_file).flat_map(|(mount, group, file)| {
        let mount = root.join(mount);
        // The limit of any group above holds too. Inside a container the path may be the host's, and only its top is there.
        let groups: Vec<_> = Path::new(group).ancestors().map(|group| mount.join(group).join(file)).collect();
        groups.into_iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
    });
    Ok(limits.chain([total]).min().unwrap_or(total))
}

fn total(meminfo: &str) -> Option<u64> {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"))?;
    kib.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Where the memory limits of a line of `/proc/self/cgroup` lie: the mount, the group below it and the file in each group.
fn limit_file(line: &str) -> Option<(&'static str, &str, &'static str)> {
    let (_, line) = line.split_once(':')?;
    let (controllers, group) = line.split_once(':')?;
    let group = group.trim_start_matches('/');
    if controllers.is_empty() {
        Some(("sys/fs/cgroup", group, "memory.max"))
    } else if controllers.split(',').any(|controller| controller == "memory") {
        Some(("sys/fs/cgroup/memory", group, "memory.limit_in_bytes"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_lowest_limit_holds() {
        let machine = ("proc/meminfo", "MemTotal:       1000 kB\nMemFree:          10 kB\n");
        let v2 = ("proc/self/cgroup", "0::/pods/one\n");
        let v1 = ("proc/self/cgroup", "5:cpu,memory:/one\n4:cpuset:/one\n0::/\n");
        for (files, expected) in [
            (vec![machine], 1_024_000),
            (vec![machine, v2, ("sys/fs/cgroup/pods/one/memory.max", "max\n")], 1_024_000),
            (vec![machine, v2, ("sys/fs/cgroup/pods/memory.max", "5000\n")], 5000),
            (vec![machine, v2, ("sys/fs/cgroup/memory.max", "6000\n")], 6000),
            (vec![machine, v1, ("sys/fs/cgroup/memory/one/memory.limit_in_bytes", "9223372036854771712\n")], 1_024_000),
            (vec![machine, v1, ("sys/fs/cgroup/memory/one/memory.limit_in_bytes", "7000\n")], 7000),
        ] {
            assert_eq!(below(root(&files).path()).unwrap(), expected, "{files:?}");
        }
        assert!(below(root(&[("proc/meminfo", "MemFree: 1 kB")]).path()).is_err());
    }
}
