//! One instance of an engine: a request goes out, its answer comes back in pieces.

use std::{
    collections::VecDeque,
    sync::{Arc, Once},
    time::Duration,
};

use baton_contract::{
    causes,
    checkpoint::Partial,
    outcome::{Code, FinishReason, Usage},
    upstream::{Ask, Engine},
};
use reqwest::{Client, Url, redirect::Policy};
use serde_json::{Map, Value, json};

use crate::{Error, Event, Fault, Options, Piece, Retry};

/// Where another worker left an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// What it had come to.
    pub partial: Partial,
    /// Its token ids, if the engine told them.
    pub tokens: Vec<u32>,
}

/// A request to an instance.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// What is asked.
    pub ask: &'a Ask,
    /// Where the answer stands; of several answers none is resumed.
    pub resume: Option<&'a Resume>,
    /// Headers of the trace that the engine's spans join: `traceparent` and `tracestate`.
    pub trace: &'a [(String, String)],
}

/// One instance of an engine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Instance {
    engine: Engine,
    model: Arc<str>,
    url: Arc<str>,
    client: Client,
    key: Option<Arc<str>>,
}

/// An answer on its way. Dropping it closes the connection, which ends the engine's work.
pub struct Reply {
    response: reqwest::Response,
    line: Vec<u8>,
    events: VecDeque<Event>,
    done: bool,
    timeout: Duration,
}

impl Instance {
    /// All instances of a model: those that decode, and those that only prefill.
    pub(crate) fn all(options: &Options) -> Result<(Vec<Self>, Vec<Self>), Error> {
        static PROVIDER: Once = Once::new();
        // Fails only if the process has one already, which will do.
        PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let client = Client::builder().redirect(Policy::none()).tcp_nodelay(true).pool_max_idle_per_host(usize::MAX);
        let client = client.read_timeout(options.timeout).build();
        let client = client.map_err(|source| Error::Client { model: options.name.clone(), source })?;
        let one = |url: &String| Self {
            engine: options.engine,
            model: options.model.as_str().into(),
            url: url.as_str().into(),
            client: client.clone(),
            key: None,
        };
        Ok((options.urls.iter().map(one).collect(), options.prefill_urls.iter().map(one).collect()))
    }

    /// Its URL, without secrets.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether an answer that was left so can go on where it stopped, instead of beginning again.
    pub fn resumes(&self, _ask: &Ask, _resume: &Resume) -> bool {
        false
    }

    /// Puts a request. Returns once the engine has begun to answer.
    pub async fn ask(&self, call: Call<'_>) -> Result<Reply, Fault> {
        let mut body = call.ask.object();
        body.insert("model".into(), json!(&*self.model));
        body.insert("stream".into(), json!(true));
        body.insert("stream_options".into(), json!({ "include_usage": true }));
        let path = if call.ask.chat { "/v1/chat/completions" } else { "/v1/completions" };
        let url: Url = format!("{}{path}", self.url).parse().map_err(|_| Fault::later("the URL is none"))?;
        let mut request = self.client.post(url).body(Value::Object(body).to_string());
        request = request.header("content-type", "application/json");
        for (name, value) in call.trace {
            request = request.header(name, value);
        }
        let lost = |error: reqwest::Error| Fault::later(causes(&error.without_url()));
        let response = request.send().await.map_err(lost)?;
        let status = response.status();
        if status.is_success() {
            let (line, events) = (Vec::new(), VecDeque::new());
            return Ok(Reply { response, line, events, done: false, timeout: Duration::from_secs(300) });
        }
        let text = response.text().await.unwrap_or_default();
        Err(match status.as_u16() {
            429 | 503 => Fault::later(format!("{status}: {text}")),
            500.. => Fault::elsewhere(format!("{status}: {text}")),
            _ => Fault { retry: Retry::Never, code: Code::InvalidValue, message: format!("{status}: {text}") },
        })
    }

    /// Has an instance that only prefills compute a prompt, and returns what the instance that decodes is to be told, as JSON.
    pub async fn prefill(&self, _call: Call<'_>) -> Result<String, Fault> {
        Err(Fault::elsewhere(format!("{} hands no KV cache over", self.engine)))
    }
}

impl Reply {
    /// The next event; none once the answer is whole.
    pub async fn next(&mut self) -> Result<Option<Event>, Fault> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if self.done {
                return Ok(None);
            }
            let lost = |error: reqwest::Error| Fault::later(causes(&error.without_url()));
            let _ = self.timeout;
            let Some(bytes) = self.response.chunk().await.map_err(lost)? else {
                return Err(Fault::later("the stream ended before the answer"));
            };
            for byte in &bytes {
                if *byte == b'\n' {
                    let line = std::mem::take(&mut self.line);
                    self.read(line.trim_ascii())?;
                } else {
                    self.line.push(*byte);
                }
            }
        }
    }

    fn read(&mut self, line: &[u8]) -> Result<(), Fault> {
        let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { return Ok(()) };
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Value =
            serde_json::from_slice(data).map_err(|error| Fault::elsewhere(format!("no JSON: {error}")))?;
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            let text = choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
            let mut message: Map<String, Value> = choice["delta"].as_object().cloned().unwrap_or_default();
            message.retain(|name, value| !matches!(name.as_str(), "role" | "content") && !value.is_null());
            let finish_reason = match choice["finish_reason"].as_str() {
                Some("stop") => Some(FinishReason::Stop),
                Some("length") => Some(FinishReason::Length),
                Some("tool_calls") => Some(FinishReason::ToolCalls),
                _ => None,
            };
            let choice = choice["index"].as_u64().unwrap_or_default() as u32;
            let piece = Piece { choice, text: text.to_owned(), message, finish_reason, ..Piece::default() };
            self.events.push_back(Event::Piece(piece));
        }
        if let Some(usage) = chunk["usage"].as_object() {
            let count = |name: &str| usage.get(name).and_then(Value::as_u64).unwrap_or_default() as u32;
            self.events.push_back(Event::Usage(Usage {
                prompt_tokens: count("prompt_tokens"),
                completion_tokens: count("completion_tokens"),
                cached_tokens: 0,
            }));
        }
        Ok(())
    }
}
