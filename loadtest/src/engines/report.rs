//! What a run found, as rows for loadtest/RESULTS.md.

use baton_load::table;
use serde::Serialize;

use super::Options;

/// Something that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub what: String,
    pub found: String,
    /// What it is judged by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bar: Option<Bar>,
}

/// What must hold, and whether it does.
#[derive(Clone, Debug, Serialize)]
pub struct Bar {
    pub text: &'static str,
    pub holds: bool,
}

impl Row {
    pub(super) fn judged(what: String, found: String, bar: &'static str, holds: bool) -> Self {
        Self { what, found, bar: Some(Bar { text: bar, holds }) }
    }

    pub(super) fn beside(what: String, found: String) -> Self {
        Self { what, found, bar: None }
    }
}

/// What a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub options: Options,
    pub rows: Vec<Row>,
}

impl Report {
    /// Whether all that is judged holds.
    pub fn holds(&self) -> bool {
        self.rows.iter().filter_map(|row| row.bar.as_ref()).all(|bar| bar.holds)
    }

    /// A Markdown table that is aligned for the terminal too.
    pub fn markdown(&self) -> String {
        let head = ["engine", "measure", "found", "bar", "holds"].map(str::to_owned).to_vec();
        let row = |row: &Row| {
            let (bar, holds) =
                row.bar.as_ref().map_or(("-", "-"), |bar| (bar.text, if bar.holds { "yes" } else { "NO" }));
            vec![self.options.engine.to_string(), row.what.clone(), row.found.clone(), bar.into(), holds.into()]
        };
        table::aligned(&[head].into_iter().chain(self.rows.iter().map(row)).collect::<Vec<_>>())
    }
}
