//! What chat templates expect of the template engine: they were written for Jinja in Python, as Hugging Face's libraries run it.

use chrono::DateTime;
use chrono::format::{Item, StrftimeItems};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::{globals, pycompat};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// Bytes that a filter of ours writes for one instruction's worth of fuel.
const BYTES_PER_FUEL: u64 = 4;

/// An environment with the options, functions and filters that Hugging Face's libraries render chat templates with.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(method);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> { Err(invalid(message)) });
    environment.add_function("cycler", globals::cycler);
    environment.add_function("joiner", globals::joiner);
    environment.add_filter("tojson", to_json);
    // In Python all that has a length and places.
    let is_sequence = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    Ok(environment)
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// The source without the meaning of its `generation` blocks. They mark what an assistant said, for training; what is set
/// inside is not seen outside, as in a `with` block.
pub(super) fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = next_tag(rest) {
        let (head, name, tail) = tag_name(tag);
        let replaced = match name {
            "generation" => "with",
            "endgeneration" => "endwith",
            other => other,
        };
        out.extend([before, head, replaced]);
        let end = match name {
            // Up to its end everything is text.
            "raw" => tail.find("endraw").unwrap_or(tail.len()),
            _ => expression_end(tail, "%}"),
        };
        out.push_str(&tail[..end]);
        rest = &tail[end..];
    }
    out.push_str(rest);
    out
}

/// What stands before the next tag, and what begins with it; comments and printed expressions are passed over.
fn next_tag(source: &str) -> Option<(&str, &str)> {
    let mut at = 0;
    loop {
        let open = at + source.get(at..)?.find('{')?;
        at = match source.as_bytes().get(open + 1) {
            Some(b'%') => return Some(source.split_at(open)),
            Some(b'#') => open + 2 + source[open + 2..].find("#}")?,
            Some(b'{') => open + 2 + expression_end(&source[open + 2..], "}}"),
            _ => open + 1,
        };
    }
}

/// A tag's opening, its name, and what follows.
fn tag_name(tag: &str) -> (&str, &str, &str) {
    let start = 2 + tag[2..].bytes().take_while(|byte| b"-+ \t\r\n".contains(byte)).count();
    let (head, rest) = tag.split_at(start);
    let (name, tail) = rest.split_at(rest.bytes().take_while(u8::is_ascii_alphabetic).count());
    (head, name, tail)
}

/// Where an expression ends, whatever its strings say.
pub(super) fn expression_end(text: &str, close: &str) -> usize {
    let (mut quote, mut escaped) = (None, false);
    for (at, character) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if character == '\\' => escaped = true,
            Some(open) if character == open => quote = None,
            Some(_) => {}
            None if text[at..].starts_with(close) => return at,
            None => quote = matches!(character, '"' | '\'').then_some(character),
        }
    }
    text.len()
}

/// The function `strftime_now` for a moment, in milliseconds since 1970: its date and time in UTC, in the form that
/// Python's `strftime` gives them.
pub(super) fn strftime_at(ms: u64) -> Value {
    Value::from_function(move |state: &State, format: String| -> Result<String, Error> {
        let moment = i64::try_from(ms).ok().and_then(DateTime::from_timestamp_millis);
        let moment = moment.ok_or_else(|| invalid(format!("{ms} ms after 1970 is no date")))?;
        // A time without a zone has no text for it, and microseconds for parts of a second.
        let zoneless = format.replace("%%", "%%\0").replace("%Z", "").replace("%z", "").replace("%f", "%6f");
        let items: Vec<Item<'_>> = StrftimeItems::new(&zoneless).collect();
        if items.contains(&Item::Error) {
            return Err(invalid(format!("strftime_now: {format:?} is no format of dates")));
        }
        let text = moment.format_with_items(items.into_iter()).to_string().replace('\0', "");
        state.consume_fuel(text.len() as u64 / BYTES_PER_FUEL)?;
        Ok(text)
    })
}

/// `tojson` as Hugging Face's libraries have it: Python's `json.dumps`, and nothing escaped for HTML.
fn to_json(state: &State, value: &Value, args: Kwargs) -> Result<Value, Error> {
    let ascii = args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let indent = match args.get::<Option<Value>>("indent")? {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(width) => Some(" ".repeat(usize::try_from(width)?.min(64))),
    };
    let separators = match args.get::<Option<Value>>("separators")? {
        None => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
        Some(pair) => {
            let pair = pair.try_iter()?.map(|part| part.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
            pair.and_then(|pair| pair.try_into().ok()).ok_or_else(|| invalid("tojson: separators must be two texts"))?
        }
    };
    let sorted = args.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    args.assert_all_used()?;
    if value.is_undefined() {
        return Err(invalid("an undefined value is not JSON serializable"));
    }
    let layout = Layout {
        indent: indent.as_deref().map(|indent| PrettyFormatter::with_indent(indent.as_bytes())),
        separators,
        ascii,
    };
    let mut json = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut json, layout);
    let written = match sorted {
        // The maps of this type are sorted by their keys.
        true => serde_json::to_value(value).map(sort_keys).and_then(|value| value.serialize(&mut serializer)),
        false => value.serialize(&mut serializer),
    };
    written.map_err(|error| invalid("the value is not JSON serializable").with_source(error))?;
    state.consume_fuel(json.len() as u64 / BYTES_PER_FUEL)?;
    Ok(Value::from(String::from_utf8_lossy(&json).into_owned()))
}

fn sort_keys(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Array(items) => items.into_iter().map(sort_keys).collect(),
        serde_json::Value::Object(fields) => {
            let sorted: std::collections::BTreeMap<_, _> = fields.into_iter().collect();
            serde_json::Value::Object(sorted.into_iter().map(|(key, value)| (key, sort_keys(value))).collect())
        }
        other => other,
    }
}

/// How Python's `json.dumps` writes.
struct Layout<'i> {
    indent: Option<PrettyFormatter<'i>>,
    /// Between items, and between a key and its value.
    separators: [String; 2],
    ascii: bool,
}

impl Formatter for Layout<'_> {
    fn write_f64<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, value: f64) -> std::io::Result<()> {
        writer.write_all(python_float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, text: &str) -> std::io::Result<()> {
        if !self.ascii {
            return writer.write_all(text.as_bytes());
        }
        for character in text.chars() {
            match character {
                '\0'..='\u{7e}' => write!(writer, "{character}")?,
                other => {
                    for unit in other.encode_utf16(&mut [0; 2]) {
                        write!(writer, "\\u{unit:04x}")?;
                    }
                }
            }
        }
        Ok(())
    }

    fn begin_array<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        match &mut self.indent {
            Some(pretty) => pretty.begin_array(writer),
            None => CompactFormatter.begin_array(writer),
        }
    }

    fn end_array<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        match &mut self.indent {
            Some(pretty) => pretty.end_array(writer),
            None => CompactFormatter.end_array(writer),
        }
    }

    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        self.between(writer, first)
    }

    fn end_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.indent.as_mut().map_or(Ok(()), |pretty| pretty.end_array_value(writer))
    }

    fn begin_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        match &mut self.indent {
            Some(pretty) => pretty.begin_object(writer),
            None => CompactFormatter.begin_object(writer),
        }
    }

    fn end_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        match &mut self.indent {
            Some(pretty) => pretty.end_object(writer),
            None => CompactFormatter.end_object(writer),
        }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        self.between(writer, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(self.separators[1].as_bytes())
    }

    fn end_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.indent.as_mut().map_or(Ok(()), |pretty| pretty.end_object_value(writer))
    }
}

impl Layout<'_> {
    fn between<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if !first {
            writer.write_all(self.separators[0].as_bytes())?;
        }
        // A first item has nothing before it but a new line.
        self.indent.as_mut().map_or(Ok(()), |pretty| pretty.begin_array_value(writer, true))
    }
}

/// A number as Python writes it: with an exponent of at least two digits below 0.0001 and from 10^16 on.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if value != 0.0 && !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{value:?}"),
    }
}

/// Methods of Python's texts and lists that templates use.
fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = text_method(text, method, args)
    {
        return result;
    }
    if value.kind() == ValueKind::Seq && method == "index" {
        let (wanted,): (&Value,) = from_args(args)?;
        let place = value.try_iter()?.position(|item| item == *wanted);
        return place.map(Value::from).ok_or_else(|| invalid(format!("{wanted} is not in the list")));
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

/// What [`pycompat`] lacks or has without all arguments.
fn text_method(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "split" | "rsplit" => split(text, args, method == "rsplit"),
        "partition" => one_text(args).and_then(separator).map(|at| parts(text, text.split_once(at), at, false)),
        "rpartition" => one_text(args).and_then(separator).map(|at| parts(text, text.rsplit_once(at), at, true)),
        "removeprefix" => one_text(args).map(|prefix| Value::from(text.strip_prefix(prefix).unwrap_or(text))),
        "removesuffix" => one_text(args).map(|suffix| Value::from(text.strip_suffix(suffix).unwrap_or(text))),
        "index" | "rindex" => one_text(args).and_then(|part| {
            let place = if method == "index" { text.find(part) } else { text.rfind(part) };
            let place = place.ok_or_else(|| invalid("substring not found"))?;
            Ok(Value::from(text[..place].chars().count()))
        }),
        "casefold" => from_args(args).map(|()| Value::from(text.to_lowercase())),
        "zfill" => width(args).map(|(width, _)| {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let missing = width.saturating_sub(text.chars().count());
            Value::from(format!("{sign}{}{digits}", "0".repeat(missing)))
        }),
        "ljust" | "rjust" => width(args).map(|(width, fill)| {
            let filling = fill.repeat(width.saturating_sub(text.chars().count()));
            Value::from(if method == "ljust" { format!("{text}{filling}") } else { format!("{filling}{text}") })
        }),
        _ => return None,
    })
}

fn one_text(args: &[Value]) -> Result<&str, Error> {
    from_args(args).map(|(text,): (&str,)| text)
}

fn separator(text: &str) -> Result<&str, Error> {
    if text.is_empty() { Err(invalid("empty separator")) } else { Ok(text) }
}

/// A width, which is bounded, and what to fill it with.
fn width(args: &[Value]) -> Result<(usize, &str), Error> {
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    Ok((width.min(1_000), fill.unwrap_or(" ")))
}

/// The three parts of Python's `partition`.
fn parts(text: &str, found: Option<(&str, &str)>, at: &str, from_end: bool) -> Value {
    let parts = match found {
        Some((before, after)) => [before, at, after],
        None if from_end => ["", "", text],
        None => [text, "", ""],
    };
    Value::from(Tuple::from(parts.map(Value::from)))
}

/// Python's `split` and `rsplit`: at a text or, without one, at white space; at most so often.
fn split(text: &str, args: &[Value], from_end: bool) -> Result<Value, Error> {
    let (at, most, named): (Option<&Value>, Option<i64>, Kwargs) = from_args(args)?;
    let at = at.cloned().or(named.get::<Option<Value>>("sep")?).filter(|at| !at.is_none());
    let most = most.or(named.get::<Option<i64>>("maxsplit")?);
    named.assert_all_used()?;
    // As many parts as that, one more than cuts.
    let count = most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
    let found: Vec<&str> = match &at {
        Some(at) => {
            let at = separator(at.as_str().ok_or_else(|| invalid("split: expected a text to split at"))?)?;
            match from_end {
                true => reversed(text.rsplitn(count, at)),
                false => text.splitn(count, at).collect(),
            }
        }
        None => words(text, count, from_end),
    };
    Ok(found.into_iter().map(Value::from).collect())
}

fn reversed<'t>(parts: impl Iterator<Item = &'t str>) -> Vec<&'t str> {
    let mut parts: Vec<_> = parts.collect();
    parts.reverse();
    parts
}

/// At most `count` words; the last, or from the end the first, is all that remains.
fn words(text: &str, count: usize, from_end: bool) -> Vec<&str> {
    let trim = |text| if from_end { str::trim_end(text) } else { str::trim_start(text) };
    let mut found = Vec::new();
    let mut rest = trim(text);
    while !rest.is_empty() {
        let cut = match from_end {
            true => rest.rsplit_once(char::is_whitespace).map(|(others, word)| (word, others)),
            false => rest.split_once(char::is_whitespace),
        };
        let (word, others) = cut.filter(|_| found.len() + 1 < count).unwrap_or((rest, ""));
        found.push(word);
        rest = trim(others);
    }
    if from_end {
        found.reverse();
    }
    found
}
