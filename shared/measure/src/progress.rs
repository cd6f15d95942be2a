//! How far a measurement is.

/// How far a measurement is, and what it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Steps that are done.
    pub done: u64,
    /// Steps that there are, as far as that is known.
    pub total: u64,
    /// What is being measured.
    pub doing: String,
}

/// Tells a client how far a measurement is.
pub struct Steps {
    progress: Progress,
    tell: Box<dyn FnMut(&Progress) + Send>,
}

impl Steps {
    /// Calls `tell` at each change.
    pub fn new(tell: impl FnMut(&Progress) + Send + 'static) -> Self {
        Self { progress: Progress::default(), tell: Box::new(tell) }
    }

    pub(crate) fn total(&mut self, total: usize) {
        self.progress.total = total as u64;
        (self.tell)(&self.progress);
    }

    pub(crate) fn doing(&mut self, doing: impl Into<String>) {
        self.progress.doing = doing.into();
        (self.tell)(&self.progress);
    }

    pub(crate) fn done(&mut self) {
        self.progress.done += 1;
        (self.tell)(&self.progress);
    }
}
