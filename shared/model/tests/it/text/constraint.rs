//! Answers of a given form: they have it, whatever the model would rather say, and hostile forms are refused.

use std::sync::LazyLock;

use baton_contract::job::Job;
use baton_contract::outcome::{Code, FinishReason};
use baton_contract::sampling::{Constraint, Sampling};
use baton_contract::{JobId, Name};
use baton_model::generation::{Emitted, Error, Generator};
use baton_model::model::{Model, Step};
use baton_model::sim::{self, Sim};
use serde_json::{Value, json};

use super::{BYTES, SMOLLM};

pub(super) static BYTES_GENERATOR: LazyLock<Generator> = LazyLock::new(|| Generator::new(BYTES.clone()));
static SMOLLM_GENERATOR: LazyLock<Generator> = LazyLock::new(|| Generator::new(SMOLLM.clone()));

pub fn job(sampling: Sampling) -> Job {
    let name = |text| Name::new(text).expect("a name");
    Job {
        id: JobId::new("job").expect("an id"),
        tenant: name("acme"),
        lane: name("batch"),
        model: name("m"),
        prompt: b"Say something.".iter().copied().map(u32::from).collect(),
        max_tokens: 300,
        samples: 1,
        sampling,
        stop: Vec::new(),
        deadline_ms: None,
        metadata: Default::default(),
        request_digest: String::new(),
    }
}

pub(super) fn schema(schema: Value) -> Constraint {
    Constraint::JsonSchema(schema.to_string())
}

fn sampled(constraint: Constraint, seed: u64) -> Sampling {
    Sampling { temperature: 1.5, seed, constraint: Some(constraint), ..Sampling::GREEDY }
}

/// The simulated model's answer, token by token, after what another worker has begun of it.
fn go_on(job: &Job, begun: &[Emitted]) -> Result<Vec<Emitted>, Error> {
    let options = sim::Options { layers: 1, kv_width: 2, ..sim::Options::default() };
    let mut model = Sim::new(options, 1 << 30).expect("a model");
    let sequence = model.open();
    let mut forward = |tokens: &[u32]| {
        let step = Step { sequence, tokens, logits: 1 };
        model.forward(&[step]).expect("there is room").remove(0)
    };
    let mut generation = BYTES_GENERATOR.start(job, 0)?;
    let mut logits = forward(&job.prompt);
    for emitted in begun {
        assert_eq!(generation.accept(emitted.token, emitted.logprobs.clone())?, *emitted);
        logits = forward(&[emitted.token]);
    }
    let mut answer = begun.to_vec();
    while answer.last().is_none_or(|last| last.finish.is_none()) {
        let emitted = generation.next(&logits)?;
        logits = forward(&[emitted.token]);
        answer.push(emitted);
    }
    Ok(answer)
}

fn answer(job: &Job) -> Result<Vec<Emitted>, Error> {
    go_on(job, &[])
}

fn text(emitted: &[Emitted]) -> String {
    emitted.iter().map(|emitted| emitted.text.as_str()).collect()
}

/// The answer of a model of SmolLM2's vocabulary that has no preferences: its logits are noise.
fn noise(constraint: Constraint, seed: u64) -> String {
    let job = Job { max_tokens: 3_000, ..job(sampled(constraint, seed)) };
    let mut generation = SMOLLM_GENERATOR.start(&job, 0).expect("a good constraint");
    let mut text = String::new();
    for step in 0u32.. {
        let noise = |id: u32| (id ^ step ^ (seed as u32) << 8).wrapping_mul(2_654_435_769) as f32 / 1e9;
        let logits: Vec<f32> = (0..SMOLLM.spec().vocabulary as u32).map(noise).collect();
        let emitted = generation.next(&logits).expect("the answer goes on");
        text.push_str(&emitted.text);
        if let Some(reason) = emitted.finish {
            assert_eq!(reason, FinishReason::Stop, "{text}");
            break;
        }
    }
    text
}

fn city() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "pattern": "^[A-Z][a-z]{2,8}$" },
            "kind": { "enum": ["town", "city \"of\" light", "ville é"] },
            "people": { "type": "integer", "minimum": 10, "maximum": 4321 },
            "tags": { "type": "array", "items": { "type": "string", "maxLength": 5 }, "minItems": 1, "maxItems": 3 },
            "sea": { "type": ["boolean", "null"] },
            "level": { "type": "number", "multipleOf": 0.25, "minimum": 0.5, "maximum": 9 },
            "depth": { "type": "integer", "multipleOf": 100, "minimum": 0, "maximum": 900 },
        },
        "required": ["name", "kind", "people", "tags", "sea", "level", "depth"],
        "additionalProperties": false,
    })
}

fn is_city(text: &str) {
    let found: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let keys: Vec<&str> = found.as_object().expect(text).keys().map(String::as_str).collect();
    assert_eq!(keys, ["name", "kind", "people", "tags", "sea", "level", "depth"], "in the order of the schema: {text}");
    let name = found["name"].as_str().expect(text);
    assert!((3..=9).contains(&name.len()) && name.starts_with(|c: char| c.is_ascii_uppercase()), "{text}");
    assert!(name[1..].chars().all(|c| c.is_ascii_lowercase()), "{text}");
    assert!(["town", "city \"of\" light", "ville é"].contains(&found["kind"].as_str().expect(text)), "{text}");
    assert!((10..=4321).contains(&found["people"].as_i64().expect(text)), "{text}");
    let tags = found["tags"].as_array().expect(text);
    assert!((1..=3).contains(&tags.len()), "{text}");
    assert!(tags.iter().all(|tag| tag.as_str().expect(text).chars().count() <= 5), "{text}");
    let level = found["level"].as_f64().expect(text) * 4.0;
    assert!((2.0..=36.0).contains(&level) && level.fract() == 0.0, "{text}");
    assert_eq!(found["depth"].as_i64().expect(text) % 100, 0, "{text}");
    assert!(found["sea"].is_boolean() || found["sea"].is_null(), "{text}");
}

#[test]
fn answers_fit_their_schema_for_every_seed() {
    for seed in 0..50 {
        let emitted = answer(&job(sampled(schema(city()), seed))).expect("a good schema");
        is_city(&text(&emitted));
        let last = &emitted[emitted.len() - 1];
        assert!(
            last.finish == Some(FinishReason::Stop) && BYTES.is_end(last.token),
            "only an end follows the last brace"
        );
    }
    for seed in 0..10 {
        is_city(&noise(schema(city()), seed));
    }
    let greedy = Sampling { temperature: 0.0, ..sampled(schema(city()), 0) };
    is_city(&text(&answer(&job(greedy)).expect("a good schema")));
}

#[test]
fn answers_match_their_expression_for_every_seed() {
    let expression = r"(ja|nein|[äöü]{2}/)( [0-9]{2,4})?\.";
    let matches = |text: &str| {
        let body = text.strip_suffix('.').expect(text);
        let (word, number) = body.split_once(' ').unwrap_or((body, "00"));
        let umlauts = word.strip_suffix('/').is_some_and(|word| word.chars().count() == 2 && !word.is_ascii());
        assert!(["ja", "nein"].contains(&word) || umlauts, "{text}");
        assert!((2..=4).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit()), "{text}");
    };
    for seed in 0..50 {
        matches(&text(&answer(&job(sampled(Constraint::Regex(expression.into()), seed))).expect("a good expression")));
    }
    for seed in 0..10 {
        matches(&noise(Constraint::Regex(expression.into()), seed));
    }
}

#[test]
fn any_object_begins_as_one_and_does_not_idle() {
    for seed in 0..5 {
        let text = text(&answer(&job(sampled(Constraint::JsonObject, seed))).expect("a good constraint"));
        assert!(text.trim_start().starts_with('{') && text.find('{') < Some(33), "{text}");
    }
}

/// Prefill chooses the first token, and decode goes on from there, perhaps for the second time.
#[test]
fn an_answer_goes_on_where_another_worker_began_it() {
    let rules = Sampling { repetition_penalty: 1.3, frequency_penalty: 0.5, logprobs: Some(2), ..Sampling::GREEDY };
    let job = job(Sampling { temperature: 1.5, constraint: Some(schema(city())), ..rules });
    let straight = answer(&job).expect("a good schema");
    for begun in [1, 2, 20, straight.len() - 1] {
        assert_eq!(go_on(&job, &straight[..begun]).expect("it goes on"), straight);
    }
    // Neither a token that doesn't fit nor an end that comes too early is taken from anyone.
    for token in [u32::from(b'x'), 256] {
        let refused = BYTES_GENERATOR.start(&job, 0).expect("a good schema").accept(token, None);
        assert!(matches!(&refused, Err(Error::Constraint(_))), "{refused:?}");
    }
}

#[test]
fn logprobs_are_the_models_own() {
    let told = |sampling: Sampling| answer(&job(Sampling { logprobs: Some(3), ..sampling })).expect("no constraint");
    let greedy = told(Sampling::GREEDY);
    for emitted in &greedy {
        let logprobs = emitted.logprobs.as_ref().expect("they were asked for");
        let [best, second, third] = &logprobs.top_logprobs[..] else { panic!("{logprobs:?}") };
        assert_eq!((&logprobs.chosen, best.id), (best, emitted.token));
        assert_eq!(
            (best.bytes.as_slice(), best.token.as_bytes()),
            (&[emitted.token as u8][..], &[emitted.token as u8][..])
        );
        assert!(best.logprob > second.logprob && second.logprob >= third.logprob);
        let sum: f32 = logprobs.top_logprobs.iter().map(|alternative| alternative.logprob.exp()).sum();
        assert!(sum <= 1.0 && best.logprob < 0.0, "{logprobs:?}");
    }
    // What the rules choose in its place is told as the model has it.
    let banned = told(Sampling { logit_bias: vec![(greedy[0].token, -100.0)], ..Sampling::GREEDY });
    let (before, after) = (greedy[0].logprobs.as_ref().expect("told"), banned[0].logprobs.as_ref().expect("told"));
    assert_eq!(after.top_logprobs, before.top_logprobs);
    assert_eq!(after.chosen, before.top_logprobs[1]);
}

fn refusal(sampling: Sampling) -> (Code, String) {
    let failure = BYTES_GENERATOR.start(&job(sampling), 0).err().expect("it is refused").failure();
    (failure.code, failure.message)
}

#[test]
fn what_can_not_be_followed_is_refused_by_its_path() {
    let constrained = |constraint| Sampling { constraint: Some(constraint), ..Sampling::GREEDY };
    let regex = |text: &str| constrained(Constraint::Regex(text.into()));
    let cases = [
        (constrained(schema(json!({ "type": "thing" }))), "response_format.json_schema.schema: "),
        (constrained(schema(json!({ "$ref": "https://example.com/a.json" }))), "response_format.json_schema.schema: "),
        (constrained(schema(json!({ "type": "string", "enum": [1] }))), "nsatisfiable"),
        (constrained(schema(json!({ "minimum": 3, "maximum": 2, "type": "integer" }))), "nsatisfiable"),
        (constrained(schema(json!({ "type": "string", "pattern": "(" }))), "response_format.json_schema.schema: "),
        (regex("("), "structured_outputs.regex: "),
        (regex("a\\"), "half an escape"),
        (regex("(?=a)b"), "structured_outputs.regex: "),
        (regex("[^\\s\\S]"), "structured_outputs.regex: "),
        (constrained(schema(json!({ "multipleOf": 99_991 }))), "multipleOf: "),
        (constrained(schema(json!({ "multipleOf": 0.0000001 }))), "multipleOf: "),
        (
            constrained(schema(json!({ "allOf": [{ "pattern": "a" }], "items": vec![json!({ "pattern": "b" }); 4] }))),
            "`pattern`",
        ),
        (constrained(schema(json!({ "enum": vec![json!([]); 3_000] }))), "at most 2000 objects"),
        (Sampling { logit_bias: vec![(999, 1.0)], ..Sampling::GREEDY }, "logit_bias: token id 999"),
        (Sampling { logprobs: Some(u32::MAX), ..Sampling::GREEDY }, "top_logprobs: "),
    ];
    for (sampling, part) in cases {
        let shown = format!("{:?}", sampling.constraint);
        let (code, message) = refusal(sampling);
        assert_eq!(code, Code::InvalidValue);
        assert!(message.contains(part) && !message.contains('<'), "{shown}: {message}");
    }
}

/// A form whose grammar would take endless time or memory costs no more than its bounds allow.
#[test]
fn hostile_forms_are_refused_or_harmless() {
    let many = |count: usize, each: &dyn Fn(usize) -> Value| (0..count).map(each).collect::<Vec<_>>();
    let mut nested = json!({ "type": "string" });
    for _ in 0..60 {
        nested = json!({ "type": "object", "properties": { "a": nested, "b": { "type": "integer" } } });
    }
    let wide: serde_json::Map<String, Value> = (0..3_000)
        .map(|key| (format!("k{key}"), json!({ "type": "string", "pattern": format!("^x{{{key}}}$") })))
        .collect();
    let mut doubling = json!({ "a0": { "type": "string", "maxLength": 9 } });
    for level in 1..40 {
        let below = json!({ "$ref": format!("#/$defs/a{}", level - 1) });
        doubling[format!("a{level}")] = json!({ "allOf": [below, { "anyOf": [below, { "type": "string" }] }] });
    }
    let hostile = [
        Constraint::Regex("(a{1000}){1000}".into()),
        Constraint::Regex("((((a{0,99}){0,99}){0,99}){0,99}){0,99}".into()),
        Constraint::Regex("(.*a){200}".into()),
        Constraint::Regex("(a|b|ab)*c{1000}(.{0,500}x){9}".into()),
        Constraint::Regex(format!("{}a{}", "(".repeat(2_000), ")".repeat(2_000))),
        Constraint::Regex("a|".repeat(2_000) + "b"),
        schema(json!({ "enum": many(6_000, &|i| json!(format!("{i:08x}"))) })),
        schema(
            json!({ "anyOf": many(2_000, &|i| json!({ "type": "object", "properties": { format!("k{i}"): {} } })) }),
        ),
        schema(json!({ "type": "string", "minLength": 1_000_000, "maxLength": 2_000_000 })),
        schema(json!({ "type": "array", "items": { "type": "integer" }, "minItems": 1_000_000 })),
        schema(json!({ "type": "array", "items": { "type": "integer" }, "maxItems": 10_000_000 })),
        schema(json!({ "type": "object", "properties": wide })),
        schema(json!({ "type": "object", "additionalProperties": { "type": "integer" }, "minProperties": 100_000 })),
        schema(json!({ "type": "integer", "multipleOf": 99_999_999 })),
        schema(json!({ "type": "integer", "multipleOf": 19_997 })),
        schema(json!({ "type": "number", "multipleOf": 1e-9 })),
        schema(json!({ "anyOf": many(60, &|i| json!({ "type": "integer", "multipleOf": 9_001 + i })) })),
        schema(json!({ "type": "integer", "minimum": -9e18, "maximum": 9e18, "multipleOf": 9_999 })),
        schema(json!({ "type": "number", "minimum": 1e-300, "maximum": 1e300 })),
        schema(
            json!({ "allOf": many(30, &|i| json!({ "type": "string", "pattern": format!("(a|b.){{{i},99}}b.*c") })) }),
        ),
        schema(
            json!({ "allOf": many(4, &|i| json!({ "type": "string", "pattern": format!(".*([a-m].{{2}}|[c-z].{{{i}}}|.*x.{{9}}y)+") })) }),
        ),
        schema(
            json!({ "type": "string", "pattern": "^(([^,]*,){50}x|.{900}y)*$", "minLength": 500, "maxLength": 999 }),
        ),
        schema(json!({ "$ref": "#" })),
        schema(json!({ "allOf": [{ "$ref": "#" }, { "$ref": "#" }] })),
        schema(json!({ "$defs": doubling, "$ref": "#/$defs/a39" })),
        schema(
            json!({ "allOf": many(12, &|i| json!({ "anyOf": many(4, &|j| json!({ "properties": { format!("k{i}x{j}"): {} } })) })) }),
        ),
        schema(nested),
    ];
    for constraint in hostile {
        let shown: String = format!("{constraint:?}").chars().take(90).collect();
        let job = Job { max_tokens: 40, ..job(sampled(constraint, 1)) };
        // Refused at once, stuck at a bound, or an answer: all are well, and none takes long.
        match answer(&job) {
            Ok(emitted) => assert!(!emitted.is_empty(), "{shown}"),
            Err(error) => assert!(error.failure().message.len() < 2_100, "{shown}: {error}"),
        }
    }
}
