//! What only its owner may read: requests, answers, KV caches, and URLs with passwords.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use anyhow::Context;
use nix::sys::stat::{Mode, umask};

/// What this process and its children create from now on, whoever creates it, is its owner's only.
pub fn all_from_now_on() {
    umask(Mode::from_bits_truncate(0o077));
}

/// Creates a directory for its owner only, and what is missing above it.
pub fn create(directory: &Path) -> anyhow::Result<()> {
    let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    created.with_context(|| format!("cannot create {}", directory.display()))
}

/// The permission bits of what others than its owner may use, or nothing: also where they can't come so far.
pub fn open_to_others(path: &Path) -> Option<u32> {
    let mode = |path: &Path| Some(fs::metadata(path).ok()?.permissions().mode() & 0o777);
    let reached = path.ancestors().skip(1).filter_map(mode).all(|mode| mode & 0o011 != 0);
    mode(path).filter(|mode| reached && mode & 0o077 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_here_is_its_owners_and_what_is_open_is_found() {
        let ground = tempfile::tempdir().unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set(ground.path(), 0o755);
        let (above, made) = (ground.path().join("above"), ground.path().join("above/made"));
        create(&made).unwrap();
        assert_eq!((open_to_others(&above), open_to_others(&made)), (None, None));
        for (outer, inner, found) in [(0o755, 0o750, Some(0o750)), (0o700, 0o755, None), (0o755, 0o700, None)] {
            set(&above, outer);
            set(&made, inner);
            assert_eq!(open_to_others(&made), found, "{outer:o} {inner:o}");
        }
        assert_eq!(open_to_others(&made.join("none")), None);
    }
}
