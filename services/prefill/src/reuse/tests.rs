//! Prompts of one worker that share beginnings, against a store in memory. What no broker is needed for: the end-to-end
//! tests have several workers.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use baton_contract::kv::Shape;
use baton_storage::{Codec, Store, key};
use tokio::{
    task::{JoinSet, yield_now},
    time::timeout,
};

use super::*;

const CHUNK: usize = 4;
const SHAPE: Shape = Shape { layers: 1, width: 2 };

fn reuse() -> Reuse {
    let store = KvStore::new(Store::open("memory:").unwrap(), SHAPE, Codec::Raw);
    Reuse { store, inflight: Inflight::default(), prefixes: None }
}

fn plan(reuse: &Reuse, tokens: &[u32], job: &str) -> Vec<Piece> {
    key::plan(&reuse.store.root(&[7; 32], b"acme"), tokens, CHUNK, job)
}

/// A block whose values say which chunk it is.
fn block(piece: &Piece) -> Arc<Block> {
    let tokens = piece.range.len();
    Arc::new(Block { tokens, layers: vec![vec![u16::from(piece.id.0[0]); SHAPE.layer_values(tokens)]] })
}

fn stored(prefix: &Prefix) -> usize {
    prefix.sources.iter().filter(|source| matches!(source, Source::Stored)).count()
}

#[tokio::test]
async fn a_prompt_finds_what_is_stored_waits_for_what_comes_and_takes_over_what_is_lost() {
    let reuse = reuse();
    let tokens: Vec<u32> = (0..19).collect();
    let pieces = plan(&reuse, &tokens, "a");
    for piece in &pieces[..2] {
        reuse.store.put(&piece.id, block(piece)).await.unwrap();
    }
    let mut first = reuse.find(&pieces, false).await.unwrap();
    assert_eq!((first.sources.len(), stored(&first)), (2, 2));

    // The same but for its last token: waits for two chunks, one after the other.
    let others = plan(&reuse, &tokens[..18], "b");
    let second = reuse.find(&others, false);
    tokio::pin!(second);
    assert!(timeout(Duration::ZERO, &mut second).await.is_err());
    first.owned.mark_computed(&pieces[2].id, block(&pieces[2]));
    assert!(timeout(Duration::ZERO, &mut second).await.is_err());
    reuse.store.put(&pieces[3].id, block(&pieces[3])).await.unwrap();
    first.mark_stored(&pieces[3].id);
    let second = second.await.unwrap();
    assert_eq!((second.sources.len(), stored(&second)), (4, 3));
    let Source::InMemory(held, mut pending) = second.sources[2].clone() else { panic!("not in memory") };
    assert_eq!(held, block(&pieces[2]));

    // The third takes chunk 2 over, which was never stored. Whoever holds it learns that.
    drop(first);
    assert!(!pending.wait_stored().await);
    let third = reuse.find(&pieces, false).await.unwrap();
    assert_eq!(third.sources.len(), 2);

    // A job that is tried again finds its own tail.
    for piece in &pieces {
        reuse.store.put_piece(&piece.id, piece.kind, block(piece)).await.unwrap();
    }
    drop(third);
    assert_eq!(reuse.find(&pieces, false).await.unwrap().sources.len(), 4);
    assert_eq!(reuse.find(&pieces, true).await.unwrap().sources.len(), 5);
    assert_eq!(reuse.find(&others, true).await.unwrap().sources.len(), 4, "the tail is another job's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn prompts_at_once_compute_each_chunk_exactly_once() {
    for _ in 0..20 {
        assert_eq!(sixty_at_once(false).await.0, 0, "chunks were computed again, and nobody left");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn prompts_that_leave_make_nobody_wait_for_ever() {
    let (more, lost) = sixty_at_once(true).await;
    // Mostly one for each; more where others had gone on from the lost chunk before somebody took it over.
    assert!(more <= 2 * lost, "{more} chunks were computed again, and {lost} prompts left");
}

/// Sixty prompts of eight kinds at once, some of which may leave half-way and come again: all end. Returns the chunks that
/// were computed again, and the prompts that left.
async fn sixty_at_once(leaving: bool) -> (usize, usize) {
    let reuse = Arc::new(reuse());
    let computed: Arc<Mutex<HashMap<ChunkId, usize>>> = Arc::default();
    let lost = Arc::new(AtomicUsize::new(0));
    let mut prompts = JoinSet::new();
    for number in 0..60usize {
        let kind = number % 8;
        let common = 0..16u32;
        let middle = (0..8u32).map(|token| 100 + token + 50 * (kind as u32 / 2));
        let end = (0..10u32).map(|token| 1000 + token + 50 * kind as u32);
        let tokens: Vec<u32> = common.chain(middle).chain(end).collect();
        let (reuse, computed, lost) = (reuse.clone(), computed.clone(), lost.clone());
        prompts.spawn(async move {
            let pieces = plan(&reuse, &tokens, &format!("job-{number}"));
            let mut leaves = (leaving && number % 5 == 0).then_some(number % 7);
            'again: loop {
                let mut prefix = reuse.find(&pieces, false).await.unwrap();
                for piece in &pieces[prefix.sources.len()..] {
                    *computed.lock().unwrap().entry(piece.id).or_default() += 1;
                    yield_now().await;
                    prefix.owned.mark_computed(&piece.id, block(piece));
                    yield_now().await;
                    if leaves.take_if(|at| piece.range.start >= *at * CHUNK).is_some() {
                        lost.fetch_add(1, Ordering::Relaxed);
                        continue 'again;
                    }
                    reuse.store.put(&piece.id, block(piece)).await.unwrap();
                    prefix.mark_stored(&piece.id);
                }
                for (piece, source) in pieces.iter().zip(prefix.sources.clone()) {
                    if let Source::InMemory(held, mut pending) = source {
                        assert_eq!(held, block(piece));
                        if !pending.wait_stored().await {
                            reuse.store.put(&piece.id, held).await.unwrap();
                        }
                    }
                    assert!(reuse.store.exists(&piece.id).await.unwrap(), "handed on before it was stored");
                }
                return;
            }
        });
    }
    let all = async { while prompts.join_next().await.transpose().unwrap().is_some() {} };
    timeout(Duration::from_secs(60), all).await.expect("some wait for ever");
    let (computed, lost) = (computed.lock().unwrap(), lost.load(Ordering::Relaxed));
    // 4 common, 4 x 2 in the middle, 8 x 2 at the end, and the tails.
    assert_eq!(computed.len(), 4 + 8 + 16 + 60);
    (computed.values().map(|times| times - 1).sum(), lost)
}
