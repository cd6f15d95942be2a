//! JSON schemas of answers: where in a document schemas stand, and what `strict` means.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Keywords whose values are data, whatever they look like.
const DATA: [&str; 4] = ["const", "enum", "default", "examples"];
/// Keywords whose values name schemas.
const NAMING: [&str; 5] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];
/// Keywords whose schemas are about the same value as the schema that they are in.
const ALL: &str = "allOf";
const CHOICES: [&str; 2] = ["anyOf", "oneOf"];
const REFERENCE: &str = "$ref";
const MORE: &str = "additionalProperties";
/// References that a strict schema may combine with other keys: each is replaced by what it names.
const MAX_COMBINED_REFERENCES: usize = 64;

/// Visits every schema of a document that is an object, outer ones first. What stands under unknown keywords counts as
/// schemas: a reference may name it.
pub fn for_each(schema: &mut Value, visit: &mut impl FnMut(&mut Map<String, Value>)) {
    match schema {
        Value::Object(fields) => {
            visit(fields);
            below(fields, &mut |_, child| for_each(child, visit));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| for_each(item, visit)),
        _ => {}
    }
}

/// The values directly below a schema that are schemas or lists of some, with their keywords.
fn below(fields: &mut Map<String, Value>, visit: &mut impl FnMut(&str, &mut Value)) {
    for (key, value) in fields {
        match value {
            _ if DATA.contains(&key.as_str()) => {}
            Value::Object(named) if NAMING.contains(&key.as_str()) => {
                named.values_mut().for_each(|value| visit(key, value));
            }
            value => visit(key, value),
        }
    }
}

/// Has objects hold the keys that are declared for them and no others, where a schema says nothing of others: what `strict`
/// means. What it says of them remains, and so do keys that it doesn't require.
pub(crate) fn close(schema: &mut Value) -> Result<(), String> {
    let root = schema.clone();
    Closing { root: &root, combined: 0 }.close(schema, &Keys::new())
}

/// Names of an object's keys.
type Keys = BTreeSet<String>;

struct Closing<'s> {
    /// The document as it was, for references.
    root: &'s Value,
    /// References that were replaced.
    combined: usize,
}

impl<'s> Closing<'s> {
    /// Closes a schema, or a list of some, and all schemas below. `around` has the keys that schemas about the same value
    /// declare.
    fn close(&mut self, schema: &mut Value, around: &Keys) -> Result<(), String> {
        match schema {
            Value::Object(fields) => self.close_one(fields, around),
            Value::Array(items) => items.iter_mut().try_for_each(|item| self.close(item, around)),
            _ => Ok(()),
        }
    }

    fn close_one(&mut self, fields: &mut Map<String, Value>, around: &Keys) -> Result<(), String> {
        let all = self.together(fields, around)?;
        let [any_of, one_of] = CHOICES.map(|key| self.declared_under(fields, key));
        // A choice excludes the other choices' keys.
        let outside_choices = |others: &Keys| -> Keys {
            let mut keys = around.clone();
            self.declare(fields, &mut keys, &mut BTreeSet::new(), false);
            keys.extend(others.iter().cloned());
            keys
        };
        let (in_any_of, in_one_of) = (outside_choices(&one_of), outside_choices(&any_of));
        if describes_objects(fields) && !fields.contains_key(MORE) {
            if let Some(properties) = declare_all(fields, &all) {
                fields.insert("properties".to_owned(), properties);
            }
            fields.insert(MORE.to_owned(), Value::Bool(false));
        }
        let (mut closed, elsewhere) = (Ok(()), Keys::new());
        below(fields, &mut |key, child| {
            let around = match key {
                ALL => &all,
                "anyOf" => &in_any_of,
                "oneOf" => &in_one_of,
                _ => &elsewhere,
            };
            if closed.is_ok() {
                closed = self.close(child, around);
            }
        });
        closed
    }

    /// All keys that are declared for the value of a schema. A reference to fewer keys is replaced by what it names, which
    /// can then be closed for this place.
    fn together(&mut self, fields: &mut Map<String, Value>, around: &Keys) -> Result<Keys, String> {
        let mut all = around.clone();
        self.declare(fields, &mut all, &mut BTreeSet::new(), true);
        let Some(target) = fields.get(REFERENCE).and_then(|name| self.target(name)) else { return Ok(all) };
        let mut named = Keys::new();
        self.declare_of(target, &mut named, &mut BTreeSet::new());
        if named != all {
            self.combined += 1;
            if self.combined > MAX_COMBINED_REFERENCES {
                return Err(format!(
                    "expected at most {MAX_COMBINED_REFERENCES} times a `$ref` and other keys in one strict schema; \
                     write additionalProperties where it is missing"
                ));
            }
            let target = target.clone();
            fields.remove(REFERENCE);
            match fields.entry(ALL).or_insert_with(|| Value::Array(Vec::new())) {
                Value::Array(members) => members.push(target),
                other => return Err(format!("allOf: expected a list, found {other}")),
            }
        }
        Ok(all)
    }

    /// What a reference within the document names.
    fn target(&self, name: &Value) -> Option<&'s Value> {
        let pointer = name.as_str()?.strip_prefix('#')?;
        self.root.pointer(pointer)
    }

    fn declared_under(&self, fields: &Map<String, Value>, key: &str) -> Keys {
        let mut keys = Keys::new();
        for member in fields.get(key).and_then(Value::as_array).into_iter().flatten() {
            self.declare_of(member, &mut keys, &mut BTreeSet::new());
        }
        keys
    }

    fn declare_of(&self, schema: &Value, keys: &mut Keys, seen: &mut BTreeSet<String>) {
        if let Value::Object(fields) = schema {
            self.declare(fields, keys, seen, true);
        }
    }

    /// Adds the keys that a schema declares, itself or by schemas about the same value; `seen` are references followed.
    fn declare(&self, fields: &Map<String, Value>, keys: &mut Keys, seen: &mut BTreeSet<String>, choices: bool) {
        keys.extend(own(fields).map(str::to_owned));
        let lists = [ALL].into_iter().chain(CHOICES.into_iter().filter(|_| choices));
        for member in lists.filter_map(|key| fields.get(key)?.as_array()).flatten() {
            self.declare_of(member, keys, seen);
        }
        if let Some(name) = fields.get(REFERENCE)
            && let Some(target) = self.target(name)
            && seen.insert(name.to_string())
        {
            self.declare_of(target, keys, seen);
        }
    }
}

/// The keys that a schema itself declares or requires.
fn own(fields: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let properties = fields.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::keys);
    let required = fields.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    properties.map(String::as_str).chain(required)
}

fn describes_objects(fields: &Map<String, Value>) -> bool {
    let typed = match fields.get("type") {
        Some(Value::Array(types)) => types.iter().any(|kind| kind == "object"),
        Some(kind) => kind == "object",
        None => fields.contains_key("properties"),
    };
    typed && !DATA[..2].iter().any(|key| fields.contains_key(*key))
}

/// The properties of a schema with `keys` among them that they lack; None if they lack none.
fn declare_all(fields: &Map<String, Value>, keys: &Keys) -> Option<Value> {
    let mut properties = match fields.get("properties") {
        None => Map::new(),
        Some(properties) => properties.as_object()?.clone(),
    };
    let before = properties.len();
    for key in keys {
        properties.entry(key).or_insert(Value::Bool(true));
    }
    (properties.len() > before).then_some(Value::Object(properties))
}
