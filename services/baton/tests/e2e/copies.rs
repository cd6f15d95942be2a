//! Requests that come again, and requests of several tenants that look alike.

use baton_bus::{Bus, Error};
use baton_contract::{envelope::PrefillTask, outcome::Status, stats::Queue, subject::Stage};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::yield_now,
    time::timeout,
};

use crate::support::{Ground, PATIENCE, job_id, name, result};

fn request(id: &str) -> Vec<u8> {
    json!({ "id": id, "prompt": "Hello", "max_tokens": 4 }).to_string().into_bytes()
}

/// Waits until ingest has no request any more.
async fn until_ingested(bus: &Bus) {
    let has_some = |queue: &Queue| queue.stage == Stage::Ingest && queue.waiting + queue.delivered > 0;
    let done = async {
        while bus.queues().await.unwrap().iter().any(has_some) {
            yield_now().await;
        }
    };
    timeout(PATIENCE, done).await.expect("requests wait for ingest for ever");
}

async fn job(ground: &Ground, id: &str) -> Value {
    let shown = ground.baton(&["job", id, "--tenant", "acme", "--json"]).await;
    serde_json::from_slice(&shown.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&shown.stderr)))
}

#[tokio::test]
async fn a_request_that_comes_again_is_the_same_job_and_no_try_of_it() {
    let ground = Ground::sim(&["stages.ingest.max_deliver=2"]).await;
    let ingest = ground.worker("ingest", "ingest-1").await;
    let bus = ground.bus().await;
    let (tenant, lane) = (name("acme"), name("batch"));
    let mut follower = bus.follow(&tenant).await.unwrap();
    for _ in 0..7 {
        bus.submit(&tenant, &lane, request("same")).await.unwrap();
        until_ingested(&bus).await;
    }
    // Also where another process takes it.
    ingest.drain().await;
    let _ingest = ground.worker("ingest", "ingest-2").await;
    bus.submit(&tenant, &name("interactive"), request("same")).await.unwrap();
    until_ingested(&bus).await;
    assert_eq!(bus.waiting::<PrefillTask>(Stage::Prefill).await.unwrap().count, 1, "copies were passed on");
    let waits = job(&ground, "same").await;
    assert_eq!((&waits["state"], &waits["tries"]), (&json!("accepted"), &json!(1)), "{waits}");
    let expected = json!({
        "for": "queue", "stage": "prefill", "model": "sim", "lane": "batch", "jobs": 1, "turn": 0, "served": false,
    });
    assert_eq!(waits["waits"], expected);
    let _prefill = ground.worker("prefill", "prefill-1").await;
    let _decode = ground.worker("decode", "decode-1").await;
    assert_eq!(result(&mut follower, &job_id("same")).await.status, Status::Completed);
    bus.submit(&tenant, &lane, request("same")).await.unwrap();
    until_ingested(&bus).await;
    assert_eq!(bus.waiting::<PrefillTask>(Stage::Prefill).await.unwrap().count, 0);
}

/// Publishes as a client library of no kind does: with these headers, and waits for the broker's answer.
async fn publish(ground: &Ground, subject: &str, headers: &str, body: &[u8]) -> String {
    let address = ground.server.url().trim_start_matches("nats://").to_owned();
    let mut broker = TcpStream::connect(address).await.unwrap();
    let head = format!("NATS/1.0\r\n{headers}\r\n\r\n");
    let (bytes, all) = (head.len(), head.len() + body.len());
    let said = format!(
        "CONNECT {{\"headers\":true,\"no_responders\":true}}\r\nSUB answer 1\r\nHPUB {subject} answer {bytes} {all}\r\n{head}"
    );
    broker.write_all(&[said.as_bytes(), body, b"\r\n"].concat()).await.unwrap();
    let mut answer = Vec::new();
    let answered = async {
        let mut buffer = [0; 4096];
        loop {
            let read = broker.read(&mut buffer).await.unwrap();
            answer.extend_from_slice(&buffer[..read]);
            let text = String::from_utf8_lossy(&answer).into_owned();
            if let Some((_, rest)) = text.split_once("MSG answer")
                && rest.split_once("\r\n").is_some_and(|(_, body)| body.contains("\r\n"))
            {
                return rest.to_owned();
            }
        }
    };
    timeout(PATIENCE, answered).await.expect("the broker did not answer")
}

#[tokio::test]
async fn tenants_do_not_meet_in_message_ids_and_no_request_waits_where_nobody_looks() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let bus = ground.bus().await;
    for tenant in ["acme", "zeta"] {
        let answer =
            publish(&ground, &format!("baton.req.{tenant}.batch"), "Nats-Msg-Id: report-7", &request("report-7")).await;
        assert!(answer.contains(r#""stream":"baton_req""#) && !answer.contains("duplicate"), "{answer}");
    }
    for tenant in ["acme", "zeta"] {
        let mut follower = bus.follow(&name(tenant)).await.unwrap();
        assert_eq!(result(&mut follower, &job_id("report-7")).await.status, Status::Completed, "{tenant}");
    }
    let answer = publish(&ground, "baton.req.acme.nolane", "A: b", &request("lost")).await;
    assert!(answer.contains("503"), "{answer}");
    let refused = bus.submit(&name("acme"), &name("nolane"), request("lost")).await.unwrap_err();
    assert!(matches!(&refused, Error::UnknownLane { lanes, .. } if lanes == "interactive, batch"), "{refused:?}");
}
