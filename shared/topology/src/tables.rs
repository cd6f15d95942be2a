//! Tables of values, whose keys are written as in `stages.decode.slots`.

use std::collections::BTreeMap;

use toml::{Table, Value};

/// Tables grow together; every other value of `upper` replaces that of `lower`.
pub(crate) fn overlay(lower: &mut Table, upper: Table) {
    for (key, value) in upper {
        match (lower.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => overlay(inner, value),
            (_, value) => drop(lower.insert(key, value)),
        }
    }
}

/// All values that are no tables, under their whole keys.
pub(crate) fn leaves(table: &Table) -> BTreeMap<String, Value> {
    fn add(prefix: &str, table: &Table, found: &mut BTreeMap<String, Value>) {
        for (key, value) in table {
            let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                Value::Table(inner) => add(&key, inner, found),
                value => drop(found.insert(key, value.clone())),
            }
        }
    }
    let mut found = BTreeMap::new();
    add("", table, &mut found);
    found
}

/// The value of a key.
pub(crate) fn find<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((first, rest)) => find(table.get(first)?.as_table()?, rest),
    }
}

/// Sets a key, with the tables that it lies in.
pub(crate) fn insert(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => drop(table.insert(key.into(), value)),
        Some((first, rest)) => {
            let inner = table.entry(first).or_insert_with(|| Table::new().into());
            if !inner.is_table() {
                *inner = Table::new().into();
            }
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}
