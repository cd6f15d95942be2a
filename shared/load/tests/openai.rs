//! The load client against a server that speaks OpenAI's protocol, as little of it as the client needs.

use std::sync::{Arc, Mutex};

use baton_load::{
    Options, Target, page,
    target::{Api, Key, Server},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// What the server was asked: the request line, its authorization, its body.
type Asked = Arc<Mutex<Vec<(String, String, Value)>>>;

/// A server that answers each request with four parts, and its usage at the end.
async fn serve(asked: Asked) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, asked.clone()));
        }
    });
    url
}

async fn answer(stream: TcpStream, asked: Asked) {
    let mut stream = BufReader::new(stream);
    let (mut line, mut authorization, mut length) = (String::new(), String::new(), 0);
    stream.read_line(&mut line).await.unwrap();
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await.unwrap();
        match header.trim().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().unwrap(),
            Some(("authorization", _)) => authorization = header.trim()["authorization: ".len()..].to_owned(),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let number = {
        let mut asked = asked.lock().unwrap();
        asked.push((line.trim().to_owned(), authorization, body.clone()));
        asked.len()
    };
    let head = |status| format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: text/event-stream\r\n\r\n");
    if number == 5 {
        stream.write_all((head("429 Too Many Requests") + "slow down").as_bytes()).await.unwrap();
        return;
    }
    stream.write_all(head("200 OK").as_bytes()).await.unwrap();
    let chat = line.contains("chat");
    for part in 0..4 {
        let finish = (part == 3).then_some("stop");
        let choice = if chat {
            json!({ "index": 0, "delta": { "content": "word " }, "finish_reason": finish })
        } else {
            json!({ "index": 0, "text": "word ", "finish_reason": finish })
        };
        stream.write_all(format!("data: {}\n\n", json!({ "choices": [choice] })).as_bytes()).await.unwrap();
        // The sixth is cut off in the middle.
        if number == 6 && part == 1 {
            return;
        }
    }
    let usage = json!({ "prompt_tokens": 11, "completion_tokens": 5, "prompt_tokens_details": { "cached_tokens": 3 } });
    let usage = json!({ "choices": [], "usage": usage });
    stream.write_all(format!("data: {usage}\n\ndata: [DONE]\n\n").as_bytes()).await.unwrap();
}

#[tokio::test]
async fn a_server_gets_the_load_and_every_way_to_fail_has_its_name() {
    let asked = Asked::default();
    let url = serve(asked.clone()).await;
    let extra = serde_json::from_value(json!({ "ignore_eos": true })).unwrap();
    let server = Server { api_key: Some(Key("secret".into())), extra, ..Server::new(url.clone() + "/v1/", Api::Chat) };
    let options = Options { model: Some("owner/m".into()), ..Options::open_loop(100.0, 10).unwrap() };
    let measured = baton_load::run(&Target::OpenAi(server), &options, |_| {}).await.unwrap();

    let report = &measured.report;
    assert_eq!(
        (report.submitted, report.completed, report.failed, report.lost),
        (10, 8, 2, 0),
        "{:?}",
        report.failures
    );
    assert_eq!(report.failures["http_429"].example, "slow down");
    assert_eq!(report.failures["cut_off"].count, 1);
    assert_eq!((report.total_input_tokens, report.total_output_tokens, report.total_cached_tokens), (88, 40, 24));
    assert_eq!((report.ttft_ms.unwrap().count, report.itl_ms.unwrap().count), (8, 8 * 3));
    assert!(report.stages_ms.is_none() && !page::of(&measured).contains("://"));
    {
        let asked = asked.lock().unwrap();
        let (line, authorization, body) = &asked[0];
        assert_eq!((line.as_str(), authorization.as_str()), ("POST /v1/chat/completions HTTP/1.1", "Bearer secret"));
        assert_eq!(
            (&body["model"], &body["max_tokens"], &body["ignore_eos"]),
            (&json!("owner/m"), &json!(128), &json!(true))
        );
        assert_eq!((&body["stream"], &body["stream_options"]["include_usage"]), (&json!(true), &json!(true)));
        assert_eq!(body["messages"][0]["content"].as_str().unwrap().split(' ').count(), 128);
        assert!(body.get("prompt").is_none() && body.get("id").is_none(), "{body}");
    }

    // Text completions take token ids as they are.
    asked.lock().unwrap().clear();
    let completions = Target::OpenAi(Server::new(url, Api::Completions));
    let report = baton_load::run(&completions, &Options::open_loop(100.0, 3).unwrap(), |_| {}).await.unwrap().report;
    assert_eq!(report.completed, 3, "{:?}", report.failures);
    let (line, _, body) = asked.lock().unwrap()[0].clone();
    assert_eq!(line, "POST /v1/completions HTTP/1.1");
    assert_eq!(body["prompt"].as_array().unwrap().len(), 128);

    // Nobody listens.
    let nobody = Target::OpenAi(Server::new("http://127.0.0.1:1".into(), Api::Chat));
    let report = baton_load::run(&nobody, &Options::open_loop(100.0, 2).unwrap(), |_| {}).await.unwrap().report;
    assert_eq!((report.completed, report.failures["connect"].count), (0, 2), "{:?}", report.failures);
}
