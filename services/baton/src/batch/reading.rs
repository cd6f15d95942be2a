//! A file of requests, read beside what is done with its lines.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

use anyhow::{Context, bail};
use tokio::{sync::mpsc, task::spawn_blocking};

use super::{
    foreign,
    input::{Line, Lines, Settings},
};

/// Lines that are read ahead.
const AHEAD: usize = 256;

/// Lines of a file that are not empty.
pub async fn count(path: &Path) -> anyhow::Result<u64> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
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
    counted.await?.with_context(|| format!("cannot read {}", path.display()))
}

/// Refuses what is no lines of requests.
fn ensure_lines(input: &mut dyn BufRead, name: &str) -> anyhow::Result<()> {
    let start = input.fill_buf().with_context(|| format!("cannot read {name}"))?;
    if let Some(found) = foreign::found(start) {
        bail!("expected one JSON object a line in {name}, found {found}; `baton batch run --help` shows such lines");
    }
    Ok(())
}

/// Reads and understands lines on a thread of its own, some ahead.
pub fn read(path: &Path, settings: Settings) -> anyhow::Result<mpsc::Receiver<anyhow::Result<Line>>> {
    let name = path.display().to_string();
    let is_stdin = path == Path::new("-");
    let mut input: Box<dyn BufRead + Send> = if is_stdin {
        Box::new(BufReader::new(io::stdin()))
    } else {
        let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
        let mut input = BufReader::with_capacity(1 << 16, file);
        ensure_lines(&mut input, &name)?;
        Box::new(input)
    };
    let (sender, lines) = mpsc::channel(AHEAD);
    spawn_blocking(move || {
        // Only here, since it may have to be waited for.
        if is_stdin && let Err(error) = ensure_lines(&mut input, &name) {
            // Nobody listens once the run has ended.
            let _ = sender.blocking_send(Err(error));
            return;
        }
        let mut lines = Lines::new(input, settings);
        loop {
            let line = match lines.next() {
                Ok(None) => return,
                Ok(Some(line)) => Ok(line),
                Err(error) => Err(anyhow::Error::from(error).context(format!("cannot read {name}"))),
            };
            // Nobody listens once the run has ended.
            if line.is_err() | sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    Ok(lines)
}
