//! Streams and their readers: what arrives, who leaves, who is slow.

use baton_contract::outcome::Status;
use serde_json::json;
use tokio::{io::BufReader, net::TcpSocket, time::timeout};

use crate::{
    http::{Connection, events, post, streamed},
    support::{Ground, PATIENCE, any_result, job_id, name, result},
};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_job_whose_client_leaves_is_cancelled_unless_the_client_named_it() {
    let ground = Ground::sim(&["models.sim.sim.decode_s_per_step=0.02"]).await;
    let _workers = ground.workers().await;
    let (_gateway, url) = ground.gateway(&[]).await;
    let (bus, tenant) = (ground.bus().await, name("default"));
    let mut follower = bus.follow(&tenant).await.unwrap();
    let long = |stream| json!({ "prompt": "x", "max_tokens": 4000, "stream": stream }).to_string();

    let mut streams = Connection::open(&url).await;
    streams.request("POST", "/v1/completions", &[], long(true).as_bytes()).await;
    let head = streams.head().await.unwrap();
    assert_eq!((head.status, head.headers["content-type"].as_str()), (200, "text/event-stream; charset=utf-8"));
    let first = streams.chunk().await.unwrap();
    assert_eq!(events(&first).0[0]["object"], "text_completion");
    drop(streams);
    let outcome = result(&mut follower, &job_id(&head.headers["baton-job-id"])).await;
    assert_eq!(outcome.status, Status::Cancelled);
    assert!(outcome.tokens.len() < 4000);

    // One that waits for the whole answer; its job is known only to the bus, whose queues the first one has left.
    let settled = async { while bus.queues().await.unwrap().iter().any(|queue| queue.delivered > 0) {} };
    timeout(PATIENCE, settled).await.expect("the first job's message stayed");
    let mut waits = Connection::open(&url).await;
    waits.request("POST", "/v1/completions", &[], long(false).as_bytes()).await;
    let taken = async { while bus.queues().await.unwrap().iter().all(|queue| queue.delivered == 0) {} };
    timeout(PATIENCE, taken).await.expect("nobody took the job");
    drop(waits);
    let outcome = any_result(&mut follower).await;
    assert_eq!(outcome.status, Status::Cancelled);

    // A named one can be come back for.
    let mut leaves = Connection::open(&url).await;
    let body = json!({ "prompt": "x", "max_tokens": 50, "stream": true }).to_string();
    leaves.request("POST", "/v1/completions", &[("idempotency-key", "mine")], body.as_bytes()).await;
    assert_eq!(leaves.head().await.unwrap().status, 200);
    drop(leaves);
    let outcome = result(&mut follower, &job_id("mine")).await;
    assert_eq!(outcome.status, Status::Completed);
    let mut again = Connection::open(&url).await;
    again.request("POST", "/v1/completions", &[("idempotency-key", "mine")], body.as_bytes()).await;
    let (chunks, done) = events(&again.answer().await.unwrap().body);
    assert!(done && streamed(&chunks, 0) == outcome.text, "{chunks:?}");
}

#[tokio::test]
async fn a_slow_reader_gets_the_whole_answer_once() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let (_gateway, url) = ground.gateway(&[]).await;
    let (bus, tenant) = (ground.bus().await, name("default"));
    let mut follower = bus.follow(&tenant).await.unwrap();
    // So little room in the system that most has to wait in the gateway.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(url.trim_start_matches("http://").parse().unwrap()).await.unwrap();
    let mut connection = Connection { stream: BufReader::with_capacity(1024, stream) };
    let ask = json!({
        "messages": [{ "role": "user", "content": "Go on." }],
        "stream": true, "n": 8, "max_tokens": 1000, "temperature": 2, "seed": 1, "logprobs": true, "top_logprobs": 5,
        "stream_options": { "include_usage": true },
    });
    connection.request("POST", CHAT, &[], ask.to_string().as_bytes()).await;
    // It reads on only when all is over.
    let outcome = any_result(&mut follower).await;
    let answer = timeout(PATIENCE, connection.answer()).await.unwrap().unwrap();
    assert_eq!(answer.head.status, 200, "{}", answer.text());
    let (chunks, done) = events(&answer.body);
    assert!(done, "{:?}", chunks.last());
    assert_eq!(outcome.choices.len(), 8);
    for choice in &outcome.choices {
        assert!(streamed(&chunks, choice.index.into()) == choice.text, "answer {} is another", choice.index);
        let told = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
        let told = told.filter(|own| own["index"] == choice.index);
        let told: usize = told.map(|own| own["logprobs"]["content"].as_array().map_or(0, Vec::len)).sum();
        assert_eq!(told, 1000);
    }
    let tokens = chunks.len();
    assert!(tokens < 8 * 1000, "nothing was dropped: {tokens} chunks; the reader was not slow enough for this test");
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 8 * 1000);
}

#[tokio::test]
async fn sixty_four_streams_at_once_are_steady() {
    let ground = Ground::sim(&["models.sim.sim.decode_s_per_step=0.01", "stages.decode.slots=64"]).await;
    let _workers = ground.workers().await;
    let (_gateway, url) = ground.gateway(&[]).await;
    let ask = |number: usize| {
        let url = url.clone();
        async move {
            let messages = json!([{ "role": "user", "content": format!("Story {number}") }]);
            let ask = json!({ "messages": messages, "stream": true, "max_tokens": 100 });
            let mut connection = Connection::open(&url).await;
            connection.request("POST", CHAT, &[], ask.to_string().as_bytes()).await;
            assert_eq!(connection.head().await.unwrap().status, 200);
            let (mut body, mut pieces) = (Vec::new(), 0);
            while let Some(chunk) = connection.chunk().await {
                body.extend(chunk);
                pieces += 1;
            }
            let (chunks, done) = events(&body);
            assert!(done && streamed(&chunks, 0).len() == 100, "{number}");
            pieces
        }
    };
    let pieces: Vec<usize> = futures::future::join_all((0..64).map(ask)).await;
    assert!(pieces.iter().all(|&pieces| pieces > 50), "tokens came in heaps: {pieces:?}");
}

#[tokio::test]
async fn deadlines_and_lanes_are_followed() {
    let ground = Ground::sim(&["models.sim.sim.decode_s_per_step=0.05"]).await;
    let _workers = ground.workers().await;
    let (_gateway, url) = ground.gateway(&[]).await;
    let late = post(&url, "/v1/completions", "", &json!({ "prompt": "x", "max_tokens": 4000, "deadline": 0.3 })).await;
    assert_eq!((late.head.status, late.json()["error"]["code"].as_str()), (408, Some("deadline_exceeded")));
    assert_eq!(late.head.headers["x-should-retry"], "false");
    let batch =
        post(&url, "/v1/completions", "", &json!({ "prompt": "x", "max_tokens": 2, "service_tier": "batch" })).await;
    let job = job_id(&batch.head.headers["baton-job-id"]);
    let outcome = ground.bus().await.jobs().await.unwrap().result(&name("default"), &job).await.unwrap().unwrap();
    assert_eq!(outcome.lane.as_str(), "batch");
}
