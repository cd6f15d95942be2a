//! How long the runs of one measure took.

/// Seconds that runs took, each at least so long that one can divide by it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Runs {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Runs {
    /// Of at least one run.
    pub fn of(mut seconds: Vec<f64>) -> Runs {
        seconds.sort_by(f64::total_cmp);
        let count = seconds.len();
        let median = (seconds[(count - 1) / 2] + seconds[count / 2]) / 2.0;
        // A clock may not have moved.
        let [median, least, most] = [median, seconds[0], seconds[count - 1]].map(|seconds| seconds.max(1e-9));
        Runs { median, least, most }
    }
}
