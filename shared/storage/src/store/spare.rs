//! Files made ready before a put needs them.
//!
//! The first write into new memory is what a local put waits for: a virtual machine gets each page of its page cache from
//! the host at that moment, which takes longer than packing the bytes. Files that have their pages are written at the
//! speed of memory. They have no name before they hold an object whole, so a crash leaves none behind.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, linkat, open},
    io::Errno,
};
use tokio::{task::spawn_blocking, time::sleep};

use super::Put;

/// Bytes of files that are kept ready: the chunks that one pass of an engine completes together.
const READY: u64 = 32 << 20;
/// Smaller objects are not worth a file made ready.
const SMALL: u64 = 256 << 10;
/// What is made ready is made after the puts of one pass, and the jobs that wait for them, are through.
const AFTER: Duration = Duration::from_millis(50);

/// The files of one store. They are as large as the largest object put so far.
#[derive(Debug)]
pub(super) struct Spares {
    root: PathBuf,
    ready: Mutex<Vec<File>>,
    bytes: AtomicU64,
    filling: AtomicBool,
    /// The file system has no nameless files, or can't name them.
    useless: AtomicBool,
}

impl Spares {
    pub(super) fn new(root: PathBuf) -> Arc<Self> {
        let (bytes, filling, useless) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { root, ready: Mutex::default(), bytes, filling, useless })
    }

    /// Puts an object unless `path` is there; `None` if no file was ready or could be used, and nothing was put.
    pub(super) async fn put_new(self: &Arc<Self>, path: PathBuf, bytes: Bytes) -> Option<Put> {
        let len = bytes.len() as u64;
        if !(SMALL..=READY).contains(&len) || self.useless.load(Relaxed) {
            return None;
        }
        let file = self.take(len);
        self.fill_later();
        let file = file?;
        let put = spawn_blocking(move || write(&file, &path, &bytes)).await.ok()?;
        // Where the disk is full, for example, the ordinary way says so.
        put.inspect_err(|_| self.give_up()).ok()
    }

    fn give_up(&self) {
        self.useless.store(true, Relaxed);
        self.with_ready(Vec::clear);
    }

    /// A file for an object of `len` bytes.
    fn take(&self, len: u64) -> Option<File> {
        if self.bytes.fetch_max(len, Relaxed) < len {
            // Those that are ready are too small from now on. To give their pages back takes a while.
            let small = self.with_ready(std::mem::take);
            spawn_blocking(move || drop(small));
        }
        // A far smaller object would give most of the pages back.
        if len < self.bytes.load(Relaxed) / 2 { None } else { self.with_ready(Vec::pop) }
    }

    fn fill_later(self: &Arc<Self>) {
        if self.filling.swap(true, Relaxed) {
            return;
        }
        let spares = self.clone();
        tokio::spawn(async move {
            sleep(AFTER).await;
            let filled = spawn_blocking(move || {
                if spares.fill().is_err() {
                    spares.give_up();
                }
                spares.filling.store(false, Relaxed);
            });
            // Lost only as the runtime shuts down.
            let _ = filled.await;
        });
    }

    fn fill(&self) -> io::Result<()> {
        let bytes = self.bytes.load(Relaxed);
        while (self.with_ready(|ready| ready.len()) as u64 + 1) * bytes <= READY {
            let file =
                File::from(open(&self.root, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from(0o600))?);
            io::copy(&mut io::repeat(0).take(bytes), &mut &file)?;
            self.with_ready(|ready| ready.push(file));
        }
        Ok(())
    }

    fn with_ready<T>(&self, work: impl FnOnce(&mut Vec<File>) -> T) -> T {
        work(&mut self.ready.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn write(file: &File, path: &Path, bytes: &[u8]) -> io::Result<Put> {
    file.write_all_at(bytes, 0)?;
    file.set_len(bytes.len() as u64)?;
    let name = || linkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), CWD, path, AtFlags::SYMLINK_FOLLOW);
    let mut named = name();
    if named == Err(Errno::NOENT)
        && let Some(directory) = path.parent()
    {
        fs::create_dir_all(directory)?;
        named = name();
    }
    match named {
        Ok(()) => Ok(Put::Created),
        Err(Errno::EXIST) => Ok(Put::Exists),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_object_is_whole_under_its_name_or_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join("kv").join(name);
        let object = |byte: u8, len: u64| Bytes::from(vec![byte; len as usize]);
        let spares = Spares::new(directory.path().into());

        // None is ready at first; those that are made then are as large as what was wanted.
        assert_eq!(spares.put_new(at("a"), object(1, 2 * SMALL)).await, None);
        match spares.fill() {
            // A file system that has no such files; the store does without.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return,
            filled => filled.unwrap(),
        }
        assert_eq!(spares.put_new(at("a"), object(2, 2 * SMALL)).await, Some(Put::Created));
        assert_eq!(spares.put_new(at("a"), object(3, 2 * SMALL)).await, Some(Put::Exists));
        assert_eq!(spares.put_new(at("b"), object(4, SMALL + 1)).await, Some(Put::Created));
        assert_eq!(fs::read(at("a")).unwrap(), object(2, 2 * SMALL));
        assert_eq!(fs::read(at("b")).unwrap(), object(4, SMALL + 1));

        // Too small, much smaller than those that are ready, and larger than they are.
        assert_eq!(spares.put_new(at("c"), object(5, SMALL - 1)).await, None);
        assert_eq!(spares.put_new(at("c"), object(5, 5 * SMALL)).await, None);
        spares.fill().unwrap();
        assert_eq!(spares.put_new(at("c"), object(5, 2 * SMALL)).await, None);

        // Of many who put at once, one creates.
        let puts = (0..8).map(|byte| spares.put_new(at("d"), object(byte, 5 * SMALL)));
        let puts = futures::future::join_all(puts).await;
        assert_eq!(puts.iter().filter(|put| **put == Some(Put::Created)).count(), 1, "{puts:?}");

        // What is ready has no name, and goes with the process.
        let names =
            |path: PathBuf| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names(directory.path().into()), ["kv"]);
        assert_eq!(names(directory.path().join("kv")).len(), 3);
    }
}
