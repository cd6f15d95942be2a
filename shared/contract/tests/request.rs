//! The public request: what is taken, and what is refused by which words.

use std::collections::BTreeSet;

use baton_contract::{
    JobId, Name,
    outcome::{Code, Failure},
    request::{Checked, Input, MAX_LOGIT_BIAS, parse},
    sampling::{Constraint, Sampling},
};
use serde_json::{Value, json};

fn parse_text(text: &str) -> Result<Checked, Failure> {
    parse(text.as_bytes(), &Name::new("batch").unwrap(), 1_000)
}

#[test]
fn bad_requests_are_told_by_code_and_field() {
    let cases: &[(&str, Code, &str)] = &[
        ("{", Code::InvalidJson, "EOF"),
        (r#"{"prompt":"a"} x"#, Code::InvalidJson, "trailing"),
        (r#"{"prompt":"a","best_of":2}"#, Code::UnknownField, "unknown field `best_of`"),
        (r#"{"prompt":"a","n":0}"#, Code::InvalidValue, "n: expected 1 to 16, found 0"),
        (r#"{"prompt":"a","n":17}"#, Code::InvalidValue, "n: expected 1 to 16, found 17"),
        (r#"{"prompt":"a","max_tokens":"b"}"#, Code::InvalidValue, "max_tokens"),
        (r#"{"prompt":{}}"#, Code::InvalidValue, "prompt"),
        (r#"{"prompt":""}"#, Code::EmptyPrompt, "empty"),
        (r#"{"messages":[]}"#, Code::EmptyPrompt, "empty"),
        ("{}", Code::EmptyPrompt, "neither"),
        (r#"{"prompt":"a","messages":[{"role":"user","content":"a"}]}"#, Code::InvalidValue, "both"),
        (r#"{"prompt":"a","model":"../x"}"#, Code::UnknownModel, "../x"),
        (r#"{"prompt":"a","id":"a.b"}"#, Code::InvalidValue, "id:"),
        (r#"{"prompt":"a","lane":"other"}"#, Code::InvalidValue, "lane"),
        (r#"{"prompt":"a","max_tokens":0}"#, Code::InvalidValue, "max_tokens"),
        (r#"{"prompt":"a","temperature":2.5}"#, Code::InvalidValue, "temperature"),
        (r#"{"prompt":"a","top_p":0}"#, Code::InvalidValue, "top_p"),
        (r#"{"prompt":"a","min_p":1.5}"#, Code::InvalidValue, "min_p: expected 0 to 1, found 1.5"),
        (r#"{"prompt":"a","repetition_penalty":0}"#, Code::InvalidValue, "repetition_penalty: expected above 0"),
        (r#"{"prompt":"a","presence_penalty":-3}"#, Code::InvalidValue, "presence_penalty: expected -2 to 2"),
        (r#"{"prompt":"a","frequency_penalty":3}"#, Code::InvalidValue, "frequency_penalty"),
        (r#"{"prompt":"a","frequency_penalty":1e39}"#, Code::InvalidValue, "frequency_penalty"),
        (r#"{"prompt":"a","logit_bias":{"x":1}}"#, Code::InvalidValue, "logit_bias: expected token ids as keys"),
        (r#"{"prompt":"a","logit_bias":{"07":1}}"#, Code::InvalidValue, "\"07\""),
        (r#"{"prompt":"a","logit_bias":{"7":101}}"#, Code::InvalidValue, "logit_bias.7: expected -100 to 100"),
        (r#"{"prompt":"a","logit_bias":{"7":"a"}}"#, Code::InvalidValue, "logit_bias.7"),
        (r#"{"prompt":"a","logprobs":true,"top_logprobs":21}"#, Code::InvalidValue, "top_logprobs: expected 0 to 20"),
        (r#"{"prompt":"a","top_logprobs":1}"#, Code::InvalidValue, "top_logprobs: expected `logprobs`"),
        (r#"{"prompt":"a","response_format":{"type":"xml"}}"#, Code::InvalidValue, "response_format.type"),
        (r#"{"prompt":"a","response_format":{"type":"json_schema"}}"#, Code::InvalidValue, "found none"),
        (
            r#"{"prompt":"a","response_format":{"type":"json_schema","json_schema":{"name":"a"}}}"#,
            Code::InvalidValue,
            "response_format.json_schema: missing field `schema`",
        ),
        (
            r#"{"prompt":"a","response_format":{"type":"json_schema","json_schema":{"schema":[]}}}"#,
            Code::InvalidValue,
            "response_format.json_schema.schema: expected an object",
        ),
        (
            r#"{"prompt":"a","response_format":{"type":"text","json_schema":{"schema":{}}}}"#,
            Code::InvalidValue,
            "type \"json_schema\" only",
        ),
        (r#"{"prompt":"a","response_format":{"type":"text","a":1}}"#, Code::UnknownField, "unknown field `a`"),
        (r#"{"prompt":"a","structured_outputs":{"regex":""}}"#, Code::InvalidValue, "regex: expected 1 to 4096"),
        (r#"{"prompt":"a","structured_outputs":{"choice":[]}}"#, Code::UnknownField, "choice"),
        (
            r#"{"prompt":"a","response_format":{"type":"json_object"},"structured_outputs":{"regex":"a"}}"#,
            Code::InvalidValue,
            "found both",
        ),
        (r#"{"prompt":"a","stop":[""]}"#, Code::InvalidValue, "stop"),
        (r#"{"prompt":"a","deadline":-1}"#, Code::InvalidValue, "deadline"),
        (r#"{"prompt":"a","deadline":"soon"}"#, Code::InvalidValue, "deadline"),
    ];
    for (text, code, part) in cases {
        let failure = parse_text(text).expect_err(text);
        assert_eq!(failure.code, *code, "{text}: {}", failure.message);
        assert!(failure.message.contains(part), "{text}: {}", failure.message);
    }
    assert_eq!(parse(b"\xff", &Name::new("batch").unwrap(), 0).unwrap_err().code, Code::InvalidUtf8);
}

#[test]
fn a_hostile_name_does_not_fill_the_error() {
    let failure = parse_text(&format!(r#"{{"prompt":"a","{}":1}}"#, "x".repeat(1 << 20))).unwrap_err();
    assert_eq!(failure.code, Code::UnknownField);
    assert!(failure.message.len() < 3_000);
}

#[test]
fn deadlines_are_relative_to_acceptance_or_absolute() {
    assert_eq!(parse_text(r#"{"prompt":"a","deadline":1.5}"#).unwrap().deadline_ms, Some(2_500));
    let at = parse_text(r#"{"prompt":"a","deadline":"1970-01-01T00:00:09Z"}"#).unwrap();
    assert_eq!(at.deadline_ms, Some(9_000));
}

#[test]
fn a_seed_is_drawn_from_the_id_when_none_is_given() {
    let checked = parse_text(r#"{"prompt":"a","temperature":1}"#).unwrap();
    let (a, b) = (JobId::new("a").unwrap(), JobId::new("b").unwrap());
    assert_eq!(checked.sampling(&a), checked.sampling(&a));
    assert_ne!(checked.sampling(&a).seed, checked.sampling(&b).seed);
    assert_eq!(parse_text(r#"{"prompt":"a","seed":7}"#).unwrap().sampling(&a).seed, 7);
}

#[test]
fn each_of_several_answers_has_a_seed_of_its_own() {
    let id = JobId::new("a").unwrap();
    assert_eq!(parse_text(r#"{"prompt":"a"}"#).unwrap().n, 1);
    let checked = parse_text(r#"{"prompt":"a","n":16,"seed":7,"temperature":1}"#).unwrap();
    assert_eq!(checked.n, 16);
    let sampling = checked.sampling(&id);
    assert_eq!(sampling.of_choice(0), sampling);
    let seeds: std::collections::BTreeSet<u64> = (0..16).map(|choice| sampling.of_choice(choice).seed).collect();
    assert_eq!(seeds.len(), 16);
    assert_eq!(Sampling { seed: 7, ..sampling.of_choice(3) }, sampling);
    // What a job's answers are must not change from one release to the next.
    assert_eq!(sampling.of_choice(1).seed, 4970873195092384714);
}

/// One list of a request's fields, one of what they come to: a new field is missing in both, or in none.
#[test]
fn all_sampling_fields_arrive() {
    let id = JobId::new("a").unwrap();
    let bare = parse_text(r#"{"prompt":"a","seed":0}"#).unwrap();
    assert_eq!(bare.sampling(&id), Sampling::GREEDY);
    let full = parse_text(
        r#"{"prompt":"a","temperature":0.5,"top_k":4,"top_p":0.25,"min_p":0.125,"repetition_penalty":1.5,
            "presence_penalty":-1,"frequency_penalty":2,"logit_bias":{"10":1,"9":-100},"logprobs":true,"top_logprobs":3,
            "seed":6,"response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,
            "schema":{"type":"object","properties":{"z":{},"a":{}}}}}}"#,
    );
    let schema = r#"{"type":"object","properties":{"z":{},"a":{}},"additionalProperties":false}"#;
    assert_eq!(
        full.unwrap().sampling(&id),
        Sampling {
            temperature: 0.5,
            top_k: 4,
            top_p: 0.25,
            min_p: 0.125,
            repetition_penalty: 1.5,
            presence_penalty: -1.0,
            frequency_penalty: 2.0,
            logit_bias: vec![(9, -100.0), (10, 1.0)],
            // In the order they were written in.
            constraint: Some(Constraint::JsonSchema(schema.into())),
            logprobs: Some(3),
            seed: 6,
        }
    );
    let other = |fields: &str| parse_text(&format!(r#"{{"prompt":"a",{fields}}}"#)).unwrap().sampling(&id);
    assert_eq!(other(r#""logprobs":true"#).logprobs, Some(0));
    assert_eq!(other(r#""logprobs":false,"top_logprobs":0"#).logprobs, None);
    assert_eq!(other(r#""response_format":{"type":"text"}"#).constraint, None);
    assert_eq!(other(r#""response_format":{"type":"json_object"}"#).constraint, Some(Constraint::JsonObject));
    let regex = Some(Constraint::Regex("a+".into()));
    assert_eq!(other(r#""response_format":{"type":"text"},"structured_outputs":{"regex":"a+"}"#).constraint, regex);
}

/// What `strict` makes of a schema.
fn closed(schema: Value) -> Result<Value, Failure> {
    let format = json!({ "type": "json_schema", "json_schema": { "strict": true, "schema": schema } });
    let request = json!({ "prompt": "a", "response_format": format });
    let sampling = parse_text(&request.to_string())?.sampling(&JobId::new("a").unwrap());
    match sampling.constraint {
        Some(Constraint::JsonSchema(text)) => Ok(serde_json::from_str(&text).unwrap()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn strict_schemas_have_the_declared_keys_only() {
    let object = |keys: &[&str]| {
        let properties: serde_json::Map<String, Value> =
            keys.iter().map(|key| ((*key).to_owned(), json!({}))).collect();
        json!({ "type": "object", "properties": properties })
    };
    let shut = |mut schema: Value| {
        schema["additionalProperties"] = json!(false);
        schema
    };
    // Wherever schemas are, and nowhere else.
    let holding = |of: &dyn Fn(&[&str]) -> Value| {
        json!({
            "$defs": { "properties": of(&["d"]) },
            "type": ["object", "null"],
            "properties": {
                "a": { "type": "array", "items": of(&["i"]), "prefixItems": [of(&["p"])] },
                "additionalProperties": { "anyOf": [of(&["x"]), { "$ref": "#/$defs/properties" }, { "type": "null" }] },
                "c": { "const": object(&["k"]) },
                "e": { "type": "object", "enum": [{ "type": "object" }] },
            },
            "patternProperties": { "^z": of(&[]) },
            "default": object(&["k"]),
        })
    };
    assert_eq!(closed(holding(&object)).unwrap(), shut(holding(&|keys| shut(object(keys)))));
    assert_eq!(closed(json!({ "type": "object" })).unwrap(), shut(json!({ "type": "object" })));
    // What a schema says of other keys remains.
    for more in [json!(true), json!({ "type": "integer" })] {
        let said = json!({ "type": "object", "additionalProperties": more });
        assert_eq!(closed(said.clone()).unwrap(), said);
    }
    // Without `strict` nothing changes.
    let open = format!(
        r#"{{"prompt":"a","response_format":{{"type":"json_schema","json_schema":{{"schema":{}}}}}}}"#,
        object(&["a"])
    );
    let constraint = parse_text(&open).unwrap().sampling(&JobId::new("a").unwrap()).constraint;
    assert_eq!(constraint, Some(Constraint::JsonSchema(object(&["a"]).to_string())));
}

#[test]
fn strict_schemas_of_one_value_leave_each_other_their_keys() {
    let all = json!({
        "$defs": { "base": { "type": "object", "properties": { "a": {} } } },
        "type": "object", "properties": { "b": {} },
        "allOf": [{ "$ref": "#/$defs/base" }, { "properties": { "c": {} }, "required": ["d"] }],
        "anyOf": [{ "properties": { "e": {} } }, { "properties": { "f": {} } }],
    });
    let closed_all = closed(all).unwrap();
    let keys = |schema: &Value| -> BTreeSet<String> {
        assert_eq!(schema["additionalProperties"], json!(false), "{schema}");
        schema["properties"].as_object().unwrap().keys().cloned().collect()
    };
    let expected = |text: &str| -> BTreeSet<String> { text.chars().map(String::from).collect() };
    assert_eq!(keys(&closed_all), expected("abcdef"));
    assert_eq!(keys(&closed_all["allOf"][0]["allOf"][0]), expected("abcdef"), "the reference is replaced");
    assert_eq!(keys(&closed_all["allOf"][1]), expected("abcdef"));
    assert_eq!(keys(&closed_all["anyOf"][0]), expected("abcde"), "a choice excludes the others' keys");
    assert_eq!(keys(&closed_all["anyOf"][1]), expected("abcdf"));
    assert_eq!(keys(&closed_all["$defs"]["base"]), expected("a"));
    // A reference alone stays one, also where it is recursive.
    let list =
        json!({ "type": "object", "properties": { "next": { "anyOf": [{ "$ref": "#" }, { "type": "null" }] } } });
    assert_eq!(closed(list.clone()).unwrap()["properties"], list["properties"]);
    let endless = json!({ "type": "object", "properties": { "next": { "$ref": "#", "properties": { "more": {} } } } });
    assert!(closed(endless).unwrap_err().message.contains("at most 64 times a `$ref`"));
}

#[test]
fn schemas_regexes_and_biases_are_bounded() {
    let refused = |fields: String| parse_text(&format!(r#"{{"prompt":"a",{fields}}}"#)).unwrap_err();
    let bias: Vec<String> = (0..=MAX_LOGIT_BIAS).map(|token| format!(r#""{token}":1"#)).collect();
    let schema =
        |schema: String| format!(r#""response_format":{{"type":"json_schema","json_schema":{{"schema":{schema}}}}}"#);
    let nested = format!("{}1{}", r#"{"a":"#.repeat(500), "}".repeat(500));
    for (fields, code, part) in [
        (format!(r#""logit_bias":{{{}}}"#, bias.join(",")), Code::InvalidValue, "at most 1024 tokens"),
        (format!(r#""structured_outputs":{{"regex":"{}"}}"#, "a".repeat(5_000)), Code::InvalidValue, "found 5000"),
        (schema(format!(r#"{{"const":"{}"}}"#, "a".repeat(70_000))), Code::InvalidValue, "at most 65536 bytes"),
        (schema(nested), Code::InvalidJson, "recursion limit"),
    ] {
        let failure = refused(fields);
        assert_eq!(failure.code, code, "{failure}");
        assert!(failure.message.contains(part), "{failure}");
    }
}

#[test]
fn what_only_foreign_engines_take_is_told_by_its_path() {
    let read = |body: &str| parse(body.as_bytes(), &Name::new("batch").unwrap(), 0).unwrap();
    for (message, at) in [
        (r#"{"role":"user","content":"a","name":"b"}"#, "name"),
        (r#"{"role":"assistant","tool_calls":[]}"#, "tool_calls"),
        (r#"{"role":"assistant","content":null}"#, "content"),
        (r#"{"role":"user","content":[{"type":"text","text":"a"}]}"#, "content"),
    ] {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"a"}},{message}]}}"#);
        assert_eq!(read(&body).input, Input::Rich { at: format!("messages[1].{at}") });
    }
    let checked = read(r#"{"prompt":"a","engine":{"tools":[]}}"#);
    assert_eq!(checked.engine_field.as_deref(), Some("tools"));
}
