//! What must not end a process, what must, and what is made again.

use std::{collections::BTreeMap, time::Duration};

use baton_bus::{
    Bus,
    stage::{cancel::Answer, jobs::Jobs},
};
use baton_contract::{outcome::Status, subject::Stage};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    http::{get, post},
    support::{Ground, PATIENCE, job_id, name},
};

/// A carriage return in a header: the client panics.
const RETURN: &[u8] = b"NATS/1.0\r\nX: a\rb\r\n\r\n";
/// A header that is no text: the client gives the connection up.
const NO_TEXT: &[u8] = b"NATS/1.0\r\nX: \xff\xfe\r\n\r\n";

/// A client of the broker that says what no library would.
struct Stranger(BufReader<TcpStream>);

impl Stranger {
    async fn new(ground: &Ground) -> Self {
        let stream = TcpStream::connect(ground.server.url().trim_start_matches("nats://")).await.unwrap();
        let mut stranger = Self(BufReader::new(stream));
        stranger.say(b"CONNECT {\"verbose\":false,\"headers\":true}\r\n").await;
        stranger
    }

    async fn say(&mut self, words: &[u8]) {
        self.0.write_all(words).await.unwrap();
    }

    /// Publishes, and waits until the broker has taken it.
    async fn publish(&mut self, subject: &[u8], header: &[u8], body: &[u8]) {
        let sizes = format!(" {} {}\r\n", header.len(), header.len() + body.len());
        let message = [b"HPUB ", subject, sizes.as_bytes(), header, body, b"\r\nPING\r\n"].concat();
        self.say(&message).await;
        while self.line().await != "PONG" {}
    }

    async fn line(&mut self) -> String {
        let mut line = Vec::new();
        timeout(PATIENCE, self.0.read_until(b'\n', &mut line)).await.expect("the broker says nothing").unwrap();
        String::from_utf8_lossy(&line).trim().to_owned()
    }

    /// Where answers to another client arrive, the first that is seen.
    async fn inbox_of_others(&mut self) -> String {
        self.say(b"SUB _INBOX.> 1\r\n").await;
        loop {
            let line = self.line().await;
            let words: Vec<_> = line.split(' ').collect();
            if let ["MSG" | "HMSG", subject, .., size] = words[..] {
                let mut body = vec![0; size.parse::<usize>().unwrap() + 2];
                self.0.read_exact(&mut body).await.unwrap();
                if let Some((inbox, _)) = subject.rsplit_once('.').filter(|(inbox, _)| inbox.contains('.')) {
                    return inbox.to_owned();
                }
            }
        }
    }
}

async fn completes(bus: &Bus, jobs: &Jobs, id: &str) {
    let request = json!({ "id": id, "prompt": "x", "max_tokens": 2 }).to_string().into_bytes();
    let tenant = name("good");
    bus.submit(&tenant, &name("interactive"), request).await.unwrap();
    let ended = async {
        loop {
            // The stream may be away for a moment.
            if let Ok(Some(outcome)) = jobs.result(&tenant, &job_id(id)).await {
                return outcome;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let outcome = timeout(PATIENCE, ended).await.unwrap_or_else(|_| panic!("{id} has no result"));
    assert_eq!(outcome.status, Status::Completed, "{:?}", outcome.error);
}

#[tokio::test]
async fn no_message_of_a_stranger_keeps_others_from_their_answers() {
    let ground = Ground::sim(&["lanes=interactive"]).await;
    let mut workers = ground.workers().await;
    let (mut gateway, url) = ground.gateway(&[]).await;
    let (bus, mut stranger) = (ground.bus().await, Stranger::new(&ground).await);
    let jobs = bus.jobs().await.unwrap();
    completes(&bus, &jobs, "before").await;
    assert_eq!(get(&url, "/readyz").await.text(), "ready\n");

    let (cancel, told) =
        (bus.layout().cancel(&name("evil"), &job_id("x")), bus.layout().cancelled(&name("evil"), &job_id("x")));
    for header in [RETURN, NO_TEXT] {
        for queue in
            ["baton.req.evil.interactive", "baton.prefill.sim.interactive.evil", "baton.decode.sim.interactive.evil"]
        {
            stranger.publish(queue.as_bytes(), header, br#"{"prompt":"x"}"#).await;
        }
        for subject in [&cancel, &told, "baton.stats.decode.evil", "$SRV.PING"] {
            stranger.publish(subject.as_bytes(), header, b"").await;
        }
    }
    // A subject that is no text, and a message that looks like the broker's own word.
    stranger.publish(b"baton.req.\xff.interactive", b"NATS/1.0\r\n\r\n", b"{}").await;
    let request = br#"{"id":"odd","prompt":"x","max_tokens":2}"#;
    stranger.publish(b"baton.req.evil.interactive", b"NATS/1.0 404 No Messages\r\n\r\n", request).await;

    for id in ["one", "two", "three"] {
        completes(&bus, &jobs, id).await;
    }
    let ask = json!({ "prompt": "x", "max_tokens": 2 });
    assert_eq!(post(&url, "/v1/completions", "", &ask).await.head.status, 200);
    assert_eq!(get(&url, "/readyz").await.text(), "ready\n");
    assert_eq!(bus.cancel(&name("good"), &job_id("nobody")).await.unwrap(), Answer::Unknown);
    assert!(workers.iter_mut().all(|worker| worker.lives()) && gateway.lives(), "a process ended");
    let odd = async { while jobs.result(&name("evil"), &job_id("odd")).await.unwrap().is_none() {} };
    timeout(PATIENCE, odd).await.expect("a message with a status was never taken");

    // Those who lost a connection to them have put them aside, each with its cause.
    let buried = async {
        loop {
            let mut causes: BTreeMap<Stage, Vec<String>> = BTreeMap::new();
            for letter in bus.letters().all().await.unwrap() {
                causes.entry(letter.id.stage()).or_default().push(letter.cause.message);
            }
            if causes.values().map(Vec::len).sum::<usize>() >= 7 {
                return causes;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let causes = timeout(PATIENCE, buried).await.expect("what nobody can take was not put aside");
    for stage in Stage::ALL {
        for cause in ["carriage return", "not UTF-8"] {
            assert!(causes[&stage].iter().any(|found| found.contains(cause)), "{stage}: {cause}: {causes:?}");
        }
    }
}

#[tokio::test]
async fn a_worker_whose_connection_died_ends() {
    let ground = Ground::sim(&[]).await;
    let ingest = ground.worker("ingest", "ingest-1").await;
    let mut stranger = Stranger::new(&ground).await;
    // Only who may read all answers can do this.
    let inbox = stranger.inbox_of_others().await;
    stranger.publish(format!("{inbox}.x").as_bytes(), RETURN, b"").await;
    assert!(!ingest.ended().await.success());
}

#[tokio::test]
async fn what_the_broker_lost_is_made_again() {
    let ground = Ground::sim(&["lanes=interactive"]).await;
    let _workers = ground.workers().await;
    let (_gateway, url) = ground.gateway(&[]).await;
    let (bus, mut stranger) = (ground.bus().await, Stranger::new(&ground).await);
    let jobs = bus.jobs().await.unwrap();
    completes(&bus, &jobs, "before").await;
    for lost in
        ["CONSUMER.DELETE.baton_prefill.sim-interactive", "STREAM.DELETE.KV_baton_jobs", "STREAM.DELETE.baton_decode"]
    {
        stranger.publish(format!("$JS.API.{lost}").as_bytes(), b"NATS/1.0\r\n\r\n", b"").await;
        completes(&bus, &jobs, &lost.replace('.', "-")).await;
    }
    let ready = async { while get(&url, "/readyz").await.head.status != 200 {} };
    timeout(PATIENCE, ready).await.expect("the gateway is not ready again");
}

#[tokio::test]
async fn maintenance_passes_over_what_no_client_can_take() {
    let ground = Ground::sim(&[]).await;
    assert!(ground.baton(&["provision"]).await.status.success());
    let mut stranger = Stranger::new(&ground).await;
    // No worker is there to put them aside.
    for header in [RETURN, NO_TEXT] {
        stranger.publish(b"baton.req.evil.batch", header, b"{}").await;
        stranger.publish(b"baton.decode.sim.batch.evil", header, b"{}").await;
    }
    for words in [&["reconcile"][..], &["kv", "stat"], &["kv", "gc"]] {
        let output = ground.baton(words).await;
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
