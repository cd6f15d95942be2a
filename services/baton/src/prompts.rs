//! Requests from the command line: flags, files and standard input become the public JSON request.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use baton_contract::{
    JobId,
    request::{Deadline, Message, Prompt, Request, Stop},
};

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
    /// 0 is greedy (the default), up to 2
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Sample from the most likely tokens that together have this probability
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Sample from this many most likely tokens
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
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

/// One request, ready to be published.
pub struct Prepared {
    pub id: JobId,
    pub body: Vec<u8>,
}

impl PromptArguments {
    /// The requests, in order, each with an id.
    pub fn requests(&self, model: Option<&str>) -> anyhow::Result<Vec<Prepared>> {
        if let Some(path) = &self.jsonl {
            return self.lines(path, model);
        }
        let mut request = match &self.messages {
            Some(path) => {
                let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
                let messages: Vec<Message> = serde_json::from_reader(BufReader::new(file))
                    .with_context(|| format!("{} is not a JSON list of messages", path.display()))?;
                Request { messages: Some(messages), ..Request::default() }
            }
            None => {
                let text = self.text()?;
                if self.raw {
                    Request { prompt: Some(Prompt::Text(text)), ..Request::default() }
                } else {
                    let message = Message { role: "user".into(), content: text };
                    Request { messages: Some(vec![message]), ..Request::default() }
                }
            }
        };
        request.id.clone_from(&self.id);
        self.fill(&mut request, model);
        Ok(vec![prepare(request)?])
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

    fn lines(&self, path: &Path, model: Option<&str>) -> anyhow::Result<Vec<Prepared>> {
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
            let read = serde_json::from_slice::<Request>(&line);
            let at = || format!("line {number} of {}", path.display());
            let mut request = read.with_context(|| format!("{} is not a request", at()))?;
            self.fill(&mut request, model);
            let request = prepare(request).with_context(at)?;
            ensure!(ids.insert(request.id.clone()), "{}: the id {} occurs twice", at(), request.id);
            prepared.push(request);
        }
        Ok(prepared)
    }

    /// Flags fill what a request leaves open.
    fn fill(&self, request: &mut Request, model: Option<&str>) {
        fn or<T: Clone>(field: &mut Option<T>, flag: Option<T>) {
            if field.is_none() {
                *field = flag;
            }
        }
        or(&mut request.model, model.map(str::to_owned));
        or(&mut request.max_tokens, self.max_tokens);
        or(&mut request.temperature, self.temperature);
        or(&mut request.top_p, self.top_p);
        or(&mut request.top_k, self.top_k);
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
