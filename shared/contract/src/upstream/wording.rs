//! What engines call differently, and what some of them can say only in other words.

use serde_json::{Map, Value, json};

use super::{Engine, unsupported};
use crate::{outcome::Failure, request::invalid};

/// Tokens of the text that llama.cpp's penalty looks back on, so that it is of the whole text, as elsewhere.
const LOOK_BACK: u32 = 128 << 10;
/// The forms that vLLM's `structured_outputs` has, and what their older names began with.
const FORMS: [&str; 5] = ["choice", "grammar", "json", "json_object", "regex"];
const OLDER: &str = "guided_";

/// Puts what a request asks into an engine's own words.
pub(super) fn put(body: &mut Map<String, Value>, chat: bool, engine: Engine) -> Result<(), Failure> {
    match engine {
        Engine::OpenAi => Ok(()),
        Engine::Vllm => vllm(body),
        Engine::Sglang => sglang(body),
        Engine::LlamaCpp => llama_cpp(body, chat),
    }
}

fn vllm(body: &mut Map<String, Value>) -> Result<(), Failure> {
    for form in FORMS {
        let older = format!("{OLDER}{form}");
        let Some(value) = body.shift_remove(&older) else { continue };
        match body.entry("structured_outputs").or_insert_with(|| json!({})) {
            Value::Object(outputs) if !outputs.contains_key(form) => drop(outputs.insert(form.into(), value)),
            _ => return Err(invalid(format!("{older}: expected it without structured_outputs, found both"))),
        }
    }
    Ok(())
}

fn sglang(body: &mut Map<String, Value>) -> Result<(), Failure> {
    if body.get("top_k") == Some(&json!(0)) {
        body.insert("top_k".into(), json!(-1));
    }
    let Some((name, form, value)) = form(body)? else { return Ok(()) };
    let (field, value) = match form {
        "regex" => ("regex", value),
        "grammar" => ("ebnf", value),
        "choice" => ("regex", choices(&name, &value)?.map(escaped).collect::<Vec<_>>().join("|").into()),
        "json_object" => ("response_format", json!({ "type": "json_object" })),
        _ => {
            let schema = json!({ "name": "answer", "schema": schema(&name, value)? });
            ("response_format", json!({ "type": "json_schema", "json_schema": schema }))
        }
    };
    only(body, &name, field, value)
}

fn llama_cpp(body: &mut Map<String, Value>, chat: bool) -> Result<(), Failure> {
    if let Some(penalty) = body.shift_remove("repetition_penalty") {
        only(body, "repetition_penalty", "repeat_penalty", penalty)?;
        body.entry("repeat_last_n").or_insert(json!(LOOK_BACK));
    }
    // It has none to tell where none but the drawn token is asked for, and twenty where nothing is said.
    match chat {
        true if body.get("logprobs") == Some(&json!(true)) => {
            let told = body.get("top_logprobs").and_then(Value::as_u64).unwrap_or(0).max(1);
            body.insert("top_logprobs".into(), told.into());
        }
        false if body.get("logprobs") == Some(&json!(0)) => drop(body.insert("logprobs".into(), json!(1))),
        _ => {}
    }
    if body.get("tool_choice").is_some_and(Value::is_object) {
        choose_tool(body)?;
    }
    if !chat && let Some(format) = body.shift_remove("response_format") {
        let schema = match format["type"].as_str() {
            Some("text") => None,
            Some("json_object") => Some(json!({ "type": "object" })),
            Some("json_schema") => Some(format["json_schema"]["schema"].clone()),
            _ => return Err(unsupported("response_format: llama.cpp has text, json_object and json_schema")),
        };
        if let Some(schema) = schema {
            only(body, "response_format", "json_schema", schema)?;
        }
    }
    let Some((name, form, value)) = form(body)? else { return Ok(()) };
    let (field, value) = match form {
        "json" => ("json_schema", schema(&name, value)?),
        "json_object" => ("json_schema", json!({ "type": "object" })),
        "choice" => {
            let choices: Vec<String> = choices(&name, &value)?.map(|text| Value::from(text).to_string()).collect();
            ("grammar", format!("root ::= {}", choices.join(" | ")).into())
        }
        "regex" => return Err(unsupported(format!("{name}: llama.cpp has no regular expressions"))),
        _ => return Err(unsupported(format!("{name}: llama.cpp has grammars of its own kind, see its field grammar"))),
    };
    only(body, &name, field, value)
}

/// A tool by its name: llama.cpp knows only that some tool must be called, so it is told of this one alone.
fn choose_tool(body: &mut Map<String, Value>) -> Result<(), Failure> {
    let choice = &body["tool_choice"];
    if choice["type"] != "function" {
        return Err(unsupported("tool_choice: llama.cpp has none, auto, required, and functions by their names"));
    }
    let name = choice["function"]["name"].clone();
    let tools = body.get_mut("tools").and_then(Value::as_array_mut);
    let tools = tools.ok_or_else(|| invalid("tool_choice: expected tools with it, found none".into()))?;
    tools.retain(|tool| tool["function"]["name"] == name);
    if tools.is_empty() {
        return Err(invalid(format!("tool_choice: expected the name of one of the tools, found {name}")));
    }
    body.insert("tool_choice".into(), "required".into());
    Ok(())
}

/// Takes out the form that vLLM's words ask for: the field's name, which form it is, and how it is.
fn form(body: &mut Map<String, Value>) -> Result<Option<(String, &'static str, Value)>, Failure> {
    let mut found = None;
    let mut add = |name: String, form, value| match found.replace((name, form, value)) {
        None => Ok(()),
        Some((other, ..)) => Err(invalid(format!("{other}: expected no other form, found two"))),
    };
    for form in FORMS {
        if let Some((name, value)) = body.shift_remove_entry(&format!("{OLDER}{form}")) {
            add(name, form, value)?;
        }
    }
    match body.shift_remove("structured_outputs") {
        None => {}
        Some(Value::Object(outputs)) => {
            for (name, value) in outputs.into_iter().filter(|(_, value)| !value.is_null()) {
                let path = format!("structured_outputs.{name}");
                match FORMS.into_iter().find(|form| *form == name) {
                    Some(form) => add(path, form, value)?,
                    None => return Err(unsupported(format!("{path}: the engine has no such form"))),
                }
            }
        }
        Some(_) => return Err(invalid("structured_outputs: expected an object, found another value".into())),
    }
    Ok(found)
}

/// Sets a field that something else may have set.
fn only(body: &mut Map<String, Value>, name: &str, field: &str, value: Value) -> Result<(), Failure> {
    match body.insert(field.into(), value) {
        None => Ok(()),
        Some(_) => Err(invalid(format!("{name}: expected it without {field}, found both"))),
    }
}

/// A schema, which may be written as a text.
fn schema(name: &str, value: Value) -> Result<Value, Failure> {
    match value {
        Value::String(text) => {
            serde_json::from_str(&text).map_err(|error| invalid(format!("{name}: expected a JSON schema: {error}")))
        }
        schema => Ok(schema),
    }
}

fn choices<'a>(name: &str, value: &'a Value) -> Result<impl Iterator<Item = &'a str>, Failure> {
    let texts = value.as_array().filter(|list| !list.is_empty() && list.iter().all(Value::is_string));
    let texts = texts.ok_or_else(|| invalid(format!("{name}: expected a list of texts")))?;
    Ok(texts.iter().filter_map(Value::as_str))
}

/// A text as a regular expression that matches it alone.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if c.is_ascii_punctuation() {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
