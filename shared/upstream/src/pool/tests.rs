use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use baton_contract::upstream::Engine;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{sleep, timeout},
};

use super::*;

fn upstream(urls: &[String], max_running: Option<usize>) -> Upstream {
    let options = Options {
        engine: Engine::LlamaCpp,
        name: "m".into(),
        model: "m".into(),
        urls: urls.to_vec(),
        prefill_urls: Vec::new(),
        api_key_file: None,
        ca_file: None,
        max_running,
        timeout: Duration::from_secs(5),
    };
    Upstream::new(options).unwrap()
}

/// Places that nobody asks anything.
fn nowhere(count: usize, max_running: Option<usize>) -> Upstream {
    let urls: Vec<_> = (0..count).map(|index| format!("http://127.0.0.1:{}", index + 1)).collect();
    upstream(&urls, max_running)
}

#[tokio::test(start_paused = true)]
async fn a_place_is_waited_for_and_given_back_however_it_ends() {
    let upstream = nowhere(1, Some(2));
    assert_eq!(*upstream.slots().borrow(), 2);
    for ended in [Some(Ended::Answered), Some(Ended::Refused), None] {
        let (first, second) = (upstream.place(1).await, upstream.place(2).await);
        let third = upstream.place(3);
        tokio::pin!(third);
        assert!(timeout(Duration::from_secs(600), &mut third).await.is_err(), "there is room for two");
        match ended {
            Some(ended) => first.end(ended),
            None => drop(first),
        }
        drop((third.await, second));
    }
    let told = &upstream.stats()[0];
    assert_eq!((told.model.as_str(), told.limit, told.running), ("m", 2, 0));
    assert_eq!((told.answered, told.failed, told.up), (1, 1, true));
}

#[tokio::test(start_paused = true)]
async fn equal_beginnings_meet_and_an_instance_that_is_gone_is_left_alone() {
    let upstream = nowhere(3, Some(4));
    let mut slots = upstream.slots();
    let first = upstream.place(7).await;
    let url = first.instance().url().to_owned();
    let second = upstream.place(7).await;
    assert_eq!(second.instance().url(), url);
    first.end(Ended::Gone);
    second.end(Ended::Gone);
    assert_eq!(*slots.borrow_and_update(), 8, "two are left");
    assert_ne!(upstream.place(7).await.instance().url(), url);
    let down = upstream.stats().into_iter().find(|told| told.url == url).unwrap();
    assert_eq!((down.up, down.limit, down.failed), (false, 1, 2));
    assert!(down.fault.is_some());
    // A request finds out whether it is back.
    sleep(Duration::from_secs(2)).await;
    let mut found = upstream.place(7).await;
    assert_eq!(found.instance().url(), url);
    found.first_token();
    assert!(slots.has_changed().unwrap());
    assert_eq!(*slots.borrow_and_update(), 12);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_at_an_instance_that_is_gone_tries_it_one_at_a_time() {
    let upstream = nowhere(1, Some(8));
    let tries = AtomicUsize::new(0);
    upstream.place(0).await.end(Ended::Gone);
    let one = async || {
        loop {
            let place = upstream.place(0).await;
            tries.fetch_add(1, Ordering::Relaxed);
            place.end(Ended::Gone);
        }
    };
    let many = futures::future::join_all((0..8).map(|_| one()));
    assert!(timeout(Duration::from_secs(60), many).await.is_err());
    let tries = tries.load(Ordering::Relaxed);
    assert!((30..66).contains(&tries), "{tries} tries in a minute");
    assert_eq!(*upstream.slots().borrow(), 1);
}

/// Answers each request with what it is given for the path.
async fn server(health: impl Fn() -> &'static str + Send + 'static, metrics: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 2048];
            let length = stream.read(&mut request).await.unwrap();
            let is_metrics = request[..length].starts_with(b"GET /metrics");
            let (status, body) = if is_metrics { ("200 OK", metrics) } else { (health(), "{}") };
            let length = body.len();
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    url
}

#[tokio::test]
async fn the_engines_queue_is_read_and_its_health_checked() {
    let well = Arc::new(AtomicUsize::new(0));
    let health = {
        let well = well.clone();
        move || if well.load(Ordering::Relaxed) == 0 { "503 Service Unavailable" } else { "200 OK" }
    };
    let url = server(health, "llamacpp:requests_processing 4\nllamacpp:requests_deferred 28\n").await;
    let upstream = upstream(&[url], None);
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (upstream, stop) = (upstream.clone(), stop.clone());
        async move { upstream.run(stop).await }
    });
    assert!(upstream.stats().is_empty(), "nobody has wanted it");
    let mut slots = upstream.slots();
    slots.wait_for(|&slots| slots == 1).await.unwrap();
    assert!(upstream.stats()[0].fault.as_deref().unwrap().contains("503"), "{:?}", upstream.stats());
    well.store(1, Ordering::Relaxed);
    // A request is let through, and its first token ends the outage.
    let mut place = upstream.place(0).await;
    place.first_token();
    slots.wait_for(|&slots| slots == 8).await.unwrap();
    // 28 wait, of which ours is one.
    slots.wait_for(|&slots| slots < 8).await.unwrap();
    assert_eq!(upstream.stats()[0].waiting, Some(28));
    stop.cancel();
    running.await.unwrap();
}
