//! How long the runs of one measure took.

use baton_load::statistics::median;

/// Seconds that runs took, each at least so long that one can divide by it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Runs {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The shortest.
    pub least: f64,
    /// The longest.
    pub most: f64,
}

impl Runs {
    /// Of at least one run.
    pub fn of(mut seconds: Vec<f64>) -> Runs {
        seconds.sort_by(f64::total_cmp);
        let bounds = [median(&seconds), seconds.first().copied(), seconds.last().copied()];
        // A clock may not have moved.
        let [median, least, most] = bounds.map(|seconds| seconds.unwrap_or_default().max(1e-9));
        Runs { median, least, most }
    }
}
