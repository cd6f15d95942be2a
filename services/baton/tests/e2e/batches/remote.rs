//! The same on a real S3 store.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use baton_storage::files::{self, Files, Swept};

use super::{CROWD, Gateway, python, watch};
use crate::{seaweed::Seaweed, support::Ground};

const BYTES: &str = include_str!("bytes.py");
const SLOTS: [&str; 2] = ["stages.prefill.slots=64", "stages.decode.slots=64"];

/// A sim pipeline whose store is the server's.
async fn ground(seaweed: &Seaweed) -> Ground {
    let url = format!("store.url={}", seaweed.url("pipeline"));
    Ground::sim(&[SLOTS[0], SLOTS[1], &url]).await.environment(seaweed.vars())
}

/// Blobs in the store, none of which is touched.
async fn blobs(seaweed: &Seaweed) -> u64 {
    let everything_is_young = Duration::from_secs(86_400);
    let nothing = async { Ok::<_, files::Error>(HashSet::new()) };
    let swept = Files::new(seaweed.open("pipeline")).sweep(everything_is_young, SystemTime::now(), nothing).await;
    let Swept { blobs, removed } = swept.unwrap();
    assert_eq!(removed, 0);
    blobs
}

/// Uploads a batch, waits for its end and returns its id.
async fn ran(ground: &Ground, gateway: &Gateway, count: u64) -> String {
    let id = python(ground, CROWD, &[&gateway.url, "begin", &count.to_string(), "24h"]).await;
    watch(ground, &id, |batch| batch.status.is_final()).await;
    id
}

#[tokio::test]
async fn files_come_back_byte_for_byte_a_batch_runs_and_what_is_deleted_leaves_the_store() {
    let seaweed = Seaweed::start().await;
    let ground = ground(&seaweed).await;
    let _workers = ground.workers().await;
    let gateway = Gateway::start(&ground, &[]).await;
    assert_eq!(python(&ground, BYTES, &[&gateway.url, "12345678"]).await, "done");
    assert_eq!(blobs(&seaweed).await, 0, "a deleted file's bytes were left");

    let id = ran(&ground, &gateway, 500).await;
    assert_eq!(python(&ground, CROWD, &[&gateway.url, "check", "500", &id]).await, "495 5");
    // What went in, what came out, and the errors.
    assert_eq!(blobs(&seaweed).await, 3);
    assert_eq!(python(&ground, CROWD, &[&gateway.url, "delete", "500", &id]).await, "3");
    assert_eq!(blobs(&seaweed).await, 0, "a deleted file's bytes were left");
}

#[tokio::test]
async fn size_costs_no_memory() {
    let seaweed = Seaweed::start().await;
    let ground = ground(&seaweed).await;
    let _workers = ground.workers().await;
    let memory = async |count: u64, checked: &str| {
        let gateway = Gateway::start(&ground, &[]).await;
        let id = ran(&ground, &gateway, count).await;
        let memory = gateway.memory();
        assert_eq!(python(&ground, CROWD, &[&gateway.url, "check", &count.to_string(), &id]).await, checked);
        memory
    };
    let few = memory(100, "99 1").await;
    let many = memory(10_000, "9900 100").await;
    println!("memory on S3: {few} KiB for 100, {many} KiB for 10,000");
    assert!(many as f64 <= 1.2 * few as f64, "a batch of 100 took {few} KiB, one of 10,000 {many} KiB");
}
