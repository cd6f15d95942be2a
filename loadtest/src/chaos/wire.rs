//! NATS's protocol as bytes on a connection: what client libraries would not send, and the broker's own API, which an operator
//! has and the pipeline does not use.

use std::{io, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// A broker that takes longer to answer is taken for one that does not.
const WITHIN: Duration = Duration::from_secs(10);
/// A cluster that elects a leader refuses, or does not answer, for so long at most.
const ELECTED_WITHIN: Duration = Duration::from_secs(60);
const TRY_AGAIN: Duration = Duration::from_millis(250);
const UNAVAILABLE: u64 = 503;
/// Answers of the broker's API are some kilobytes.
const MOST_BYTES: usize = 8 << 20;
const INBOX: &str = "_INBOX.chaos";

/// A connection.
pub struct Wire {
    address: String,
    stream: BufReader<TcpStream>,
}

fn unexpected(expected: &str, found: &str) -> io::Error {
    io::Error::other(format!("expected {expected} from the broker, found {found:?}"))
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("the broker did not answer within {WITHIN:?}"));
    timeout(WITHIN, work).await.map_err(late)?
}

impl Wire {
    /// Connects to `host:port`.
    pub async fn connect(address: &str) -> io::Result<Self> {
        in_time(async {
            let stream = BufReader::new(TcpStream::connect(address).await?);
            let mut it = Self { address: address.to_owned(), stream };
            let line = it.line().await?;
            if !line.starts_with("INFO ") {
                return Err(unexpected("INFO", &line));
            }
            it.send(b"CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n").await?;
            it.send(format!("SUB {INBOX} 1\r\n").as_bytes()).await?;
            it.in_step().await?;
            Ok(it)
        })
        .await
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// Waits until the broker has read all that was sent.
    async fn in_step(&mut self) -> io::Result<()> {
        self.send(b"PING\r\n").await?;
        loop {
            match self.line().await?.as_str() {
                "PONG" => return Ok(()),
                "PING" => self.send(b"PONG\r\n").await?,
                line if line.starts_with("-ERR") => return Err(unexpected("PONG", line)),
                _ => {}
            }
        }
    }

    /// Publishes with the bytes of a header block as they are.
    pub async fn publish(&mut self, subject: &str, headers: &[u8], body: &[u8]) -> io::Result<()> {
        let head = format!("HPUB {subject} {} {}\r\n", headers.len(), headers.len() + body.len());
        in_time(async {
            self.send(&[head.as_bytes(), headers, body, b"\r\n"].concat()).await?;
            self.in_step().await
        })
        .await
    }

    /// Calls the API of JetStream, again while a cluster elects.
    pub async fn call(&mut self, what: &str, body: &Value) -> io::Result<Value> {
        let deadline = Instant::now() + ELECTED_WITHIN;
        loop {
            let asked = self.ask(what, body).await;
            match &asked {
                Ok(answer) if answer["error"]["code"] == UNAVAILABLE => {}
                // Its answer may still come, and must not be taken for another's.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    let address = self.address.clone();
                    *self = Self::connect(&address).await?;
                }
                _ => return asked,
            }
            if Instant::now() > deadline {
                return asked;
            }
            sleep(TRY_AGAIN).await;
        }
    }

    async fn ask(&mut self, what: &str, body: &Value) -> io::Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        in_time(async {
            self.send(format!("PUB $JS.API.{what} {INBOX} {}\r\n{body}\r\n", body.len()).as_bytes()).await?;
            loop {
                let line = self.line().await?;
                match line.split(' ').next() {
                    Some("MSG") => {
                        let payload = self.payload(&line).await?;
                        return Ok(serde_json::from_slice(&payload)?);
                    }
                    Some("PING") => self.send(b"PONG\r\n").await?,
                    // Nobody answers: a status without a body.
                    Some("HMSG") => {
                        self.payload(&line).await?;
                        return Ok(json!({ "error": { "code": UNAVAILABLE } }));
                    }
                    Some("-ERR") => return Err(unexpected("an answer", &line)),
                    _ => {}
                }
            }
        })
        .await
    }

    /// What follows the line of a message, whose last word says how many bytes that are.
    async fn payload(&mut self, line: &str) -> io::Result<Vec<u8>> {
        let bytes = line.rsplit(' ').next().and_then(|bytes| bytes.parse::<usize>().ok());
        let bytes = bytes.filter(|bytes| *bytes <= MOST_BYTES).ok_or_else(|| unexpected("a message", line))?;
        let mut payload = vec![0; bytes + 2];
        self.stream.read_exact(&mut payload).await?;
        payload.truncate(bytes);
        Ok(payload)
    }

    /// Empties a stream, or deletes it; whether there was one.
    pub async fn empty(&mut self, stream: &str, delete: bool) -> io::Result<bool> {
        let what = if delete { "DELETE" } else { "PURGE" };
        succeeded(&self.call(&format!("STREAM.{what}.{stream}"), &Value::Null).await?)
    }

    /// Deletes all consumers of a stream; how many there were.
    pub async fn delete_consumers(&mut self, stream: &str) -> io::Result<usize> {
        let found = self.call(&format!("CONSUMER.NAMES.{stream}"), &json!({})).await?;
        let names: Vec<&str> = found["consumers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut deleted = 0;
        for name in names {
            let answer = self.call(&format!("CONSUMER.DELETE.{stream}.{name}"), &Value::Null).await?;
            deleted += usize::from(succeeded(&answer)?);
        }
        Ok(deleted)
    }
}

/// What the API says of a deed: done, or nothing there to do it to; else it failed.
fn succeeded(answer: &Value) -> io::Result<bool> {
    const NOT_FOUND: u64 = 404;
    match answer["error"]["code"].as_u64() {
        None if answer["success"] == true => Ok(true),
        Some(NOT_FOUND) => Ok(false),
        _ => Err(unexpected("success", &answer.to_string())),
    }
}
