//! When a process is asked to end.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::Error;

/// What a worker gets from SIGTERM until it hands back what it holds.
pub const DRAIN: Duration = Duration::from_secs(20);

/// Ends when the process is asked to: Ctrl-C or SIGTERM. Being asked a second time ends the process at once.
pub async fn asked_to_stop() -> Result<(), Error> {
    let mut terminate = listen("SIGTERM", SignalKind::terminate())?;
    let mut interrupt = listen("SIGINT", SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(130);
    });
    Ok(())
}

fn listen(name: &'static str, kind: SignalKind) -> Result<Signal, Error> {
    signal(kind).map_err(|source| Error::Signals { signal: name, source })
}
