//! The cores that the workers of one machine share with each other's threads, the broker and the client.

/// A machine's cores. What is spent beside the engines while they fill all cores is taken from all of them alike, as a fair
/// scheduler does it; what is spent while a core is free holds nobody up.
pub(super) struct Machine {
    cores: usize,
    /// Of each worker: cores that its engine computes on now, and seconds that it will be held up for.
    engines: Vec<(usize, f64)>,
    busy: usize,
}

impl Machine {
    pub(super) fn new(cores: usize, workers: usize) -> Self {
        Self { cores: cores.max(1), engines: vec![(0, 0.0); workers], busy: 0 }
    }

    /// An engine begins a pass or a step; returns the seconds that it is held up for.
    pub(super) fn computes(&mut self, worker: usize, threads: usize) -> f64 {
        let (computing, held_up_s) = &mut self.engines[worker];
        self.busy += threads - *computing;
        *computing = threads;
        std::mem::take(held_up_s)
    }

    /// An engine has ended a pass or a step.
    pub(super) fn rests(&mut self, worker: usize) {
        self.busy -= std::mem::take(&mut self.engines[worker].0);
    }

    /// Something takes processor time.
    pub(super) fn spend(&mut self, cpu_s: f64) {
        if self.busy < self.cores {
            return;
        }
        let each = cpu_s / self.busy as f64;
        self.engines.iter_mut().filter(|engine| engine.0 > 0).for_each(|engine| engine.1 += each);
    }
}
