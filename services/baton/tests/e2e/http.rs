//! HTTP as its bytes are: a client that does nothing by itself, so that tests can send what no client would.

use std::collections::HashMap;

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use crate::support::PATIENCE;

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    pub status: u16,
    /// By their names in lower case.
    pub headers: HashMap<String, String>,
}

/// An answer that was read whole.
#[derive(Debug)]
pub struct Answer {
    pub head: Head,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection to a gateway.
pub struct Connection {
    pub stream: BufReader<TcpStream>,
}

impl Connection {
    pub async fn open(url: &str) -> Self {
        let stream = TcpStream::connect(url.trim_start_matches("http://")).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Sends a request with a body of known length.
    pub async fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
        let told = |name: &str| headers.iter().any(|(told, _)| told.eq_ignore_ascii_case(name));
        if !told("host") {
            head.push_str("host: localhost\r\n");
        }
        if !body.is_empty() && !told("content-type") {
            head.push_str("content-type: application/json\r\n");
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.write(&[head.as_bytes(), body].concat()).await;
    }

    /// The head of the answer; none if the connection was closed.
    pub async fn head(&mut self) -> Option<Head> {
        let line = self.line().await?;
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = HashMap::new();
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        Some(Head { status, headers })
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.stream.read_line(&mut line)).await.expect("no answer in time");
        // A peer that was cut off in the middle of its request may find its connection reset.
        if read.unwrap_or(0) == 0 { None } else { Some(line.trim_end().to_owned()) }
    }

    /// The next piece of a chunked body; none at its end, or if the connection was closed.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(&self.line().await?, 16).unwrap();
        let mut chunk = vec![0; size + 2];
        timeout(PATIENCE, self.stream.read_exact(&mut chunk)).await.expect("no answer in time").ok()?;
        chunk.truncate(size);
        (size > 0).then_some(chunk)
    }

    /// The whole answer; none if the connection was closed before its head.
    pub async fn answer(&mut self) -> Option<Answer> {
        let head = self.head().await?;
        let mut body = Vec::new();
        if head.headers.contains_key("transfer-encoding") {
            while let Some(chunk) = self.chunk().await {
                body.extend(chunk);
            }
        } else {
            let length = head.headers.get("content-length").map_or(0, |length| length.parse().unwrap());
            body.resize(length, 0);
            timeout(PATIENCE, self.stream.read_exact(&mut body)).await.expect("no answer in time").unwrap();
        }
        Some(Answer { head, body })
    }
}

/// One request on a connection of its own.
pub async fn call(url: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut connection = Connection::open(url).await;
    connection.request(method, path, headers, body).await;
    connection.answer().await.expect("the connection was closed")
}

pub async fn get(url: &str, path: &str) -> Answer {
    call(url, "GET", path, &[], b"").await
}

/// Posts JSON, with an API key if it is not empty.
pub async fn post(url: &str, path: &str, key: &str, body: &Value) -> Answer {
    let bearer = format!("Bearer {key}");
    let headers: &[(&str, &str)] = if key.is_empty() { &[] } else { &[("authorization", &bearer)] };
    call(url, "POST", path, headers, body.to_string().as_bytes()).await
}

/// The objects of a stream of server-sent events, and whether it ended as it should.
pub fn events(body: &[u8]) -> (Vec<Value>, bool) {
    let text = std::str::from_utf8(body).unwrap();
    let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let done = data.last() == Some(&"[DONE]");
    let objects = data.iter().filter(|data| **data != "[DONE]").map(|data| serde_json::from_str(data).unwrap());
    (objects.collect(), done)
}

/// The text of one choice, from chunks of either endpoint.
pub fn streamed(chunks: &[Value], choice: u64) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    let own = choices.filter(|own| own["index"] == choice);
    own.map(|own| own["delta"]["content"].as_str().or(own["text"].as_str()).unwrap_or_default().to_owned()).collect()
}
