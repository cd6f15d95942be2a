//! A small engine with OpenAI's interface that answers as a test says: it can wait, refuse, and die in the middle of an answer.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, tcp::OwnedWriteHalf},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use crate::support::PATIENCE;

mod meeting;

pub use meeting::{Meeting, Side};

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// So many pieces, the request's own words each with its number, and the end.
    Says(usize),
    /// So many pieces, and the others of as many once the test lets the engine go on.
    Waits(usize, usize),
    /// A status, a header line or nothing, and a body.
    Answers(u16, &'static str, &'static str),
    /// A whole answer in these `delta` objects, one choice each, and its end.
    Parts(Vec<Value>, &'static str),
}

/// An engine; it is gone, and its connections with it, once it is dropped.
pub struct Engine {
    pub url: String,
    play: Arc<Play>,
    running: Option<AbortOnDropHandle<()>>,
}

struct Play {
    /// Which of two instances it is, if one prefills for the other.
    side: Option<(Side, Arc<Meeting>)>,
    /// What comes next; the last goes on for ever.
    acts: Mutex<VecDeque<Act>>,
    /// The bodies of the requests so far.
    asked: Mutex<Vec<Value>>,
    /// Whether those that wait may go on.
    go: watch::Sender<bool>,
    /// Answers whose reader has left before the end.
    left: watch::Sender<usize>,
}

impl Engine {
    pub async fn start(acts: impl IntoIterator<Item = Act>) -> Self {
        Self::with(acts, None).await
    }

    /// One that prefills, and one that decodes; they answer once both were asked (SGLang), or one fetches what the other keeps (vLLM).
    pub async fn pair(acts: impl IntoIterator<Item = Act>) -> (Self, Self, Arc<Meeting>) {
        let meeting = Arc::<Meeting>::default();
        let prefill = Self::with([Act::Says(1)], Some((Side::Prefill, meeting.clone()))).await;
        (prefill, Self::with(acts, Some((Side::Decode, meeting.clone()))).await, meeting)
    }

    async fn with(acts: impl IntoIterator<Item = Act>, side: Option<(Side, Arc<Meeting>)>) -> Self {
        let play = Arc::new(Play {
            side,
            acts: Mutex::new(acts.into_iter().collect()),
            asked: Mutex::default(),
            go: watch::Sender::new(false),
            left: watch::Sender::new(0),
        });
        let mut engine = Self { url: "http://127.0.0.1:0".into(), play, running: None };
        engine.come_back().await;
        engine
    }

    /// Ends all connections, and takes no more.
    pub async fn die(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
            assert!(running.await.is_err_and(|ended| ended.is_cancelled()));
        }
    }

    /// Listens at the same place again.
    pub async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.url.trim_start_matches("http://")).await.unwrap();
        self.url = format!("http://{}", listener.local_addr().unwrap());
        let play = self.play.clone();
        self.running = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((connection, _)) = listener.accept() => drop(connections.spawn(play.clone().serve(connection))),
                    Some(_) = connections.join_next() => {}
                }
            }
        })));
    }

    /// What it does from now on; the last goes on for ever.
    pub fn plays(&self, acts: impl IntoIterator<Item = Act>) {
        *self.play.acts.lock().unwrap() = acts.into_iter().collect();
    }

    /// Lets answers that wait go on.
    pub fn go_on(&self) {
        self.play.go.send_replace(true);
    }

    /// The requests so far.
    pub fn asked(&self) -> Vec<Value> {
        self.play.asked.lock().unwrap().clone()
    }

    /// Waits until so many readers have left before the end of their answers.
    pub async fn until_left(&self, readers: usize) {
        let mut left = self.play.left.subscribe();
        timeout(PATIENCE, left.wait_for(|left| *left >= readers)).await.expect("nobody left").unwrap();
    }
}

impl Play {
    async fn serve(self: Arc<Self>, connection: TcpStream) {
        let (read, mut write) = connection.into_split();
        let mut read = BufReader::new(read);
        loop {
            let (mut head, mut line) = (String::new(), String::new());
            while read.read_line(&mut line).await.is_ok_and(|bytes| bytes > 2) {
                head.push_str(&std::mem::take(&mut line).to_lowercase());
            }
            if head.is_empty() {
                return;
            }
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let mut body = vec![0; length.unwrap_or_default()];
            if read.read_exact(&mut body).await.is_err() {
                return;
            }
            let done = if head.starts_with("get /v1/models") {
                let models = json!({ "object": "list", "data": [{ "id": "tiny", "object": "model" }] });
                answer(&mut write, 200, "", &models.to_string()).await
            } else if let (true, Some((Side::Prefill, meeting))) = (head.starts_with("get /server_info"), &self.side) {
                answer(&mut write, 200, "", &meeting.server_info().to_string()).await
            } else if head.starts_with("get /health") {
                answer(&mut write, 200, "", "{}").await
            } else if head.starts_with("post /v1/") {
                let body: Value = serde_json::from_slice(&body).unwrap();
                self.asked.lock().unwrap().push(body.clone());
                self.act(&body, &mut read, &mut write).await
            } else {
                answer(&mut write, 404, "", "{}").await
            };
            if done.is_none() {
                return;
            }
        }
    }

    /// What two instances do before one of them answers: a whole answer, a refusal or nothing.
    async fn meet(&self, body: &Value) -> Option<(u16, String)> {
        let (side, meeting) = self.side.as_ref()?;
        let params = &body["kv_transfer_params"];
        let refused = |(status, text): (u16, String)| {
            (status, json!({ "error": { "message": text, "code": status } }).to_string())
        };
        match side {
            Side::Prefill if params["do_remote_decode"] == true => {
                Some(meeting.keep(body).map_or_else(refused, |kept| (200, kept.to_string())))
            }
            Side::Decode if params.is_object() => meeting.fetch(params).err().map(refused),
            // An instance of vLLM computes what no other has.
            Side::Decode if body["bootstrap_room"].is_null() => None,
            side => meeting.meet(*side, body).await.err().map(refused),
        }
    }

    /// None once the reader has left.
    async fn act(
        &self,
        body: &Value,
        read: &mut (impl AsyncReadExt + Unpin),
        write: &mut OwnedWriteHalf,
    ) -> Option<()> {
        let mut nothing = [0];
        let met = tokio::select! {
            met = self.meet(body) => met,
            _ = read.read(&mut nothing) => {
                self.left.send_modify(|left| *left += 1);
                return None;
            }
        };
        if let Some((status, text)) = met {
            return answer(write, status, "", &text).await;
        }
        let act = {
            let mut acts = self.acts.lock().unwrap();
            if acts.len() > 1 { acts.pop_front()? } else { acts.front()?.clone() }
        };
        let (first, all) = match act {
            Act::Says(pieces) => (pieces, pieces),
            Act::Waits(first, all) => (first, all),
            Act::Answers(status, header, text) => return answer(write, status, header, text).await,
            Act::Parts(parts, why) => {
                begin(write).await?;
                for part in parts {
                    tell(write, json!({ "choices": [{ "index": 0, "delta": part, "finish_reason": null }] })).await?;
                }
                return end(write, body, why, 7).await;
            }
        };
        begin(write).await?;
        let told = async {
            for piece in 0..all {
                if piece == first {
                    self.go.subscribe().wait_for(|go| *go).await.ok()?;
                }
                tell(write, words(body, piece)).await?;
            }
            end(write, body, "stop", all).await
        };
        let told = tokio::select! {
            told = told => told,
            // Nothing more is asked before the answer is there.
            _ = read.read(&mut nothing) => None,
        };
        if told.is_none() {
            self.left.send_modify(|left| *left += 1);
        }
        told
    }
}

/// A piece of an answer to a conversation or a prompt.
fn words(body: &Value, piece: usize) -> Value {
    match body["messages"].as_array().and_then(|messages| messages.first()) {
        Some(message) => {
            let text = format!("{}{piece} ", message["content"].as_str().unwrap());
            json!({ "choices": [{ "index": 0, "delta": { "content": text }, "finish_reason": null }] })
        }
        None => {
            let prompt = body["prompt"].as_str().map_or_else(|| body["prompt"].to_string(), str::to_owned);
            let text = format!("{prompt}{piece} ");
            json!({ "choices": [{ "index": 0, "text": text, "finish_reason": null }] })
        }
    }
}

/// What [`Act::Says`] comes to.
pub fn text(prompt: &str, pieces: usize) -> String {
    (0..pieces).map(|piece| format!("{prompt}{piece} ")).collect()
}

async fn begin(write: &mut OwnedWriteHalf) -> Option<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    write.write_all(head.as_bytes()).await.ok()
}

async fn tell(write: &mut OwnedWriteHalf, event: Value) -> Option<()> {
    chunk(write, &format!("data: {event}\n\n")).await
}

async fn end(write: &mut OwnedWriteHalf, body: &Value, why: &str, tokens: usize) -> Option<()> {
    let nothing = if body["messages"].is_array() { json!({ "delta": {} }) } else { json!({ "text": "" }) };
    let mut choice = json!({ "index": 0, "finish_reason": why });
    choice.as_object_mut()?.extend(nothing.as_object()?.clone());
    tell(write, json!({ "choices": [choice] })).await?;
    let usage = json!({ "prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": tokens + 5 });
    tell(write, json!({ "choices": [], "usage": usage })).await?;
    chunk(write, "data: [DONE]\n\n").await?;
    write.write_all(b"0\r\n\r\n").await.ok()
}

async fn chunk(write: &mut OwnedWriteHalf, text: &str) -> Option<()> {
    write.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await.ok()
}

async fn answer(write: &mut OwnedWriteHalf, status: u16, header: &str, text: &str) -> Option<()> {
    let length = text.len();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n");
    write.write_all(format!("{head}{header}\r\n{text}").as_bytes()).await.ok()
}
