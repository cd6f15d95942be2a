//! Collection on every kind of store: memory, a local directory, and a real S3 server run one suite.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, SystemTime},
};

use baton_storage::{
    ChunkId, ObjectPath, Store,
    collect::{self, Census, Leftover, Options, Removal, TOUCH_EVERY},
};
use bytes::Bytes;
use tokio::time::interval;

use crate::seaweed;

const GRACE: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn memory() {
    collects(&Store::open("memory:").unwrap(), 1).await;
}

#[tokio::test]
async fn s3_server() {
    let server = seaweed::Seaweed::start().await;
    collects(&server.open("collects"), 1).await;
}

#[tokio::test]
async fn local_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().to_str().unwrap()).unwrap();
    // Its files carry the time of their last use themselves.
    collects(&store, 0).await;

    let place = dir.path().join("kv/05");
    std::fs::create_dir_all(&place).unwrap();
    let name = ChunkId([5; 32]).to_string();
    std::fs::write(place.join(format!("{name}#1")), b"half of a chu").unwrap();
    std::fs::create_dir_all(dir.path().join("probe")).unwrap();
    std::fs::write(dir.path().join("probe").join(&name), b"first").unwrap();
    // Nobody's business: another program's files, and what lies behind a link.
    std::fs::write(place.join("notes.txt"), b"mine").unwrap();
    std::fs::write(dir.path().join("unrelated#1"), b"mine").unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("other#1"), b"mine").unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("kv/06")).unwrap();

    let census = census(&store).await;
    let now = SystemTime::now();
    assert_eq!((census.objects.len(), census.leftovers.len()), (0, 2), "{census:?}");
    assert!(census.leftovers.iter().all(|leftover| !leftover.is_older_than(GRACE, now)), "a put may still go on");
    assert!(census.leftovers.iter().all(|leftover| leftover.is_older_than(GRACE, now + GRACE)));
    let swept = collect::sweep(&store, Vec::new(), census.leftovers, || {}).await;
    assert_eq!((swept.leftovers, swept.failed), (2, 0));
    assert!(self::census(&store).await.leftovers.is_empty());
    assert!(place.join("notes.txt").exists() && dir.path().join("unrelated#1").exists());
    assert!(elsewhere.path().join("other#1").exists());

    // What can't be removed is told.
    put(&store, 7).await;
    put(&store, 8).await;
    let removals = all(&self::census(&store).await);
    std::fs::remove_dir_all(dir.path().join("kv")).unwrap();
    std::fs::write(dir.path().join("kv"), b"in the way").unwrap();
    let swept = collect::sweep(&store, removals, Vec::new(), || {}).await;
    assert_eq!((swept.removed.len(), swept.failed), (0, 2), "{swept:?}");
    assert!(swept.error.is_some());
}

/// Every chunk, whatever its age.
fn all(census: &Census) -> Vec<Removal> {
    let options = Options { max_age: Duration::ZERO, max_bytes: None, grace: Duration::ZERO };
    collect::plan(&census.objects, &HashSet::new(), SystemTime::now() + GRACE, &options)
}

async fn put(store: &Store, byte: u8) {
    let path = ObjectPath::chunk(&ChunkId([byte; 32]));
    store.put_new(&path, Bytes::from(vec![byte; 100 + usize::from(byte)])).await.unwrap();
}

async fn census(store: &Store) -> Census {
    Census::take(store, || {}).await.unwrap()
}

async fn last_uses(store: &Store) -> HashMap<u8, SystemTime> {
    census(store).await.objects.iter().map(|object| (object.id.0[0], object.used)).collect()
}

/// Returns when the store's clock, which may count whole seconds, has gone on.
async fn until_later(store: &Store, than: SystemTime) {
    let path = ObjectPath::chunk(&ChunkId([0xff; 32]));
    let mut tick = interval(Duration::from_millis(20));
    loop {
        store.delete(&path).await.unwrap();
        put(store, 0xff).await;
        if last_uses(store).await[&0xff] > than {
            return store.delete(&path).await.unwrap();
        }
        tick.tick().await;
    }
}

async fn collects(store: &Store, marks_per_chunk: usize) {
    let before = SystemTime::now();
    for byte in 1..=4 {
        put(store, byte).await;
    }
    let first = census(store).await;
    assert!(first.leftovers.is_empty());
    let found: HashMap<u8, u64> = first.objects.iter().map(|object| (object.id.0[0], object.bytes)).collect();
    assert_eq!(found, HashMap::from([(1, 101), (2, 102), (3, 103), (4, 104)]));
    let uses: Vec<_> = first.objects.iter().map(|object| object.used).collect();
    // To a second, as S3 tells times.
    assert!(uses.iter().all(|&used| used + Duration::from_secs(1) > before && used < before + GRACE), "{uses:?}");

    // Listed, then used: it stays. One that was used by somebody just now has no need of a mark.
    until_later(store, *uses.iter().max().unwrap()).await;
    let later = SystemTime::now() + TOUCH_EVERY + Duration::from_secs(60);
    let used = ChunkId([2; 32]);
    store.touch(&used, later).await.unwrap();
    store.touch(&ChunkId([9; 32]), later).await.unwrap();
    if marks_per_chunk == 1 {
        store.touch(&ChunkId([3; 32]), SystemTime::now()).await.unwrap();
    }
    let live = HashSet::from([ChunkId([1; 32])]);
    let options = Options { max_age: Duration::ZERO, max_bytes: None, grace: GRACE };
    assert!(collect::plan(&first.objects, &live, SystemTime::now(), &options).is_empty(), "all are young");
    let removals = collect::plan(&first.objects, &live, SystemTime::now() + 2 * GRACE, &options);
    assert_eq!(removals.len(), 3);
    let mut steps = 0;
    let swept = collect::sweep(store, removals.clone(), Vec::new(), || steps += 1).await;
    assert_eq!((swept.removed.len(), swept.spared, swept.failed, steps), (2, 1, 0, 3), "{swept:?}");
    let left = census(store).await;
    assert_eq!(last_uses(store).await.keys().copied().collect::<HashSet<_>>(), HashSet::from([1, 2]));
    assert!(left.leftovers.is_empty(), "{left:?}");
    let now_used = left.objects.iter().find(|object| object.id == used).unwrap().used;
    assert!(now_used > *uses.iter().max().unwrap());

    // Tails are apart from the chunks, and go when the caller says that their jobs have ended.
    let tail = ChunkId([6; 32]);
    store.put_new(&ObjectPath::tail(&tail), Bytes::from_static(b"tail")).await.unwrap();
    let found = census(store).await;
    assert_eq!((found.objects.len(), found.tails.len(), found.tails[0].id), (2, 1, tail), "{found:?}");
    let swept = collect::sweep(store, Vec::new(), vec![Leftover::tail(&found.tails[0])], || {}).await;
    assert_eq!((swept.leftovers, swept.failed), (1, 0), "{swept:?}");
    assert!(census(store).await.tails.is_empty());

    // A second sweep of the same plan, as if two ran at once, does no harm.
    let again = collect::sweep(store, removals, Vec::new(), || {}).await;
    assert_eq!((again.removed.len(), again.spared, again.failed), (0, 3, 0));

    // A touched chunk takes its mark along; a mark whose chunk was removed otherwise is left over until it is swept.
    store.touch(&ChunkId([1; 32]), later).await.unwrap();
    store.delete(&ObjectPath::chunk(&ChunkId([1; 32]))).await.unwrap();
    let left = census(store).await;
    assert_eq!((left.objects.len(), left.leftovers.len()), (1, marks_per_chunk));
    let swept = collect::sweep(store, all(&left), left.leftovers, || {}).await;
    assert_eq!((swept.removed.len(), swept.leftovers), (1, marks_per_chunk as u64));
    let empty = census(store).await;
    assert!(empty.objects.is_empty() && empty.leftovers.is_empty(), "{empty:?}");
}
