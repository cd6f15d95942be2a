//! What was sent of a message that comes in parts, so that what is left of the whole message can be told: sizes and digests, never the
//! message itself. It grows as `contract::upstream::merge` makes it grow.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// What was sent of a text that grows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Text {
    pub(crate) bytes: usize,
    digest: Sha256,
}

/// What was sent of a message, but for its text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told(BTreeMap<String, Part>);

#[derive(Clone, Debug)]
enum Part {
    Text(Text),
    Object(Told),
    /// Its members, and the index by which later parts name each.
    List(Vec<(Option<u64>, Part)>),
    /// A value that comes in one part: its digest.
    Value([u8; 32]),
}

/// What of an object's fields comes in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grows {
    /// Texts, objects and lists: the message itself.
    All,
    /// Objects: a member of a list, as a tool call.
    Objects,
    /// The text `arguments`: an object in such a member, as a function.
    Arguments,
}

impl Text {
    pub(crate) fn add(&mut self, text: &str) {
        self.bytes += text.len();
        self.digest.update(text);
    }

    /// What of the whole text is left; none if it is another text.
    pub(crate) fn rest<'a>(&self, whole: &'a str) -> Option<&'a str> {
        let (sent, left) = whole.split_at_checked(self.bytes)?;
        (Sha256::digest(sent) == self.digest.clone().finalize()).then_some(left)
    }
}

impl Told {
    /// Takes a part that is sent now, and returns it without what was sent before and stays as it is.
    pub(crate) fn tell(&mut self, part: &Map<String, Value>) -> Map<String, Value> {
        self.take(part, Grows::All)
    }

    /// What of the whole message is left; none if what was sent is of another.
    pub(crate) fn rest(&self, whole: &Map<String, Value>) -> Option<Map<String, Value>> {
        let mut left = Map::new();
        let sent_is_there = self.0.keys().all(|name| whole.get(name).is_some_and(|value| !value.is_null()));
        for (name, value) in whole.iter().filter(|(_, value)| !value.is_null()) {
            let rest = match (self.0.get(name), value) {
                (None, Value::Array(list)) => members(name, &[], list)?.map(Value::from),
                (None, _) => Some(value.clone()),
                (Some(Part::Text(sent)), Value::String(text)) => {
                    Some(sent.rest(text)?).filter(|left| !left.is_empty()).map(Value::from)
                }
                (Some(Part::Object(sent)), Value::Object(object)) => filled(sent.rest(object)?),
                (Some(Part::List(sent)), Value::Array(list)) => members(name, sent, list)?.map(Value::from),
                (Some(Part::Value(sent)), _) if *sent == digest(value) => None,
                _ => return None,
            };
            left.extend(rest.map(|rest| (name.clone(), rest)));
        }
        sent_is_there.then_some(left)
    }

    fn take(&mut self, part: &Map<String, Value>, grows: Grows) -> Map<String, Value> {
        let mut sent = Map::new();
        for (name, value) in part.iter().filter(|(_, value)| !value.is_null()) {
            let new = match (self.0.get_mut(name), value) {
                (Some(Part::Text(told)), Value::String(text)) => {
                    told.add(text);
                    Some(value.clone())
                }
                (Some(Part::Object(told)), Value::Object(part)) => filled(told.take(part, grows.within())),
                (Some(Part::List(told)), Value::Array(parts)) => {
                    let parts: Vec<Value> = parts.iter().filter_map(|part| add(told, part)).collect();
                    (!parts.is_empty()).then(|| parts.into())
                }
                (Some(Part::Value(told)), _) if *told == digest(value) => None,
                _ => {
                    let (told, part) = Part::new(name, value, grows);
                    self.0.insert(name.clone(), told);
                    Some(part)
                }
            };
            sent.extend(new.map(|new| (name.clone(), new)));
        }
        sent
    }
}

impl Part {
    /// A field's first part, and what is to be sent of it: within a list, a member may come in several parts at once.
    fn new(name: &str, value: &Value, grows: Grows) -> (Self, Value) {
        match (value, grows) {
            (Value::String(text), _) if grows == Grows::All || (grows == Grows::Arguments && name == "arguments") => {
                let mut told = Text::default();
                told.add(text);
                (Self::Text(told), value.clone())
            }
            (Value::Object(object), Grows::All | Grows::Objects) => {
                let mut told = Told::default();
                let part = told.take(object, grows.within());
                (Self::Object(told), part.into())
            }
            (Value::Array(parts), Grows::All) => {
                let mut told = Vec::new();
                let parts: Vec<Value> = parts.iter().filter_map(|part| add(&mut told, part)).collect();
                (Self::List(told), parts.into())
            }
            _ => (Self::Value(digest(value)), value.clone()),
        }
    }
}

impl Grows {
    /// What comes in parts of an object that is a field.
    fn within(self) -> Self {
        match self {
            Self::All => Self::All,
            Self::Objects | Self::Arguments => Self::Arguments,
        }
    }
}

/// Adds a part of a list's member, and returns it without what was sent before; none if nothing is left.
fn add(told: &mut Vec<(Option<u64>, Part)>, part: &Value) -> Option<Value> {
    let index = part.get("index").and_then(Value::as_u64);
    let known = told.iter_mut().find(|(own, _)| index.is_some() && *own == index);
    match (known, part) {
        (Some((_, Part::Object(told))), Value::Object(part)) => {
            numbered(told.take(&without_index(part), Grows::Objects), index)
        }
        (_, Value::Object(object)) => {
            let mut member = Told::default();
            member.take(&without_index(object), Grows::Objects);
            told.push((index, Part::Object(member)));
            Some(part.clone())
        }
        _ => {
            told.push((None, Part::Value(digest(part))));
            Some(part.clone())
        }
    }
}

/// What of a list's members is left; none within if that is nothing, none at all if what was sent is of another list.
fn members(name: &str, sent: &[(Option<u64>, Part)], list: &[Value]) -> Option<Option<Vec<Value>>> {
    let (mut left, mut next) = (Vec::new(), 0);
    if list.len() < sent.len() {
        return None;
    }
    for (place, member) in list.iter().enumerate() {
        match (sent.get(place), member) {
            (Some((index, Part::Object(sent))), Value::Object(member)) => {
                next = index.map_or(next, |index| next.max(index + 1));
                left.extend(numbered(sent.rest(&without_index(member))?, *index));
            }
            (Some((_, Part::Value(sent))), _) if *sent == digest(member) => {}
            (Some(_), _) => return None,
            // Calls are told apart by their index in streams, and by their place in whole answers.
            (None, Value::Object(member)) if name == "tool_calls" => {
                let index = next.max(place as u64);
                next = index + 1;
                left.extend(numbered(without_index(member), Some(index)));
            }
            (None, member) => left.push(member.clone()),
        }
    }
    Some((!left.is_empty()).then_some(left))
}

fn without_index(member: &Map<String, Value>) -> Map<String, Value> {
    let fields = member.iter().filter(|(name, _)| *name != "index");
    fields.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// A part of a member that names it; none if there is nothing in it.
fn numbered(part: Map<String, Value>, index: Option<u64>) -> Option<Value> {
    let number = index.map(|index| ("index".to_owned(), index.into()));
    (!part.is_empty()).then(|| number.into_iter().chain(part).collect())
}

fn filled(object: Map<String, Value>) -> Option<Value> {
    (!object.is_empty()).then(|| object.into())
}

fn digest(value: &Value) -> [u8; 32] {
    Sha256::digest(value.to_string()).into()
}
