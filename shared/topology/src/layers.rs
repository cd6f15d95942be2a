//! Lays the sources of a pipeline over each other, before anything is known about their keys.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use crate::{
    ENVIRONMENT_PREFIX, Errors, Problem,
    tables::{leaves, overlay},
};

const DEFAULTS: &str = include_str!("defaults.toml");

/// All sources as one table.
pub(crate) struct Layers {
    pub(crate) table: Table,
    /// The keys that a variable or an override set, and which one: their values are plain texts, whatever the key's type.
    pub(crate) texts: BTreeMap<String, String>,
    /// The keys that file, environment or overrides set, and not only what lies below them.
    pub(crate) told: BTreeSet<String>,
}

/// Lays the file, the environment and the overrides over the tables of `lower`, and all of them over the embedded defaults.
pub(crate) fn merge(
    lower: Vec<Table>,
    file: Option<&str>,
    environment: impl IntoIterator<Item = (String, String)>,
    overrides: &[String],
) -> Result<Layers, Errors> {
    let mut table = parse(DEFAULTS, "the embedded defaults").map_err(|problem| Errors(vec![problem]))?;
    for lower in lower {
        overlay(&mut table, lower);
    }
    let mut told = BTreeSet::new();
    if let Some(text) = file {
        // A file that cannot be read says nothing: whatever else we found would be beside the point.
        let file = parse(text, "the file").map_err(|problem| Errors(vec![problem]))?;
        told.extend(leaves(&file).into_keys());
        overlay(&mut table, file);
    }

    let mut layers = Layers { table, texts: BTreeMap::new(), told };
    let mut problems = Vec::new();
    // In a fixed order, so that one environment always gives one plan.
    let variables: BTreeMap<_, _> =
        environment.into_iter().filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX)).collect();
    for (name, text) in variables {
        let key = name[ENVIRONMENT_PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
        problems.extend(layers.set(&key, text, &name));
    }
    for entry in overrides {
        match entry.split_once('=') {
            Some((key, text)) => problems.extend(layers.set(key.trim(), text.trim().into(), entry)),
            None => problems.push(Problem {
                key: entry.clone(),
                message: "expected key=value, as in stages.decode.slots=8".into(),
            }),
        }
    }
    if problems.is_empty() { Ok(layers) } else { Err(Errors(problems)) }
}

impl Layers {
    fn set(&mut self, key: &str, text: String, origin: &str) -> Option<Problem> {
        let problem = |message: &str| Some(Problem { key: origin.into(), message: message.into() });
        let mut parts: Vec<&str> = key.split('.').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return problem("expected the key of a setting, as in stages.decode.slots");
        }
        let last = parts.pop()?;
        let mut table = &mut self.table;
        for part in parts {
            match table.entry(part).or_insert_with(|| Table::new().into()) {
                Value::Table(inner) => table = inner,
                _ => return problem(&format!("{part:?} in {key} is a value, it has no keys of its own")),
            }
        }
        if table.get(last).is_some_and(Value::is_table) {
            return problem(&format!("{key} is a table, set one of its keys"));
        }
        table.insert(last.into(), Value::String(text));
        self.texts.insert(key.into(), origin.into());
        self.told.insert(key.into());
        None
    }
}

pub(crate) fn parse(text: &str, source: &str) -> Result<Table, Problem> {
    text.parse::<Table>().map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        let message = error.message().trim().replace('\n', ", ");
        Problem {
            key: format!("line {line}, column {column}"),
            message: format!("{source} is no valid TOML: {message}"),
        }
    })
}
