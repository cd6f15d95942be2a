//! Reads one table of a pipeline: each accessor takes a key and notes what is wrong with it instead of failing.
//!
//! What an accessor gives after noting a problem is never seen, for such a pipeline has no plan.

use core::net::IpAddr;
use std::{cell::RefCell, collections::BTreeMap, fmt::Display, ops::RangeInclusive, time::Duration};

use baton_contract::{Name, without_secrets};
use toml::{Table, Value};

use crate::{Bytes, Problem};

/// What the sections of one pipeline share.
pub(crate) struct Reader {
    texts: BTreeMap<String, String>,
    pub(crate) problems: RefCell<Vec<Problem>>,
}

impl Reader {
    pub(crate) fn new(texts: BTreeMap<String, String>) -> Self {
        Self { texts, problems: RefCell::default() }
    }

    /// Notes a problem with `key`, and which variable or override set it, if one did.
    pub(crate) fn note(&self, key: &str, message: impl Display) {
        let origin = match self.texts.get(key) {
            Some(origin) if origin.starts_with(crate::ENVIRONMENT_PREFIX) => format!(" (set by {origin})"),
            Some(_) => " (set on the command line)".into(),
            None => String::new(),
        };
        self.problems.borrow_mut().push(Problem { key: key.into(), message: format!("{message}{origin}") });
    }
}

/// One table. Call [`Section::finish`] when all its keys have been asked for.
pub(crate) struct Section<'r> {
    pub(crate) reader: &'r Reader,
    path: String,
    table: Table,
    asked: Vec<String>,
    /// It should have been a table and is none, which has been noted once.
    broken: bool,
}

impl<'r> Section<'r> {
    pub(crate) fn root(reader: &'r Reader, table: Table) -> Self {
        Self { reader, path: String::new(), table, asked: Vec::new(), broken: false }
    }

    /// The full path of a key of this table.
    pub(crate) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }

    pub(crate) fn note(&self, key: &str, message: impl Display) {
        self.reader.note(&self.path(key), message);
    }

    /// The names of the keys that the table holds.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.table.keys().cloned().collect()
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether the table holds a key that it may leave out.
    pub(crate) fn may_have(&mut self, key: &str) -> bool {
        self.asked.push(key.into());
        self.has(key)
    }

    /// The table under `key`, empty if there is none.
    pub(crate) fn table(&mut self, key: &str) -> Section<'r> {
        let (table, broken) = match self.take(key) {
            Some(Value::Table(table)) => (table, false),
            Some(other) => {
                self.note(key, format!("expected a table, found {}", shown(&other)));
                (Table::new(), true)
            }
            None => (Table::new(), self.broken),
        };
        Section { reader: self.reader, path: self.path(key), table, asked: Vec::new(), broken }
    }

    pub(crate) fn integer(&mut self, key: &str, range: RangeInclusive<usize>) -> usize {
        let expected = format!("an integer from {} to {}", range.start(), range.end());
        let parse = |value: &Value, text: bool| match value {
            Value::Integer(number) => usize::try_from(*number).ok(),
            Value::String(number) if text => number.trim().parse().ok(),
            _ => None,
        };
        self.required(key, &expected, |value, text| parse(value, text).filter(|n| range.contains(n)))
            .unwrap_or_default()
    }

    pub(crate) fn number(&mut self, key: &str, range: RangeInclusive<f64>) -> f64 {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.float(key, &expected, |number| range.contains(&number))
    }

    fn float(&mut self, key: &str, expected: &str, accept: impl Fn(f64) -> bool) -> f64 {
        let parse = |value: &Value, text: bool| match value {
            Value::Float(number) => Some(*number),
            Value::Integer(number) => Some(*number as f64),
            Value::String(number) if text => number.trim().parse().ok(),
            _ => None,
        };
        self.required(key, expected, |value, text| parse(value, text).filter(|number| accept(*number)))
            .unwrap_or_default()
    }

    /// A share of something: above 0, at most 1.
    pub(crate) fn fraction(&mut self, key: &str) -> f64 {
        self.float(key, "a number above 0 and at most 1", |number| number > 0.0 && number <= 1.0)
    }

    pub(crate) fn bytes(&mut self, key: &str) -> Bytes {
        self.required(key, "a size from 1MiB to 1024TiB such as \"2GiB\"", |value, _| Bytes::parse(value.as_str()?))
            .unwrap_or_default()
    }

    pub(crate) fn duration(&mut self, key: &str, range: RangeInclusive<Duration>) -> Duration {
        let (from, to) = (humantime::format_duration(*range.start()), humantime::format_duration(*range.end()));
        let expected = format!("a duration from {from} to {to} such as \"90s\"");
        self.required(key, &expected, |value, _| {
            humantime::parse_duration(value.as_str()?).ok().filter(|duration| range.contains(duration))
        })
        .unwrap_or_default()
    }

    pub(crate) fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        self.required(key, &names.join(" or "), |value, _| {
            let found = value.as_str()?;
            choices.iter().find(|(name, _)| *name == found).map(|(_, choice)| *choice)
        })
    }

    pub(crate) fn flag(&mut self, key: &str) -> Option<bool> {
        self.required(key, "true or false", |value, text| match value {
            Value::Boolean(flag) => Some(*flag),
            Value::String(flag) if text => flag.trim().parse().ok(),
            _ => None,
        })
    }

    /// A list of ranges of addresses, or a single one.
    pub(crate) fn ranges(&mut self, key: &str) -> Vec<String> {
        let is_range = |text: &String| {
            let (address, bits) = text.split_once('/').unwrap_or((text, "0"));
            let most = match address.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => 32,
                Ok(IpAddr::V6(_)) => 128,
                Err(_) => return false,
            };
            bits.parse::<u8>().is_ok_and(|bits| bits <= most)
        };
        let expected = "a list of ranges of addresses such as \"10.0.0.0/8\"";
        self.required(key, expected, |value, text| strings(value, text).filter(|texts| texts.iter().all(is_range)))
            .unwrap_or_default()
    }

    /// A list of names or addresses of hosts without ports, or a single one.
    pub(crate) fn hosts(&mut self, key: &str) -> Vec<String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let is_host = |text: &String| !text.is_empty() && (text.chars().all(plain) || text.parse::<IpAddr>().is_ok());
        let expected = "a list of hosts without ports such as \"baton.example.org\"";
        self.required(key, expected, |value, text| strings(value, text).filter(|texts| texts.iter().all(is_host)))
            .unwrap_or_default()
    }

    /// A list of origins as browsers name them, or a single one; `*` is all of them.
    pub(crate) fn origins(&mut self, key: &str) -> Vec<String> {
        let is_origin = |text: &String| {
            let authority = text.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https"));
            let bare = |authority: &str| {
                let foreign = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '?' | '#' | '@' | '*');
                !authority.is_empty() && !authority.contains(foreign)
            };
            text == "*" || authority.is_some_and(|(_, authority)| bare(authority))
        };
        let expected = "a list of origins such as \"https://app.example.org\", or \"*\"";
        self.required(key, expected, |value, text| strings(value, text).filter(|texts| texts.iter().all(is_origin)))
            .unwrap_or_default()
    }

    /// A list of `http://` or `https://` URLs without repetitions, or a single one.
    pub(crate) fn urls(&mut self, key: &str) -> Vec<String> {
        let is_url = |text: &String| {
            let rest = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
            let foreign = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#');
            rest.is_some_and(|rest| rest.starts_with(|c: char| c != '/') && !rest.contains(foreign))
        };
        let expected = "a list of http:// or https:// URLs such as \"http://127.0.0.1:8000\"";
        let parse =
            |value: &Value, text| strings(value, text).filter(|texts| !texts.is_empty() && texts.iter().all(is_url));
        let mut urls = self.required(key, expected, parse).unwrap_or_default();
        let all = urls.len();
        urls.sort();
        urls.dedup();
        if urls.len() < all {
            self.note(key, "a URL is there twice");
        }
        urls
    }

    /// `"auto"`, or a number.
    pub(crate) fn auto_or(&mut self, key: &str, range: RangeInclusive<usize>) -> Option<usize> {
        let expected = format!("\"auto\" or an integer from {} to {}", range.start(), range.end());
        let parse = |value: &Value, text: bool| match value {
            Value::Integer(number) => usize::try_from(*number).ok(),
            Value::String(number) if text => number.trim().parse().ok(),
            _ => None,
        };
        let read = self.required(key, &expected, |value, text| match value.as_str() {
            Some("auto") => Some(None),
            _ => parse(value, text).filter(|count| range.contains(count)).map(Some),
        });
        read.flatten()
    }

    /// A text that `accept` takes.
    pub(crate) fn text(&mut self, key: &str, expected: &str, accept: impl Fn(&str) -> bool) -> String {
        self.required(key, expected, |value, _| value.as_str().filter(|text| accept(text)).map(str::to_owned))
            .unwrap_or_default()
    }

    /// Like [`Section::text`], for a key that may be missing.
    pub(crate) fn optional_text(&mut self, key: &str, expected: &str, accept: impl Fn(&str) -> bool) -> Option<String> {
        self.may_have(key).then(|| self.text(key, expected, accept))
    }

    pub(crate) fn name(&mut self, key: &str) -> Option<Name> {
        let text = self.required(key, "a text", |value, _| value.as_str().map(str::to_owned))?;
        Name::new(&text).map_err(|error| self.note(key, error)).ok()
    }

    /// A list of names without repetitions, or a single name.
    pub(crate) fn names(&mut self, key: &str, range: RangeInclusive<usize>) -> Vec<Name> {
        let expected = format!("a list of {} to {} names", range.start(), range.end());
        let texts = self.required(key, &expected, strings).unwrap_or_default();
        let mut names = Vec::new();
        for text in &texts {
            match Name::new(text) {
                Ok(name) if names.contains(&name) => self.note(key, format!("{text:?} is there twice")),
                Ok(name) => names.push(name),
                Err(error) => self.note(key, error),
            }
        }
        if !range.contains(&texts.len()) && self.has(key) {
            self.note(key, format!("expected {expected}, found {}", texts.len()));
        }
        names
    }

    /// Notes every key that nobody has asked for.
    pub(crate) fn finish(self) {
        let unknown = self.table.keys().filter(|key| !self.asked.contains(key));
        for key in unknown {
            let known = self.asked.iter().map(String::as_str);
            self.note(key, format!("unknown key{}", suggestion(key, known)));
        }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.asked.push(key.into());
        self.table.get(key).cloned()
    }

    /// `parse` is told whether the value is the plain text of a variable or an override.
    fn required<T>(&mut self, key: &str, expected: &str, parse: impl Fn(&Value, bool) -> Option<T>) -> Option<T> {
        match self.take(key) {
            Some(value) => {
                let parsed = parse(&value, self.reader.texts.contains_key(&self.path(key)));
                if parsed.is_none() {
                    self.note(key, format!("expected {expected}, found {}", shown(&value)));
                }
                parsed
            }
            None if self.broken => None,
            None => {
                self.note(key, format!("expected {expected}, found nothing"));
                None
            }
        }
    }
}

/// `; did you mean ...?` if one of `known` is close to `found`.
pub(crate) fn suggestion<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    known
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(found, known), known))
        .filter(|(distance, known)| *distance <= 2.max(known.len() / 3))
        .min()
        .map(|(_, known)| format!("; did you mean {known:?}?"))
        .unwrap_or_default()
}

fn strings(value: &Value, text: bool) -> Option<Vec<String>> {
    match value {
        Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        Value::String(list) if text => Some(list.split(',').map(|item| item.trim().to_owned()).collect()),
        Value::String(one) => Some(vec![one.clone()]),
        _ => None,
    }
}

/// A value for people, shortened: a pipeline may hold anything.
fn shown(value: &Value) -> String {
    match value {
        Value::Table(_) => "a table".into(),
        Value::Array(_) => "a list of other things".into(),
        Value::String(text) => {
            let text = without_secrets(text);
            match text.char_indices().nth(80) {
                Some((end, _)) => format!("{:?}...", &text[..end]),
                None => format!("{text:?}"),
            }
        }
        other => other.to_string(),
    }
}
