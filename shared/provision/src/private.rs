//! What only its owner may read: requests, answers, KV caches, and URLs with passwords.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use nix::sys::stat::{Mode, umask};

use crate::Error;

/// What this process and its children create from now on, whoever creates it, is its owner's only.
pub fn all_from_now_on() {
    umask(Mode::from_bits_truncate(0o077));
}

/// Creates a directory for its owner only, and what is missing above it.
pub fn create(directory: &Path) -> Result<(), Error> {
    let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    created.map_err(Error::of("create", directory))
}

/// Writes a file that only its owner may read: URLs may hold passwords.
pub fn write(path: &Path, text: &[u8]) -> Result<(), Error> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        // One that stood there already keeps its mode otherwise.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(text)
    };
    write().map_err(Error::of("write", path))
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
