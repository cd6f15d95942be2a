//! What can happen to a store in a directory: damaged and missing chunks, and a disk that fails.

use std::{
    fs, io,
    os::unix::fs::{FileExt, symlink},
    path::{Path, PathBuf},
};

use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// Where the store keeps its chunks below its directory.
const CHUNKS: &str = "kv";

/// A store whose chunks lie behind a symbolic link, so that one rename takes them all away and brings them back.
#[derive(Debug)]
pub struct Directory {
    /// What the workers take for the store.
    root: PathBuf,
    /// The chunks.
    kept: PathBuf,
    /// A file where a directory is wanted: whatever is asked of it fails, also for the superuser.
    obstacle: PathBuf,
}

impl Directory {
    /// Makes an empty store below a directory that exists.
    pub fn create(below: &Path) -> io::Result<Self> {
        let place = |name| below.join(name);
        let it = Self { root: place("store"), kept: place("chunks"), obstacle: place("obstacle") };
        fs::create_dir(&it.root)?;
        fs::create_dir(&it.kept)?;
        fs::write(&it.obstacle, "")?;
        it.lead_to(&it.kept)?;
        Ok(it)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// From now on every access fails.
    pub fn fail(&self) -> io::Result<()> {
        self.lead_to(&self.obstacle)
    }

    /// All is as it was before [`Directory::fail`].
    pub fn recover(&self) -> io::Result<()> {
        self.lead_to(&self.kept)
    }

    fn lead_to(&self, place: &Path) -> io::Result<()> {
        let next = self.kept.with_extension("link");
        symlink(place, &next)?;
        fs::rename(next, self.root.join(CHUNKS))
    }

    /// The files of all chunks. What else there is, the marks of the pipelines that use the store, stays.
    pub fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        walk(&self.root.join(CHUNKS), &mut found)?;
        // In an order that does not depend on the file system.
        found.sort();
        Ok(found)
    }

    /// Flips a bit in some chunks; returns in how many.
    pub fn damage(&self, chunks: usize, seed: u64) -> io::Result<usize> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut damaged = 0;
        for path in self.pick(chunks, &mut random)? {
            // A chunk may go between its listing and its turn.
            let Ok(file) = fs::OpenOptions::new().read(true).write(true).open(&path) else { continue };
            let length = file.metadata()?.len();
            if length > 0 {
                let (place, mut byte) = (random.random_range(0..length), [0]);
                file.read_exact_at(&mut byte, place)?;
                byte[0] ^= 1 << random.random_range(0..8);
                file.write_all_at(&byte, place)?;
                damaged += 1;
            }
        }
        Ok(damaged)
    }

    /// Removes some chunks; returns how many.
    pub fn lose(&self, chunks: usize, seed: u64) -> io::Result<usize> {
        let picked = self.pick(chunks, &mut ChaCha8Rng::seed_from_u64(seed))?;
        Ok(picked.into_iter().filter(|path| fs::remove_file(path).is_ok()).count())
    }

    fn pick(&self, chunks: usize, random: &mut ChaCha8Rng) -> io::Result<Vec<PathBuf>> {
        let mut files = self.files()?;
        // The newest are those that somebody still wants.
        let written = |path: &PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        files.sort_by_cached_key(written);
        let mut newest = files.split_off(files.len().saturating_sub(4 * chunks));
        newest.shuffle(random);
        newest.truncate(chunks);
        Ok(newest)
    }
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { walk(&path, found)? } else { found.push(path) }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_fails_and_recovers_with_what_it_held() {
        let place = tempfile::tempdir().unwrap();
        let store = Directory::create(place.path()).unwrap();
        let chunk = store.root().join("kv/ab/cd");
        fs::create_dir(chunk.parent().unwrap()).unwrap();
        fs::write(&chunk, [0; 100]).unwrap();
        store.fail().unwrap();
        assert_eq!(fs::read(&chunk).unwrap_err().kind(), io::ErrorKind::NotADirectory);
        fs::create_dir_all(chunk.parent().unwrap()).unwrap_err();
        store.recover().unwrap();
        assert_eq!(store.damage(3, 1).unwrap(), 1);
        assert_eq!(fs::read(&chunk).unwrap().iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        assert_eq!((store.lose(3, 1).unwrap(), store.files().unwrap().len()), (1, 0));
    }
}
