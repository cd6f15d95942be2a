//! A proxy in front of an S3 server that meets every object's first create-only put with 409, as S3 does when two
//! operations on an object meet. Such a put stores nothing.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
};

const CONFLICT: &str = "<Error><Code>ConditionalRequestConflict</Code><Message>try again</Message></Error>";

/// The endpoint of a proxy for the server at `endpoint`.
pub(crate) async fn in_front_of(endpoint: &str) -> String {
    let server = endpoint.strip_prefix("http://").unwrap().to_owned();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let met = Arc::new(Mutex::new(HashSet::new()));
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            // One that the client gives up is no matter.
            tokio::spawn(pass(client, server.clone(), met.clone()));
        }
    });
    format!("http://{address}")
}

/// Passes one request on, and its answer back. The connection ends with it.
async fn pass(mut client: TcpStream, server: String, met: Arc<Mutex<HashSet<String>>>) -> std::io::Result<()> {
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
    if line.starts_with("PUT ") && field("if-none-match").is_some() && met.lock().unwrap().insert(line.to_owned()) {
        let length = CONFLICT.len();
        let head = format!("HTTP/1.1 409 Conflict\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        return client.write_all((head + CONFLICT).as_bytes()).await;
    }
    let mut upstream = TcpStream::connect(server).await?;
    upstream.write_all(format!("{line}\r\nconnection: close\r\n{fields}").as_bytes()).await?;
    upstream.write_all(&body).await?;
    copy(&mut upstream, &mut client).await?;
    client.shutdown().await
}
