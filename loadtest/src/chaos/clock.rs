//! Wrong clocks, by libfaketime.

use std::path::Path;

use tokio::process::Command;

/// The library, as `faketime` names it to the system's loader; nothing if it is not installed.
pub async fn library() -> Option<String> {
    let output = Command::new("faketime").args(["-f", "+0s", "env"]).output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    text.lines().find_map(|line| line.strip_prefix("LD_PRELOAD=")).map(str::to_owned)
}

/// The environment of a process whose clock is off: the time of day alone, as it is on a machine that was set wrongly. Files have
/// the system's times.
pub fn environment(library: &str, by: &str) -> [(&'static str, String); 6] {
    [
        ("LD_PRELOAD", library.to_owned()),
        ("FAKETIME", by.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("FAKETIME_DISABLE_SHM", "1".to_owned()),
        ("NO_FAKE_STAT", "1".to_owned()),
        ("FAKE_UTIME", "0".to_owned()),
    ]
}

/// Removes what the library leaves in shared memory of a process that was killed. Newer releases need none of it.
pub fn tidy(process: u32) {
    for name in [format!("faketime_shm_{process}"), format!("sem.faketime_sem_{process}")] {
        // Most processes have left nothing.
        let _ = std::fs::remove_file(Path::new("/dev/shm").join(name));
    }
}
