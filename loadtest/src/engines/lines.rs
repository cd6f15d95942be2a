//! A file of requests of which the engine refuses some.

use serde_json::{Value, json};

use super::{Error, Ground, Kind, MODEL, Row, kills::texts, server::CONTEXT, server::Engine};

/// One of so many lines is longer than the engine takes.
const REFUSED: usize = 100;
const ANSWER_TOKENS: u32 = 4;

pub(super) async fn run(ground: &Ground<'_>, engine: &Engine) -> Result<Vec<Row>, Error> {
    let count = ground.options.lines as usize;
    let too_long = "long ".repeat(2 * CONTEXT as usize);
    let line = |(number, text): (usize, String)| {
        let content = if number % REFUSED == 7 { format!("{number} {too_long}") } else { text };
        let body = json!({ "model": MODEL, "messages": [{ "role": "user", "content": content }], "max_tokens": ANSWER_TOKENS });
        json!({ "custom_id": format!("line-{number}"), "method": "POST", "url": "/v1/chat/completions", "body": body })
            .to_string()
            + "\n"
    };
    let input: String = texts(count, 40).into_iter().enumerate().map(line).collect();
    let (from, to) = (ground.place.join("lines.jsonl"), ground.place.join("answers.jsonl"));
    std::fs::write(&from, input).map_err(|source| Error::Directory { path: from.clone(), source })?;

    let stack = ground.before(engine, "auto").await?;
    let words = ["batch", "run", "--json", &from.to_string_lossy(), &to.to_string_lossy()].map(str::to_owned);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = stack.command(&words).await?;
    stack.stop().await;
    let answers = std::fs::read_to_string(&to).unwrap_or_default();
    let answers: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).unwrap_or_default()).collect();
    let words_of_the_engine = match ground.options.engine {
        Kind::Vllm => "maximum context length",
        Kind::LlamaCpp => "exceeds the available context size",
    };
    let (errors, answered): (Vec<_>, Vec<_>) = answers.iter().partition(|line| !line["error"].is_null());
    let refused = |line: &&&Value| line["error"].to_string().contains(words_of_the_engine);
    let named = errors.iter().filter(refused).count();
    let expected = count / REFUSED + usize::from(count % REFUSED > 7);
    let mut found =
        format!("{} answers, {} errors, {named} of them in the engine's words", answered.len(), errors.len());
    if answers.is_empty() {
        found += &format!(": {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let holds = answered.len() == count - expected && errors.len() == expected && named == expected;
    let what = format!("`baton batch run` over {count} lines, {expected} of them longer than the engine's context");
    Ok(vec![Row::judged(what, found, "each answered, the refused in the engine's words", holds)])
}
