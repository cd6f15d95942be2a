//! What every store must do, whoever runs it: memory, a local directory, and a real S3 server run one suite.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use baton_contract::{
    causes,
    kv::{Block, Shape},
};
use baton_storage::{
    ChunkId, Codec, KvStore, ObjectPath, Put, Root, SealKey, Store, chunk,
    kv::{self, Damage, Source},
    store,
};
use bytes::Bytes;
use futures::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{refusals, seaweed};

const SHAPE: Shape = Shape { layers: 3, width: 64 };
const TOKENS: usize = 40;

#[tokio::test]
async fn memory() {
    conforms(|_| Store::open("memory:").unwrap()).await;
}

#[tokio::test]
async fn local_directory() {
    let dir = tempfile::tempdir().unwrap();
    // A plain path and a URL, neither there yet.
    conforms(|name| Store::open(&format!("{}/new/{name}", dir.path().display())).unwrap()).await;
    conforms(|name| Store::open(&format!("file://{}/url/{name}", dir.path().display())).unwrap()).await;

    // What one process put, another finds, under a name that tells nothing but a hash.
    let (id, bytes) = (ChunkId([0xab; 32]), Bytes::from_static(b"kept"));
    let url = dir.path().join("again").display().to_string();
    Store::open(&url).unwrap().put_new(&ObjectPath::chunk(&id), bytes.clone()).await.unwrap();
    assert_eq!(Store::open(&url).unwrap().get(&ObjectPath::chunk(&id), 4).await.unwrap(), Some(bytes));
    let file = dir.path().join("again/kv/ab").join("ab".repeat(32));
    assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "a staging file was left");
}

#[tokio::test]
async fn s3_server() {
    let server = seaweed::Seaweed::start().await;
    conforms(|name| server.open(name)).await;
    conforms(|name| server.open(&format!("deep/{name}/prefix"))).await;

    let wrong_key = server.vars().into_iter().map(|(name, value)| match name.as_str() {
        "AWS_SECRET_ACCESS_KEY" => (name, "wrong".to_owned()),
        _ => (name, value),
    });
    let denied = Store::open_with(&server.url("denied"), wrong_key).unwrap().probe_conditional_put().await;
    let denied = denied.unwrap_err();
    assert!(matches!(denied, store::Error::Operation { operation: "put", .. }), "{denied:?}");
    // What the server said is in the chain.
    assert!(causes(&denied).contains("SignatureDoesNotMatch"), "{}", causes(&denied));

    // Puts that meet another operation, and store nothing, are tried again.
    let mut vars = server.vars();
    let met = Mutex::new(HashSet::new());
    let conflict = move |request: &refusals::Request| {
        let first = request.is_create_only && met.lock().unwrap().insert(request.line.clone());
        first.then_some((409, "ConditionalRequestConflict"))
    };
    vars[0].1 = refusals::in_front_of(&vars[0].1, conflict).await;
    let contested = Store::open_with(&server.url("contested"), vars).unwrap();
    objects(&contested).await;
    let (path, theirs) = (path(9), Bytes::from_static(b"theirs"));
    server.open("contested").put_new(&path, theirs.clone()).await.unwrap();
    assert_eq!(contested.put_new(&path, Bytes::from_static(b"ours")).await.unwrap(), Put::Exists);
    assert_eq!(contested.get(&path, 100).await.unwrap(), Some(theirs));
}

/// Runs the suite on stores that `open` gives; each name stands for a place of its own.
async fn conforms(open: impl Fn(&str) -> Store) {
    objects(&open("objects")).await;
    races(&open("races")).await;
    for codec in Codec::ALL {
        for key in [None, Some(SealKey::new([7; 32]))] {
            chunks(&open(&format!("chunks-{codec}-{}", key.is_some())), codec, key).await;
        }
    }
    finds(&open("finds")).await;
    let (one, other) = (open("one"), open("other"));
    let path = path(1);
    one.put_new(&path, Bytes::from_static(b"x")).await.unwrap();
    assert!(!other.exists(&path).await.unwrap(), "two places share an object");
}

async fn objects(store: &Store) {
    store.probe_conditional_put().await.unwrap();

    let path = path(2);
    assert!(!store.exists(&path).await.unwrap());
    assert_eq!(store.get(&path, 100).await.unwrap(), None);
    store.delete(&path).await.unwrap();

    let first = Bytes::from_static(b"first");
    assert_eq!(store.put_new(&path, first.clone()).await.unwrap(), Put::Created);
    assert_eq!(store.put_new(&path, Bytes::from_static(b"second")).await.unwrap(), Put::Exists);
    assert!(store.exists(&path).await.unwrap());
    assert_eq!(store.get(&path, 5).await.unwrap(), Some(first));
    let refused = store.get(&path, 4).await;
    assert!(matches!(refused, Err(store::Error::Oversize { max: 4, found: 5, .. })), "{refused:?}");

    store.delete(&path).await.unwrap();
    assert_eq!(store.get(&path, 100).await.unwrap(), None);
    assert_eq!(store.put_new(&path, Bytes::from_static(b"third")).await.unwrap(), Put::Created);
}

/// Of many writers of one object exactly one wins, and what it wrote is what stays. Few writers: SeaweedFS lets them wait
/// for each other in steps of a second.
async fn races(store: &Store) {
    let path = path(3);
    let writers = 0..4u8;
    let puts = writers.clone().map(|writer| store.put_new(&path, vec![writer; 20_000].into()));
    let results = join_all(puts).await;
    let winners: Vec<u8> = writers.filter(|&w| *results[w as usize].as_ref().unwrap() == Put::Created).collect();
    let [winner] = winners[..] else { panic!("expected one winner, found {winners:?}") };
    assert_eq!(store.get(&path, 20_000).await.unwrap(), Some(vec![winner; 20_000].into()));
}

/// Blocks come back as they were put; damage is told apart from absence and heals by putting again.
async fn chunks(store: &Store, codec: Codec, key: Option<SealKey>) {
    let kv = KvStore::new(store.clone(), SHAPE, codec).with_key(key.clone());
    let id = Root::new(&[1; 32], b"tenant").link(None, &[1, 2, 3]);
    // What goes in, and what a codec that rounds makes of it.
    let put_block = block();
    let block = chunk::decode(&chunk::encode(&put_block, &SHAPE, codec, &id).unwrap(), &SHAPE, TOKENS, &id).unwrap();
    assert_eq!(block == put_block, codec.is_lossless());
    assert_eq!(kv.get(&id, TOKENS).await.unwrap(), None);

    let put = kv.put(&id, put_block.clone()).await.unwrap();
    assert!(put.created);
    assert_eq!(put.raw_bytes, SHAPE.bytes(TOKENS) as u64);
    assert_eq!(put.stored_bytes < put.raw_bytes, codec != Codec::Raw);
    assert!(kv.exists(&id).await.unwrap());
    assert_eq!(kv.put(&id, put_block.clone()).await.unwrap(), kv::Stored { created: false, ..put });
    // A reader needs no hint of the codec. One request that brings all; requests of a layer each, of which the first brings
    // no layer; and some that bring about two.
    for request_bytes in [1 << 20, 1, put.stored_bytes as usize * 3 / 4] {
        let reader = KvStore::new(store.clone(), SHAPE, Codec::Raw).with_key(key.clone());
        let fetched = reader.with_request_bytes(request_bytes).get(&id, TOKENS).await.unwrap().unwrap();
        assert_eq!(*fetched.block, block);
        assert_eq!((fetched.stored_bytes, fetched.source), (put.stored_bytes, Source::Store));
    }

    let path = ObjectPath::chunk(&id);
    if codec.is_lossless() {
        store.delete(&path).await.unwrap();
        let mut infinite = block.clone();
        infinite.layers[1][3] = half::bf16::INFINITY.to_bits();
        kv.put(&id, infinite).await.unwrap();
        let found = kv.get(&id, TOKENS).await.unwrap_err();
        let kv::Error::Damaged { source: Damage::Chunk(chunk::Error::NonFinite { layer: 1 }), .. } = found else {
            panic!("expected values that are not finite, found {found:?}");
        };
        assert!(kv.put(&id, put_block.clone()).await.unwrap().created);
    }
    let good = store.get(&path, u64::MAX).await.unwrap().unwrap();
    let mut flipped = good.to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    let oversize = vec![0; chunk::max_len(&SHAPE, TOKENS).unwrap() + 1];
    let truncated = good[..good.len() - 1].to_vec();
    for (damaged, too_large) in [(flipped, false), (truncated, false), (Vec::new(), false), (oversize, true)] {
        for request_bytes in [1 << 20, 64] {
            let kv = kv.clone().with_request_bytes(request_bytes);
            store.delete(&path).await.unwrap();
            store.put_new(&path, damaged.clone().into()).await.unwrap();
            match kv.get(&id, TOKENS).await {
                Err(kv::Error::Damaged { id: found, source }) => {
                    assert_eq!(found, id);
                    assert_eq!(matches!(source, Damage::Oversize { .. }), too_large);
                }
                other => panic!("expected damage, found {other:?}"),
            }
            assert_eq!(kv.get(&id, TOKENS).await.unwrap(), None, "what is damaged must go");
            assert!(kv.put(&id, put_block.clone()).await.unwrap().created, "a recompute must heal the store");
            assert_eq!(*kv.get(&id, TOKENS).await.unwrap().unwrap().block, block);
        }
    }

    let short = Block { tokens: TOKENS, layers: block.layers[1..].to_vec() };
    assert!(matches!(kv.put(&id, short).await, Err(kv::Error::Pack { source: chunk::Error::Block { .. }, .. })));
}

/// The longest prefix that is there, over more chunks than are asked for at once.
async fn finds(store: &Store) {
    let kv = KvStore::new(store.clone(), SHAPE, Codec::Raw);
    let ids: Vec<_> = (0..40).map(|byte| ChunkId([byte; 32])).collect();
    assert_eq!(kv.find(&[]).await.unwrap(), 0);
    assert_eq!(kv.find(&ids).await.unwrap(), 0);
    let (there, missing) = (ids.iter().filter(|id| id.0[0] != 35), ids[35]);
    let paths: Vec<_> = there.map(ObjectPath::chunk).collect();
    for put in join_all(paths.iter().map(|path| store.put_new(path, Bytes::new()))).await {
        put.unwrap();
    }
    assert_eq!(kv.find(&ids).await.unwrap(), 35);
    assert_eq!(kv.find(&ids[..7]).await.unwrap(), 7);
    store.put_new(&ObjectPath::chunk(&missing), Bytes::new()).await.unwrap();
    assert_eq!(kv.find(&ids).await.unwrap(), 40);
    store.delete(&ObjectPath::chunk(&ids[0])).await.unwrap();
    assert_eq!(kv.find(&ids).await.unwrap(), 0);
}

/// Whether all of a request is there.
fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

/// S3's answer to a removal.
const REMOVED: &str =
    "<DeleteResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Deleted><Key>k</Key></Deleted></DeleteResult>";

/// What is there is not packed and sent again, nor asked for more than once: when the store's server has counted.
#[tokio::test]
async fn a_put_of_what_is_there_costs_one_question() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = requests.clone();
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 64 * 1024];
            let mut read = 0;
            // The head and the body may come in pieces, and a client that is still sending reads no answer.
            while !is_whole(&request[..read]) {
                read += stream.read(&mut request[read..]).await.unwrap();
            }
            let method = String::from_utf8_lossy(&request[..read]).split(' ').next().unwrap().to_owned();
            let (length, body) = match &*method {
                "HEAD" => (1234, ""),
                "POST" => (REMOVED.len(), REMOVED),
                _ => (0, ""),
            };
            seen.lock().unwrap().push(method);
            let answer = format!(
                "HTTP/1.1 200 OK\r\netag: \"1\"\r\ncontent-length: {length}\r\nconnection: close\r\n\
                 last-modified: Thu, 01 Jan 2099 00:00:00 GMT\r\n\r\n{body}"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let vars = [("AWS_ENDPOINT_URL", endpoint.as_str()), ("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")];
    let vars = vars.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let store = Store::open_with("s3://bucket", vars).unwrap();
    // Its clock is asked for once in ten minutes, whatever is put.
    store.now().await.unwrap();
    assert_eq!(std::mem::take(&mut *requests.lock().unwrap()), ["PUT", "HEAD", "POST"]);
    let kv = KvStore::new(store, SHAPE, Codec::Lossless);
    for questions in [2, 1] {
        let stored = kv.put(&ChunkId([1; 32]), block()).await.unwrap();
        assert_eq!((stored.created, stored.stored_bytes), (false, 1234));
        // The first also notes, once in half an hour, that the chunk is in use.
        assert_eq!(std::mem::take(&mut *requests.lock().unwrap()), vec!["HEAD"; questions]);
    }
    server.abort();
}

/// A store that says yes to every put is told apart from one that honours create-only puts.
#[tokio::test]
async fn a_store_that_overwrites_fails_the_probe() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Every request is small and arrives in one piece; the connection is closed after the answer.
            let mut request = vec![0; 64 * 1024];
            let _ = stream.read(&mut request).await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\netag: \"1\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        }
    });
    let vars = [("AWS_ENDPOINT_URL", endpoint.as_str()), ("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")];
    let vars = vars.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let store = Store::open_with("s3://bucket", vars).unwrap();
    let error = store.probe_conditional_put().await.unwrap_err();
    assert!(matches!(error, store::Error::Overwrites { .. }), "{error:?}");
    assert!(error.to_string().contains("use a store that honours them"), "{error}");
    server.abort();
}

fn path(byte: u8) -> ObjectPath {
    ObjectPath::chunk(&ChunkId([byte; 32]))
}

/// Values whose exponents cluster, as those of a real cache do.
fn block() -> Block {
    let value = |i: usize| half::bf16::from_f32(((i * 7919) % 1009) as f32 / 500.0 - 1.0).to_bits();
    let values = SHAPE.layer_values(TOKENS);
    Block {
        tokens: TOKENS,
        layers: (0..SHAPE.layers).map(|l| (l * values..(l + 1) * values).map(value).collect()).collect(),
    }
}
