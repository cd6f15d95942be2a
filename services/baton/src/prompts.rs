//! Requests from the command line: flags, files and standard input become the public JSON request.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use baton_contract::{
    JobId, causes,
    objects::{self, Objects},
    request::{
        ChatMessage, Deadline, FormatKind, JsonSchema, Prompt, Request, ResponseFormat, Stop, StructuredOutputs,
    },
};
use serde::Deserialize;

/// The longest line of a JSONL file: what the broker takes as one message.
const LONGEST_LINE: u64 = baton_contract::envelope::MAX_BYTES as u64;

#[derive(clap::Args, Clone, Debug, Default)]
pub struct PromptArguments {
    /// The prompt: a question for chat models; `-` reads it from standard input
    #[arg(value_name = "TEXT", conflicts_with_all = ["messages", "jsonl"])]
    text: Option<String>,
    /// Send the text as it is, without the model's chat template
    #[arg(long, requires = "text")]
    raw: bool,
    /// A JSON file with a conversation: [{"role": "user", "content": "..."}]
    #[arg(long, value_name = "FILE", conflicts_with = "jsonl")]
    messages: Option<PathBuf>,
    /// A file of requests, one JSON object a line; `-` is standard input
    #[arg(long, value_name = "FILE")]
    jsonl: Option<PathBuf>,
    /// The job's id and idempotency key; without it a new UUID
    #[arg(long, conflicts_with = "jsonl")]
    id: Option<String>,
    /// Tokens the answer may have at most (256 without it)
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// Answers to each prompt, 1 (the default) to 16, each with a seed of its own
    #[arg(short, long, value_name = "N")]
    n: Option<u32>,
    /// 0 is greedy (the default), up to 2
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Sample from the most likely tokens that together have this probability
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Sample from this many most likely tokens
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Sample from the tokens that have at least this share of the likeliest one's probability
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Above 1: makes tokens of prompt and answer less likely, up to 10
    #[arg(long, value_name = "F")]
    repetition_penalty: Option<f32>,
    /// Above 0: makes tokens that the answer has less likely; -2 to 2
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// The same, once for each time that the answer has the token; -2 to 2
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Adds -100 to 100 to a token's logit; may be repeated
    #[arg(long, value_name = "ID=BIAS", value_parser = bias)]
    logit_bias: Vec<(String, f32)>,
    /// Tell each token's log-probability, and those of the N likeliest in its place, 0 to 20 (see --json)
    #[arg(long, value_name = "N")]
    logprobs: Option<u32>,
    /// The answer is a JSON object
    #[arg(long, conflicts_with_all = ["json_schema", "regex"])]
    json_object: bool,
    /// The answer is JSON that the JSON schema in this file describes
    #[arg(long, value_name = "FILE", conflicts_with = "regex")]
    json_schema: Option<PathBuf>,
    /// The answer matches this regular expression
    #[arg(long, value_name = "REGEX")]
    regex: Option<String>,
    /// Equal seeds give equal answers
    #[arg(long)]
    seed: Option<u64>,
    /// A text that ends the answer; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Seconds after which the answer is of no use any more
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<f64>,
    /// A pair that comes back with the result; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn bias(text: &str) -> Result<(String, f32), String> {
    let (token, bias) = text.split_once('=').ok_or("expected ID=BIAS")?;
    Ok((token.to_owned(), bias.parse().map_err(|error: std::num::ParseFloatError| causes(&error))?))
}

/// One request, ready to be published.
pub struct Prepared {
    pub id: JobId,
    pub body: Vec<u8>,
}

impl PromptArguments {
    /// The requests, in order, each with an id.
    pub fn requests(&self, model: Option<&str>) -> anyhow::Result<Vec<Prepared>> {
        let format = self.format()?;
        if let Some(path) = &self.jsonl {
            return self.lines(path, model, format.as_ref());
        }
        let mut request = match &self.messages {
            Some(path) => {
                let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
                let mut reader = serde_json::Deserializer::from_reader(BufReader::new(file));
                let messages: Result<Vec<ChatMessage>, _> = Vec::deserialize(Objects(&mut reader));
                let messages = messages.and_then(|messages| reader.end().map(|()| messages));
                let messages =
                    messages.with_context(|| format!("{} is not a JSON list of messages", path.display()))?;
                Request { messages: Some(messages), ..Request::default() }
            }
            None => {
                let text = self.text()?;
                if self.raw {
                    Request { prompt: Some(Prompt::Text(text)), ..Request::default() }
                } else {
                    let message = ChatMessage::text("user", text);
                    Request { messages: Some(vec![message]), ..Request::default() }
                }
            }
        };
        request.id.clone_from(&self.id);
        self.fill(&mut request, model, format.as_ref());
        Ok(vec![prepare(request)?])
    }

    /// The form of the answers that the flags ask for, but for a regular expression.
    fn format(&self) -> anyhow::Result<Option<ResponseFormat>> {
        if self.json_object {
            return Ok(Some(ResponseFormat { kind: FormatKind::JsonObject, json_schema: None }));
        }
        let Some(path) = &self.json_schema else { return Ok(None) };
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let schema = serde_json::from_reader(BufReader::new(file.take(LONGEST_LINE)))
            .with_context(|| format!("{} is not a JSON schema", path.display()))?;
        let json_schema = Some(JsonSchema { schema, name: None, description: None, strict: None });
        Ok(Some(ResponseFormat { kind: FormatKind::JsonSchema, json_schema }))
    }

    fn text(&self) -> anyhow::Result<String> {
        let text = self.given_text()?;
        ensure!(
            !text.trim().is_empty(),
            "the prompt is empty: give a TEXT, --messages FILE or --jsonl FILE (see --help)"
        );
        Ok(text)
    }

    fn given_text(&self) -> anyhow::Result<String> {
        match self.text.as_deref() {
            Some("-") => read_stdin(),
            Some(text) => Ok(text.to_owned()),
            None if io::stdin().is_terminal() => {
                bail!("no prompt: give a TEXT, --messages FILE, --jsonl FILE, or pipe one in (see --help)")
            }
            None => read_stdin(),
        }
    }

    fn lines(
        &self,
        path: &Path,
        model: Option<&str>,
        format: Option<&ResponseFormat>,
    ) -> anyhow::Result<Vec<Prepared>> {
        let mut input: Box<dyn BufRead> = if path == Path::new("-") {
            Box::new(io::stdin().lock())
        } else {
            let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            Box::new(BufReader::new(file))
        };
        let (mut prepared, mut ids) = (Vec::new(), HashSet::new());
        for number in 1.. {
            let mut line = Vec::new();
            if input.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let read = objects::from_slice::<Request>(&line);
            let at = || format!("line {number} of {}", path.display());
            let mut request = read.with_context(|| format!("{} is not a request", at()))?;
            self.fill(&mut request, model, format);
            let request = prepare(request).with_context(at)?;
            ensure!(ids.insert(request.id.clone()), "{}: the id {} occurs twice", at(), request.id);
            prepared.push(request);
        }
        Ok(prepared)
    }

    /// Flags fill what a request leaves open.
    fn fill(&self, request: &mut Request, model: Option<&str>, format: Option<&ResponseFormat>) {
        fn or<T: Clone>(field: &mut Option<T>, flag: Option<T>) {
            if field.is_none() {
                *field = flag;
            }
        }
        or(&mut request.model, model.map(str::to_owned));
        or(&mut request.max_tokens, self.max_tokens);
        or(&mut request.n, self.n);
        or(&mut request.temperature, self.temperature);
        or(&mut request.top_p, self.top_p);
        or(&mut request.top_k, self.top_k);
        or(&mut request.min_p, self.min_p);
        or(&mut request.repetition_penalty, self.repetition_penalty);
        or(&mut request.presence_penalty, self.presence_penalty);
        or(&mut request.frequency_penalty, self.frequency_penalty);
        or(&mut request.logit_bias, (!self.logit_bias.is_empty()).then(|| self.logit_bias.iter().cloned().collect()));
        if request.logprobs.is_none() && request.top_logprobs.is_none() {
            request.logprobs = self.logprobs.map(|_| true);
            request.top_logprobs = self.logprobs;
        }
        if request.response_format.is_none() && request.structured_outputs.is_none() {
            request.response_format = format.cloned();
            request.structured_outputs = self.regex.clone().map(|regex| StructuredOutputs { regex });
        }
        or(&mut request.seed, self.seed);
        or(&mut request.stop, (!self.stop.is_empty()).then(|| Stop::Many(self.stop.clone())));
        or(&mut request.deadline, self.deadline.map(Deadline::After));
        if request.metadata.is_empty() {
            request.metadata = self.metadata.iter().cloned().collect::<BTreeMap<_, _>>();
        }
    }
}

fn read_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    let mut input = io::stdin().take(LONGEST_LINE + 1);
    input.read_to_string(&mut text).context("cannot read the prompt from standard input")?;
    ensure!(text.len() as u64 <= LONGEST_LINE, "the prompt on standard input is longer than {LONGEST_LINE} bytes");
    Ok(text)
}

fn prepare(mut request: Request) -> anyhow::Result<Prepared> {
    let id = match &request.id {
        Some(id) => JobId::new(id).context("the id")?,
        None => {
            let unique = uuid::Uuid::now_v7();
            request.id = Some(unique.to_string());
            JobId::new(&unique.to_string())?
        }
    };
    Ok(Prepared { id, body: serde_json::to_vec(&request)? })
}
