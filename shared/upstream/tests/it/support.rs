//! Engines that say what a test has them say.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use baton_contract::upstream::{Ask, Engine};
use baton_upstream::{Call, Event, Fault, Instance, Options, Reply, Upstream};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::timeout,
};

/// No test waits longer for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A request as an engine saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Which connection it came on, from 0.
    pub connection: usize,
    /// The first line and the headers.
    pub head: String,
    pub body: Value,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(one, _)| one.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// What an engine does about a request.
#[derive(Clone)]
pub enum Step {
    /// Says this.
    Say(Vec<u8>),
    /// Says this again and again, as long as there is somebody to take it.
    Repeat(Vec<u8>),
    /// Says nothing more until the other side has gone.
    Hold,
    /// Waits for the test's word.
    Wait(watch::Receiver<bool>),
    /// Closes the connection.
    Close,
}

pub fn say(text: impl AsRef<[u8]>) -> Step {
    Step::Say(text.as_ref().to_vec())
}

/// A whole response.
pub fn response(status: &str, kind: &str, body: &str) -> Vec<Step> {
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n", body.len());
    vec![say(head), say(body)]
}

pub fn json(status: &str, body: Value) -> Vec<Step> {
    response(status, "application/json", &body.to_string())
}

/// The head of a stream whose end is the connection's.
pub fn stream() -> Step {
    say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
}

/// The head of a stream in chunks.
pub fn chunked() -> Step {
    say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
}

pub fn chunk(text: &str) -> Step {
    say(format!("{:x}\r\n{text}\r\n", text.len()))
}

/// An event of a chat.
pub fn delta(text: &str) -> String {
    event(&serde_json::json!({ "choices": [{ "index": 0, "delta": { "content": text } }] }))
}

/// The last event of a chat.
pub fn finish(reason: &str) -> String {
    event(&serde_json::json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": reason }] }))
}

pub fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

pub const DONE: &str = "data: [DONE]\n\n";

/// A stream that says "hello" as it should.
pub fn hello() -> Vec<Step> {
    vec![
        chunked(),
        chunk(&delta("hello")),
        chunk(&finish("stop")),
        say(format!("{:x}\r\n{DONE}\r\n0\r\n\r\n", DONE.len())),
    ]
}

/// An engine on this machine; it ends with the value.
pub struct Scripted {
    pub url: String,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

struct State {
    seen: Mutex<Vec<Seen>>,
    /// Connections that the other side has closed while the engine held or repeated something.
    left: watch::Sender<usize>,
    /// Whether what is repeated was not taken for a while.
    stalled: watch::Sender<bool>,
}

/// The certificate that `tls/ca.pem` has signed.
pub fn tls() -> tokio_rustls::TlsAcceptor {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let _ = rustls::crypto::ring::default_provider().install_default();
    let certificate = CertificateDer::from_pem_slice(include_bytes!("tls/engine.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/engine.key")).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    Arc::new(config.with_single_cert(vec![certificate], key).unwrap()).into()
}

pub fn ca_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/tls/ca.pem")
}

impl Scripted {
    /// Does the same for each request.
    pub async fn always(steps: Vec<Step>) -> Self {
        Self::new(move |_, _| steps.clone()).await
    }

    /// Does for a request, and for the how manieth it is, as the function says.
    pub async fn new(script: impl Fn(usize, &Seen) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::start(None, script).await
    }

    pub async fn start(
        tls: Option<tokio_rustls::TlsAcceptor>,
        script: impl Fn(usize, &Seen) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let (left, stalled) = (watch::Sender::new(0), watch::Sender::new(false));
        let state = Arc::new(State { seen: Mutex::default(), left, stalled });
        let (script, shared) = (Arc::new(script), state.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            for connection in 0.. {
                let Ok((socket, _)) = listener.accept().await else { return };
                let (script, state, tls) = (script.clone(), shared.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(socket, connection, &*script, &state).await,
                        Some(tls) => match tls.accept(socket).await {
                            Ok(socket) => serve(socket, connection, &*script, &state).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self { url, state, _tasks: tasks }
    }

    /// The requests that came.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Waits until the other side has closed a connection that it might have gone on with.
    pub async fn wait_left(&self) {
        let mut left = self.state.left.subscribe();
        timeout(PATIENCE, left.wait_for(|left| *left > 0)).await.expect("nobody left").unwrap();
    }

    /// Waits until what is repeated is not taken any more.
    pub async fn wait_stalled(&self) {
        let mut stalled = self.state.stalled.subscribe();
        timeout(PATIENCE, stalled.wait_for(|stalled| *stalled)).await.expect("all is taken").unwrap();
    }

    /// The only instance of a model there.
    pub async fn instance(&self, engine: Engine) -> Instance {
        only(options(&self.url, engine)).await
    }
}

async fn serve(
    socket: impl AsyncRead + AsyncWrite + Unpin,
    connection: usize,
    script: &(dyn Fn(usize, &Seen) -> Vec<Step> + Send + Sync),
    state: &State,
) -> Option<()> {
    let mut socket = BufReader::new(socket);
    loop {
        let seen = request(&mut socket, connection).await?;
        let count = {
            let mut all = state.seen.lock().unwrap();
            all.push(seen.clone());
            all.len() - 1
        };
        for step in script(count, &seen) {
            match step {
                Step::Say(bytes) => {
                    socket.write_all(&bytes).await.ok()?;
                    socket.flush().await.ok()?;
                }
                Step::Repeat(bytes) => {
                    while let Ok(written) = timeout(Duration::from_millis(500), socket.write_all(&bytes)).await {
                        if written.is_err() {
                            state.left.send_modify(|left| *left += 1);
                            return None;
                        }
                    }
                    state.stalled.send_replace(true);
                }
                Step::Hold => {
                    let mut rest = [0; 64];
                    while !matches!(socket.read(&mut rest).await, Ok(0) | Err(_)) {}
                    state.left.send_modify(|left| *left += 1);
                    return None;
                }
                Step::Wait(mut go) => drop(go.wait_for(|go| *go).await),
                Step::Close => return None,
            }
        }
        // As a server does whose answer has no other end.
        let steps_end = script(count, &seen).iter().any(|step| matches!(step, Step::Say(head) if head.starts_with(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close")));
        if steps_end {
            return None;
        }
    }
}

async fn request(socket: &mut BufReader<impl AsyncRead + Unpin>, connection: usize) -> Option<Seen> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if socket.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let mut seen = Seen { connection, head, body: Value::Null };
    let bytes: usize = seen.header("content-length").map_or(0, |value| value.trim().parse().unwrap());
    let mut body = vec![0; bytes];
    socket.read_exact(&mut body).await.ok()?;
    seen.body = serde_json::from_slice(&body).unwrap_or_default();
    Some(seen)
}

pub fn options(url: &str, engine: Engine) -> Options {
    Options {
        engine,
        name: "m".into(),
        model: "served".into(),
        urls: vec![url.into()],
        prefill_urls: Vec::new(),
        api_key_file: None,
        ca_file: None,
        max_running: Some(4),
        timeout: PATIENCE,
    }
}

/// The only instance of a model.
pub async fn only(options: Options) -> Instance {
    Upstream::new(options).unwrap().place(0).await.instance().clone()
}

/// A chat of one message.
pub fn chat() -> Ask {
    Ask { chat: true, body: r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":9}"#.into(), handover: None }
}

/// Asks for a chat.
pub async fn ask(instance: &Instance) -> Result<Reply, Fault> {
    let ask = chat();
    timeout(PATIENCE, instance.ask(Call { ask: &ask, resume: None, trace: &[] })).await.expect("no word")
}

/// What is left of an answer.
pub async fn rest(mut reply: Reply) -> Result<Vec<Event>, Fault> {
    let mut events = Vec::new();
    while let Some(event) = timeout(PATIENCE, reply.next()).await.expect("no event")? {
        events.push(event);
    }
    Ok(events)
}

/// A whole answer to a chat.
pub async fn answer(instance: &Instance) -> Result<Vec<Event>, Fault> {
    rest(ask(instance).await?).await
}

/// The text of an answer.
pub fn text(events: &[Event]) -> String {
    let texts = events.iter().map(|event| match event {
        Event::Piece(piece) => &*piece.text,
        _ => "",
    });
    texts.collect()
}
