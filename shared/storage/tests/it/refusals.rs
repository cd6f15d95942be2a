//! A proxy in front of an S3 server that answers some requests itself, with a refusal. These do nothing to the server.
//!
//! Other crates' tests include this file by path; it needs `tokio`.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
};

/// What a refusal is decided by.
#[allow(dead_code, reason = "not every test that includes this looks at requests")]
pub(crate) struct Request {
    /// Such as `PUT /bucket/key HTTP/1.1`.
    pub(crate) line: String,
    pub(crate) is_create_only: bool,
}

/// A status and S3's code for it.
pub(crate) type Refusal = (u16, &'static str);
type Refuse = dyn Fn(&Request) -> Option<Refusal> + Send + Sync;

/// The endpoint of a proxy for the server at `endpoint`.
pub(crate) async fn in_front_of(
    endpoint: &str,
    refuse: impl Fn(&Request) -> Option<Refusal> + Send + Sync + 'static,
) -> String {
    let server = endpoint.strip_prefix("http://").unwrap().to_owned();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let refuse: Arc<Refuse> = Arc::new(refuse);
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            // One that the client gives up is no matter.
            tokio::spawn(pass(client, server.clone(), refuse.clone()));
        }
    });
    format!("http://{address}")
}

/// Passes one request on, and its answer back. The connection ends with it.
async fn pass(mut client: TcpStream, server: String, refuse: Arc<Refuse>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let text = String::from_utf8(head).unwrap();
    let (line, fields) = text.split_once("\r\n").unwrap();
    let field = |name: &str| {
        let named = |line: &&str| line.split_once(':').is_some_and(|(key, _)| key.eq_ignore_ascii_case(name));
        fields.lines().find(named).map(|line| line.split_once(':').unwrap().1.trim().to_owned())
    };
    let mut body = vec![0; field("content-length").map_or(0, |length| length.parse().unwrap())];
    client.read_exact(&mut body).await?;
    let request = Request { line: line.to_owned(), is_create_only: field("if-none-match").is_some() };
    if let Some((status, code)) = refuse(&request) {
        let body = match line.starts_with("HEAD ") {
            true => String::new(),
            false => format!("<Error><Code>{code}</Code><Message>refused</Message></Error>"),
        };
        let length = body.len();
        let head = format!("HTTP/1.1 {status} {code}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        return client.write_all((head + &body).as_bytes()).await;
    }
    let mut upstream = TcpStream::connect(server).await?;
    upstream.write_all(format!("{line}\r\nconnection: close\r\n{fields}").as_bytes()).await?;
    upstream.write_all(&body).await?;
    copy(&mut upstream, &mut client).await?;
    client.shutdown().await
}
