//! A broker whose storage is full says so wherever people look.

use baton_bus::provision::settings::Full;
use serde_json::{Value, json};

use crate::{
    http::Connection,
    support::{Ground, name},
};

/// The first problem that the live page hears of.
async fn first_problem(url: &str) -> Value {
    let mut connection = Connection::open(url).await;
    connection.request("GET", "/api/live", &[], &[]).await;
    assert_eq!(connection.head().await.unwrap().status, 200);
    loop {
        let event = connection.chunk().await.expect("the events ended");
        let Some(event) = event.strip_prefix(b"data: ") else { continue };
        let problem = serde_json::from_slice::<Value>(event).unwrap()["problem"].clone();
        if !problem.is_null() {
            return problem;
        }
    }
}

#[tokio::test]
async fn the_page_and_the_doctor_tell_of_a_broker_without_room() {
    let ground = Ground::small("2MB", &["models.sim.source=sim", "default_model=sim"]).await;
    let (_gateway, url) = ground.gateway(&[]).await;
    let bus = ground.bus().await;
    assert!(bus.full(bus.room().await.unwrap()).await.is_none());
    let request = |number| json!({ "id": format!("job-{number}"), "prompt": "x".repeat(100_000), "max_tokens": 1 });
    for number in 0.. {
        assert!(number < 40, "4 MB found room in 2 MB");
        let body = request(number).to_string().into_bytes();
        if bus.submit(&name("default"), &name("batch"), body).await.is_err() {
            break;
        }
    }
    assert!(matches!(bus.full(bus.room().await.unwrap()).await, Some(Full::Refuses { .. })));

    let problem = first_problem(&url).await;
    assert!(problem.as_str().unwrap().starts_with("The broker stores nothing"), "{problem}");
    let doctor = ground.baton(&["doctor"]).await;
    let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(!doctor.status.success() && told.contains("the broker stores nothing now"), "{told}");
}
