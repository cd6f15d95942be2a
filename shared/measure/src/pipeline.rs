//! A pipeline of a measurement's own, in a directory of its own.

use std::{fs, process};

use baton_assembly::signals;
pub(crate) use baton_assembly::{bus::connect, pipeline::Pipeline};
use baton_provision::{
    home::{PipelineHome, home},
    processes::Logs,
};
use baton_topology::Plan;

use crate::error::Error;

/// How a pipeline is run.
pub(crate) struct Options {
    /// What fails if something does.
    pub(crate) what: &'static str,
    /// The folder, within Baton's own, of all that measure so.
    pub(crate) folder: &'static str,
    /// Whether the broker flushes each message to the disk before it acknowledges it.
    pub(crate) sync_always: bool,
}

/// Starts a pipeline, works with it until the process is asked to stop, and removes it. If that fails, the directory stays
/// for the workers' log in it.
pub(crate) async fn with<T>(
    plan: Plan,
    options: Options,
    work: impl AsyncFnOnce(&mut Pipeline) -> Result<T, Error>,
) -> Result<T, Error> {
    let Options { what, folder, sync_always } = options;
    let directory = home()?.join(folder).join(process::id().to_string());
    // What a killed run of the same process id may have left.
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).map_err(|source| Error::Create { path: directory.clone(), source })?;
    let (home, log) = (PipelineHome { directory: directory.clone() }, directory.join("workers.log"));
    let mut pipeline = Pipeline::start_with(plan, home, Logs::File(log.clone()), sync_always).await?;
    let worked = tokio::select! {
        worked = work(&mut pipeline) => worked,
        stopped = signals::asked_to_stop() => stopped.map_err(Error::from).and(Err(Error::Stopped)),
    };
    pipeline.stop().await?;
    let worked = match worked {
        Err(Error::Stopped) => return Err(Error::Stopped),
        Err(error) => return Err(Error::Pipeline { what, log, source: Box::new(error) }),
        Ok(worked) => worked,
    };
    fs::remove_dir_all(&directory).map_err(|source| Error::Remove { path: directory, source })?;
    Ok(worked)
}
