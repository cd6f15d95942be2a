//! The CPU threads that engines compute on.

/// Sets how many CPU threads this process computes with; 0 means one a core. To be called once, before any model loads.
pub fn use_threads(threads: usize) -> Result<(), ThreadsError> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(ThreadsError)
}

/// What an engine computes on, as many threads as [`use_threads`] said.
#[derive(Debug)]
pub struct ComputeThreads(Option<rayon::ThreadPool>);

impl ComputeThreads {
    /// For one of so many engines that compute in this process: a single one has threads of its own, several share one set of
    /// them.
    pub fn of_one_in(engines: usize) -> Result<Self, ThreadsError> {
        let own = || {
            let threads = rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads());
            threads.thread_name(|index| format!("compute-{index}")).build()
        };
        (engines == 1).then(own).transpose().map(Self).map_err(ThreadsError)
    }

    /// Does all of this on one of the threads if they are its own: no pass then begins or ends with waking another. Else it is
    /// done here, and each pass on a shared thread.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.0 {
            Some(threads) => threads.install(work),
            None => work(),
        }
    }
}

/// The compute threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the compute threads")]
pub struct ThreadsError(#[source] rayon::ThreadPoolBuildError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_engine_computes_where_it_is_run() {
        let alone = ComputeThreads::of_one_in(1).unwrap();
        assert!(alone.run(rayon::current_thread_index).is_some());
        let threads = alone.run(|| (std::thread::current().id(), rayon::scope(|_| std::thread::current().id())));
        assert_eq!(threads.0, threads.1);
        assert_eq!(alone.run(rayon::current_num_threads), rayon::current_num_threads());

        let shared = ComputeThreads::of_one_in(2).unwrap();
        assert_eq!(shared.run(rayon::current_thread_index), None);
    }
}
