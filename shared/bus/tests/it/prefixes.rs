//! Claims on prefixes.

use std::time::Duration;

use baton_bus::stage::prefixes::{ChunkOwner, Claim, Ended, Prefixes, Theirs};
use tokio::time::timeout;

use crate::support::{Broker, PATIENCE};

/// Chunks by their first byte.
fn chunk(number: u8) -> [u8; 32] {
    [number; 32]
}

async fn ours(prefixes: &Prefixes, chunks: &[u8]) -> Claim {
    let following: Vec<_> = chunks[1..].iter().copied().map(chunk).collect();
    match prefixes.claim(&chunk(chunks[0]), &following).await.unwrap() {
        ChunkOwner::Ours(claim) => claim,
        ChunkOwner::Theirs(theirs) => panic!("{theirs:?}"),
    }
}

async fn theirs(prefixes: &Prefixes, chunks: &[u8]) -> Theirs {
    let following: Vec<_> = chunks[1..].iter().copied().map(chunk).collect();
    match prefixes.claim(&chunk(chunks[0]), &following).await.unwrap() {
        ChunkOwner::Theirs(theirs) => *theirs,
        ChunkOwner::Ours(claim) => panic!("{claim:?}"),
    }
}

#[tokio::test]
async fn a_claim_on_a_prefix_holds_while_its_worker_lives_and_shows_its_progress() {
    const LIFE: Duration = Duration::from_secs(1);
    let broker = Broker::start().await;
    let prefixes = broker.bus().await.prefixes(LIFE).await.unwrap();
    let others = broker.bus().await.prefixes(LIFE).await.unwrap();

    // Who shares two of three chunks waits for two.
    let claim = ours(&prefixes, &[1, 2, 3]).await;
    let waiting = theirs(&others, &[1, 2, 9]).await.ended();
    tokio::pin!(waiting);
    claim.stored(&chunk(1));
    assert!(timeout(LIFE / 4, &mut waiting).await.is_err(), "one of two is not all");
    claim.stored(&chunk(2));
    assert_eq!(timeout(PATIENCE, waiting).await.unwrap().unwrap(), Ended::Stored);
    // Another chunk is another claim.
    let _other = ours(&others, &[9]).await;

    // Renewed, it outlives its life, but not everybody's patience.
    assert_eq!(theirs(&others, &[1, 3]).await.ended().await.unwrap(), Ended::OutOfPatience);
    let waiting = tokio::spawn(theirs(&others, &[1, 3]).await.ended());
    drop(claim);
    assert_eq!(timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap(), Ended::Gone);
    drop(ours(&others, &[1, 3]).await);

    // Nobody renews the claim of the dead.
    let dead = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let claim = runtime.block_on(ours(&prefixes, &[5]));
        runtime.shutdown_background();
        drop(claim);
    });
    dead.await.unwrap();
    assert_eq!(timeout(PATIENCE, theirs(&others, &[5]).await.ended()).await.unwrap().unwrap(), Ended::Gone);
    drop(ours(&others, &[5]).await);
}
