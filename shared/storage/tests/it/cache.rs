//! A worker's cache in front of a store: what it serves, what it forgets, and that nothing wrong comes out of it.

use std::{fs, path::Path};

use baton_contract::kv::{Block, Shape};
use baton_storage::{
    Cache, ChunkId, Codec, KvStore, ObjectPath, Store,
    cache::Options,
    kv::{Fetched, Source},
};

const SHAPE: Shape = Shape { layers: 2, width: 16 };
const TOKENS: usize = 10;
/// Bytes of a chunk, about: its values, and less for the header.
const CHUNK: u64 = 2 * 2 * 16 * 10 * 2;

#[tokio::test]
async fn memory_keeps_what_was_used_last() {
    let store = Store::open("memory:").unwrap();
    let kv = with(&store, Options { memory: 3 * CHUNK, disk: None });
    for number in 1..=2 {
        kv.put(&id(number), block(number)).await.unwrap();
    }
    assert_eq!(get(&kv, 1).await.source, Source::Memory, "what is put is entered");
    kv.put(&id(3), block(3)).await.unwrap();
    assert_eq!(get(&kv, 2).await.source, Source::Store, "the least recently used goes");
    assert_eq!(get(&kv, 2).await.source, Source::Memory, "what is got is entered");

    // A prefix that is here and was seen in the store lately needs no question; what the store never had is not found.
    let other = KvStore::new(store.clone(), SHAPE, Codec::Raw);
    assert_eq!(kv.find(&[id(2), id(3), id(4)]).await.unwrap(), 2);
    assert_eq!(other.find(&[id(1), id(2), id(3), id(4)]).await.unwrap(), 3);

    let none = with(&store, Options::default());
    assert_eq!(get(&none, 1).await.source, Source::Store);
    assert_eq!(get(&none, 1).await.source, Source::Store, "a budget of 0 keeps nothing");
}

#[tokio::test]
async fn a_directory_survives_its_worker_and_damage_does_not_survive_a_read() {
    let dir = tempfile::tempdir().unwrap();
    let store_dir = dir.path().join("store");
    let open = || Store::open(store_dir.to_str().unwrap()).unwrap();
    let cache = dir.path().join("cache");
    let worker = |bytes| with(&open(), Options { memory: 10 * CHUNK, disk: Some((cache.clone(), bytes)) });

    let first = worker(4 * CHUNK);
    for number in 1..=3 {
        first.put(&id(number), block(number)).await.unwrap();
    }
    // While it lives, another has a folder of its own, and finds nothing there.
    let second = worker(4 * CHUNK);
    assert_eq!(get(&second, 1).await.source, Source::Store);
    assert_eq!(get(&second, 1).await.source, Source::Memory);
    drop((first, second));
    assert!(cache.join("1").join(id(1).to_string()).exists());

    fs::write(cache.join("0").join(format!("{}.1234", id(9))), b"half").unwrap();
    let file = |number| cache.join("0").join(id(number).to_string());
    flip_a_bit(&file(2));
    fs::write(file(3), vec![0; 1 << 20]).unwrap();
    let third = worker(1 << 30);
    assert!(!cache.join("0").join(format!("{}.1234", id(9))).exists(), "a half-written file stays");
    for (number, first, then) in
        [(1, Source::Disk, Source::Memory), (2, Source::Store, Source::Memory), (3, Source::Store, Source::Memory)]
    {
        assert_eq!(get(&third, number).await.source, first, "chunk {number}");
        assert_eq!(get(&third, number).await.source, then, "chunk {number}");
    }
    drop(third);

    // The next finds sound files in the place of the damaged; and what the store has lost meanwhile, it gets back.
    open().delete(&ObjectPath::chunk(&id(2))).await.unwrap();
    let fourth = worker(1 << 30);
    assert_eq!(fourth.find(&[id(1), id(2)]).await.unwrap(), 1, "what others can't get is not there");
    assert_eq!(get(&fourth, 2).await.source, Source::Disk);
    let plain = KvStore::new(open(), SHAPE, Codec::Raw);
    assert_eq!(get(&plain, 2).await.source, Source::Store);
    drop(fourth);

    // A smaller budget holds from the start.
    drop(worker(CHUNK * 3 / 2));
    let kept = (1..=3).filter(|number| file(*number).exists()).collect::<Vec<_>>();
    assert_eq!(kept, [2], "the one used last stays");
}

#[test]
fn what_cannot_be_a_directory_is_told_at_once() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Cache::open(Options { memory: 0, disk: Some((file.path().into(), 1)) }).unwrap_err();
    assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
}

fn with(store: &Store, options: Options) -> KvStore {
    KvStore::new(store.clone(), SHAPE, Codec::Raw).with_cache(Cache::open(options).unwrap())
}

/// The chunk, which must be right, wherever it comes from.
async fn get(kv: &KvStore, number: u8) -> Fetched {
    let fetched = kv.get(&id(number), TOKENS).await.unwrap().unwrap();
    assert_eq!(*fetched.block, block(number), "chunk {number}");
    fetched
}

fn id(number: u8) -> ChunkId {
    ChunkId([number; 32])
}

fn block(number: u8) -> Block {
    Block { tokens: TOKENS, layers: vec![vec![u16::from(number) << 8; SHAPE.layer_values(TOKENS)]; SHAPE.layers] }
}

fn flip_a_bit(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(file, bytes).unwrap();
}
