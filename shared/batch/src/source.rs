//! A file of requests, read beside what is done with its lines.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

use tokio::{sync::mpsc, task::spawn_blocking};

use crate::{
    error::Error,
    foreign,
    input::{Line, Lines, Settings},
};

/// Lines that are read ahead.
const AHEAD: usize = 256;

/// Where requests come from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// This process' standard input.
    Stdin,
    /// A file.
    File(&'a Path),
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|source| Error::Open { path: path.to_owned(), source })
}

fn unread(name: &str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Read { name: name.to_owned(), source }
}

/// Lines of a file that are not blank.
///
/// # Errors
///
/// If it can't be opened or read.
pub async fn count(path: &Path) -> Result<u64, Error> {
    let file = open(path)?;
    let counted = spawn_blocking(move || {
        let mut input = BufReader::with_capacity(1 << 20, file);
        let (mut lines, mut some) = (0, false);
        loop {
            let block = input.fill_buf()?;
            if block.is_empty() {
                return io::Result::Ok(lines + u64::from(some));
            }
            for byte in block {
                match byte {
                    b'\n' => lines += u64::from(std::mem::replace(&mut some, false)),
                    byte => some |= !byte.is_ascii_whitespace(),
                }
            }
            let length = block.len();
            input.consume(length);
        }
    });
    counted.await?.map_err(unread(&path.display().to_string()))
}

/// Refuses what is no lines of requests.
fn ensure_lines(input: &mut dyn BufRead, name: &str) -> Result<(), Error> {
    let start = input.fill_buf().map_err(unread(name))?;
    match foreign::found(start) {
        Some(found) => Err(Error::Foreign { name: name.to_owned(), found }),
        None => Ok(()),
    }
}

/// Reads and understands lines on a thread of its own, some ahead.
///
/// # Errors
///
/// If a file can't be opened or is no lines of requests. Of standard input the first line says so, for it may have to be
/// waited for.
pub fn read(source: Source<'_>, settings: Settings) -> Result<mpsc::Receiver<Result<Line, Error>>, Error> {
    let (mut input, name, unseen): (Box<dyn BufRead + Send>, _, _) = match source {
        Source::Stdin => (Box::new(BufReader::new(io::stdin())), "-".to_owned(), true),
        Source::File(path) => {
            let name = path.display().to_string();
            let mut input = BufReader::with_capacity(1 << 16, open(path)?);
            ensure_lines(&mut input, &name)?;
            (Box::new(input), name, false)
        }
    };
    let (sender, lines) = mpsc::channel(AHEAD);
    spawn_blocking(move || {
        if unseen && let Err(error) = ensure_lines(&mut input, &name) {
            // Nobody listens once the run has ended.
            let _ = sender.blocking_send(Err(error));
            return;
        }
        let mut lines = Lines::new(input, settings);
        loop {
            let line = match lines.next() {
                Ok(None) => return,
                Ok(Some(line)) => Ok(line),
                Err(error) => Err(unread(&name)(error)),
            };
            // Nobody listens once the run has ended.
            if line.is_err() | sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    Ok(lines)
}
