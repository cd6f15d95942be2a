//! Messages that come in parts: how the parts make a whole.

use serde_json::{Map, Value};

/// Adds a part to what a message has besides its text. Texts grow (`reasoning_content`, `refusal`), lists of objects with an `index`
/// grow by their objects (`tool_calls`), in which only `arguments` and texts within objects grow; all else is replaced.
pub fn merge(whole: &mut Map<String, Value>, part: &Map<String, Value>) {
    for (name, value) in part {
        match (whole.get_mut(name), value) {
            (_, Value::Null) => {}
            (Some(Value::String(whole)), Value::String(part)) => whole.push_str(part),
            (Some(Value::Array(whole)), Value::Array(parts)) => parts.iter().for_each(|part| add(whole, part)),
            (None, Value::Array(parts)) => {
                let mut list = Vec::new();
                parts.iter().for_each(|part| add(&mut list, part));
                whole.insert(name.clone(), list.into());
            }
            (Some(Value::Object(whole)), Value::Object(part)) => merge(whole, part),
            _ => drop(whole.insert(name.clone(), value.clone())),
        }
    }
}

/// Adds a part of a list's object: to the one of the same `index`, or as a new one.
fn add(list: &mut Vec<Value>, part: &Value) {
    let index = part.get("index").and_then(Value::as_u64);
    let same = |one: &&mut Value| index.is_some() && one.get("index").and_then(Value::as_u64) == index;
    let Some(Value::Object(whole)) = list.iter_mut().find(same) else { return list.push(part.clone()) };
    let Value::Object(part) = part else { return };
    for (name, value) in part {
        match (whole.get_mut(name), value) {
            (Some(Value::Object(function)), Value::Object(part)) => {
                for (name, value) in part {
                    match (function.get_mut(name), value) {
                        (Some(Value::String(whole)), Value::String(part)) if name == "arguments" => {
                            whole.push_str(part)
                        }
                        (_, Value::Null) => {}
                        _ => drop(function.insert(name.clone(), value.clone())),
                    }
                }
            }
            (_, Value::Null) => {}
            _ => drop(whole.insert(name.clone(), value.clone())),
        }
    }
}

/// A whole message as answers that are not streamed have it: the objects of its lists have no `index`.
pub fn whole(message: &Map<String, Value>) -> Map<String, Value> {
    let mut whole = message.clone();
    if let Some(Value::Array(calls)) = whole.get_mut("tool_calls") {
        for call in calls {
            if let Value::Object(call) = call {
                call.shift_remove("index");
            }
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_make_the_whole() {
        let mut message = Map::new();
        for part in [
            json!({ "reasoning_content": "I " }),
            json!({ "reasoning_content": "see", "refusal": null }),
            json!({ "tool_calls": [{ "index": 0, "id": "a", "type": "function", "function": { "name": "f", "arguments": "" } }] }),
            json!({ "tool_calls": [{ "index": 0, "function": { "arguments": "{\"x\"" } }] }),
            json!({ "tool_calls": [{ "index": 1, "id": "b", "function": { "name": "g", "arguments": "{}" } }, { "index": 0, "function": { "name": null, "arguments": ":1}" } }] }),
        ] {
            merge(&mut message, part.as_object().unwrap());
        }
        assert_eq!(
            Value::Object(whole(&message)),
            json!({ "reasoning_content": "I see", "tool_calls": [
                { "id": "a", "type": "function", "function": { "name": "f", "arguments": "{\"x\":1}" } },
                { "id": "b", "function": { "name": "g", "arguments": "{}" } },
            ] })
        );
    }
}
