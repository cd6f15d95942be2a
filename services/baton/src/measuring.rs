//! Shows on standard error how far a measurement is.

use std::io::{self, IsTerminal};

use baton_measure::Steps;
use indicatif::{ProgressBar, ProgressStyle};

/// A bar of this form, on terminals only, and what moves it.
pub fn bar(template: &str) -> (ProgressBar, Steps) {
    let bar = match io::stderr().is_terminal() {
        true => ProgressBar::new(0),
        false => ProgressBar::hidden(),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let shown = bar.clone().with_style(style);
    let steps = Steps::new(move |progress| {
        shown.set_length(progress.total);
        shown.set_position(progress.done);
        shown.set_message(progress.doing.clone());
    });
    (bar, steps)
}
