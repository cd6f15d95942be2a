//! The load's way over OpenAI's protocol: one streaming HTTP request each, its events read as they come.

mod stream;

use std::{
    collections::HashMap,
    fmt,
    str::FromStr,
    sync::{Arc, Once},
};

use baton_contract::causes;
use baton_contract::request::{Prompt, Request};
use reqwest::{
    Client, ClientBuilder,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE},
};
use serde_json::{Map, Value, json};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use super::event::{Event, What};
use crate::{
    Error,
    workload::{Maker, Planned},
};
use stream::{Chunk, Events};

/// What of a refusal's body is kept.
const MOST_OF_A_REFUSAL: usize = 2_000;

/// The words that stand for token ids where only text is taken: most vocabularies have each of them, with the space before
/// it, as one token.
const WORDS: [&str; 32] = [
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
    "program", "question", "work", "number", "night", "point", "home",
];

/// Which of the two ways of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Api {
    /// `/v1/chat/completions`; token ids become words, about a token each.
    Chat,
    /// `/v1/completions`; token ids are sent as they are.
    Completions,
}

/// A server that speaks OpenAI's protocol.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its URL with or without `/v1`.
    pub url: String,
    /// Which of its two ways is asked.
    pub api: Api,
    /// Sent as a bearer token.
    pub api_key: Option<Key>,
    /// Fields that go into every request, such as vLLM's `ignore_eos`.
    pub extra: Map<String, Value>,
}

/// A key that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub String);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(...)")
    }
}

impl FromStr for Key {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl Server {
    /// A server with neither key nor extra fields.
    pub fn new(url: String, api: Api) -> Self {
        Self { url, api, api_key: None, extra: Map::new() }
    }

    fn endpoint(&self) -> String {
        let base = self.url.trim_end_matches('/').trim_end_matches("/v1");
        match self.api {
            Api::Chat => format!("{base}/v1/chat/completions"),
            Api::Completions => format!("{base}/v1/completions"),
        }
    }

    /// The body for a request: its own fields, which have OpenAI's and vLLM's names and meaning.
    fn body(&self, request: Request) -> Result<Vec<u8>, String> {
        // What only the bus knows must not be left out silently.
        for (field, there) in [("lane", request.lane.is_some()), ("deadline", request.deadline.is_some())] {
            if there {
                return Err(format!("{field}: OpenAI's protocol knows no such field; remove it from the dataset"));
            }
        }
        let Request { messages, prompt, .. } = request.clone();
        let rest = Request { id: None, messages: None, prompt: None, ..request };
        let Ok(Value::Object(mut body)) = serde_json::to_value(&rest) else {
            return Err("the request is no JSON object".into());
        };
        match self.api {
            Api::Chat => {
                let messages = match (messages, prompt) {
                    (Some(messages), _) => json!(messages),
                    (None, Some(Prompt::Text(text))) => json!([{ "role": "user", "content": text }]),
                    (None, Some(Prompt::Tokens(tokens))) => json!([{ "role": "user", "content": words(&tokens) }]),
                    (None, None) => return Err("the request has neither messages nor a prompt".into()),
                };
                body.insert("messages".into(), messages);
            }
            Api::Completions => {
                let prompt = prompt.ok_or("messages: text completions take a prompt; use the chat endpoint")?;
                body.insert("prompt".into(), json!(prompt));
            }
        }
        body.insert("stream".into(), true.into());
        body.insert("stream_options".into(), json!({ "include_usage": true }));
        body.extend(self.extra.clone());
        serde_json::to_vec(&body).map_err(|error| causes(&error))
    }
}

/// Text of about as many tokens, in which equal beginnings stay equal.
fn words(tokens: &[u32]) -> String {
    let words: Vec<&str> = tokens.iter().map(|token| WORDS[*token as usize % WORDS.len()]).collect();
    words.join(" ")
}

pub(crate) struct Session {
    server: Arc<Server>,
    client: Client,
    told: mpsc::UnboundedSender<Event>,
    events: mpsc::UnboundedReceiver<Event>,
    /// Ends all of them with the session.
    calls: JoinSet<()>,
    handles: HashMap<usize, AbortHandle>,
}

/// The beginning of an HTTP client, with the one TLS provider there is.
pub fn http() -> ClientBuilder {
    static PROVIDER: Once = Once::new();
    // Fails only if the process has one already, which will do.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    Client::builder()
}

impl Session {
    pub(super) fn open(server: &Server) -> Result<Self, Error> {
        let failed = |source| Error::Client { url: server.url.clone(), source };
        // The run's own timeout ends requests; connections are kept, as a busy client's are.
        let client = http().tcp_nodelay(true).pool_max_idle_per_host(usize::MAX).build().map_err(failed)?;
        let (told, events) = mpsc::unbounded_channel();
        let server = Arc::new(server.clone());
        Ok(Self { server, client, told, events, calls: JoinSet::new(), handles: HashMap::new() })
    }

    pub(super) fn send(&mut self, index: usize, planned: Planned, maker: &Maker) {
        while self.calls.try_join_next().is_some() {}
        let call = Call { index, server: self.server.clone(), client: self.client.clone(), told: self.told.clone() };
        let maker = maker.clone();
        let handle = self.calls.spawn(async move {
            let end = match call.server.body(maker.make(&planned, None)) {
                Ok(body) => call.run(body).await,
                Err(message) => Err(("request".into(), message)),
            };
            call.tell(end.unwrap_or_else(|(kind, message)| What::Failed { kind, message }));
        });
        self.handles.insert(index, handle);
    }

    pub(super) async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => {
                if matches!(event.what, What::Completed { .. } | What::Failed { .. }) {
                    self.handles.remove(&event.index);
                }
                event
            }
            // Cannot be: the session itself holds a sender.
            None => std::future::pending().await,
        }
    }

    pub(super) fn rest(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    pub(super) fn forget(&mut self, index: usize) {
        if let Some(handle) = self.handles.remove(&index) {
            handle.abort();
        }
    }
}

/// One request and its answer.
struct Call {
    index: usize,
    server: Arc<Server>,
    client: Client,
    told: mpsc::UnboundedSender<Event>,
}

impl Call {
    fn tell(&self, what: What) {
        // Nobody listens once the run has ended.
        let _ = self.told.send(Event { index: self.index, at: Instant::now(), what });
    }

    /// How it ended; the error has a kind and a message.
    async fn run(&self, body: Vec<u8>) -> Result<What, (String, String)> {
        let lost = |error: reqwest::Error| {
            let kind = if error.is_connect() { "connect" } else { "connection" };
            (kind.to_owned(), causes(&error))
        };
        let mut request = self.client.post(self.server.endpoint()).body(body);
        request = request.header(CONTENT_TYPE, "application/json").header(ACCEPT, "text/event-stream");
        if let Some(Key(key)) = &self.server.api_key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        self.tell(What::Sent);
        let mut response = request.send().await.map_err(lost)?;
        let status = response.status();
        if !status.is_success() {
            let mut text = response.text().await.unwrap_or_default();
            text.truncate(text.floor_char_boundary(MOST_OF_A_REFUSAL));
            return Err((format!("http_{}", status.as_u16()), text));
        }
        let mut events = Events::default();
        let mut answer = Answer::default();
        while let Some(bytes) = response.chunk().await.map_err(lost)? {
            for chunk in events.feed(&bytes)? {
                match chunk {
                    Chunk::Done => return answer.end(),
                    chunk => answer.take(chunk, self)?,
                }
            }
        }
        // Some servers close without the last word, but none that was cut off has said why it ended.
        answer.end()
    }
}

/// What there is of an answer.
#[derive(Default)]
struct Answer {
    tokens: u32,
    finished: bool,
    usage: Option<stream::Usage>,
}

impl Answer {
    fn take(&mut self, chunk: Chunk, call: &Call) -> Result<(), (String, String)> {
        match chunk {
            Chunk::Part { text, finished, usage } => {
                if text {
                    call.tell(What::Token { position: self.tokens });
                    self.tokens += 1;
                }
                self.finished |= finished;
                self.usage = usage.or(self.usage);
                Ok(())
            }
            Chunk::Error(message) => Err(("stream_error".into(), message)),
            Chunk::Done => Ok(()),
        }
    }

    fn end(&self) -> Result<What, (String, String)> {
        if !self.finished {
            let message = format!("the stream ended after {} parts without a finish_reason", self.tokens);
            return Err(("cut_off".into(), message));
        }
        let usage = self.usage.ok_or_else(|| {
            let message = "the server sent no usage though stream_options.include_usage asked for it";
            ("no_usage".to_owned(), message.to_owned())
        })?;
        Ok(What::Completed {
            prompt_tokens: usage.prompt_tokens,
            output_tokens: usage.completion_tokens,
            cached_tokens: usage.cached_tokens,
            stages: None,
        })
    }
}
