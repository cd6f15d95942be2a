//! What a damaged or a hostile store may hold under a chunk's name: never other values, never a panic, and never more
//! memory than the model's shape demands.

#[path = "../../fuzz/decode.rs"]
mod decode;

use baton_contract::kv::Block;
use baton_storage::{
    ChunkId, Codec, KvStore, ObjectPath, Root, SealKey, Store,
    chunk::{self, Error, Header},
    kv::{self, Damage},
};
use bytes::Bytes;
use decode::{FRAME, FRAMES, ID, SHAPE, TOKENS, key, sample};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const DAMAGES: usize = 10_000;
const SEED: u64 = 4;

/// Random flips of one bit and cuts, for every codec, open and sealed. What is flipped in the header's number of the key
/// makes a chunk of another key, and nothing else does.
#[test]
fn damage_never_passes() {
    println!("seed {SEED}");
    let mut random = Random(SEED);
    let block = sample(SEED);
    for codec in Codec::ALL {
        for key in [None, Some(key())] {
            let (key, bytes) = (key.as_ref(), packed(&block, codec, key.as_ref()));
            let read = |bytes: &[u8]| chunk::decode_with(bytes, &SHAPE, TOKENS, &ID, key);
            let put = read(&bytes).unwrap();
            // Each bit of the header, and as many anywhere as are left.
            let header = chunk::prefix_len(&SHAPE) * 8;
            for i in 0..DAMAGES {
                let bit = if i < header { i } else { random.below(bytes.len() * 8) };
                let mut flipped = bytes.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let found = read(&flipped);
                assert!(found.is_err(), "{codec}, {key:?}: bit {bit} passed");
            }
            for _ in 0..DAMAGES {
                let len = random.below(bytes.len());
                assert!(read(&bytes[..len]).is_err(), "{codec}, {key:?}: {len} bytes passed");
            }
            assert!(read(&[&bytes[..], &[0]].concat()).is_err());
            assert_eq!(read(&bytes).unwrap(), put);
        }
    }
}

/// Who can write to the store but has not the key can neither read a chunk nor make one that is read: not an open one, not
/// one of parts of others, not one of an earlier time.
#[test]
fn without_the_key_nothing_is_read_and_nothing_forged() {
    let (block, ours) = (sample(1), key());
    let sealed = packed(&block, Codec::Lossless, Some(&ours));
    let read = |bytes: &[u8], id: &ChunkId, key| chunk::decode_with(bytes, &SHAPE, TOKENS, id, key);
    assert_eq!(read(&sealed, &ID, Some(&ours)).unwrap(), block);
    // Nothing of the frames shows, and the same block looks different each time.
    let open = packed(&block, Codec::Lossless, None);
    let frames = chunk::prefix_len(&SHAPE);
    let shared = sealed[frames..].windows(16).filter(|part| open[frames..].windows(16).any(|other| *part == other));
    assert_eq!(shared.count(), 0, "a part of a frame is not encrypted");
    assert_ne!(sealed, packed(&block, Codec::Lossless, Some(&ours)));

    let other = SealKey::new([9; 32]);
    for (bytes, key) in [(&sealed, None), (&sealed, Some(&other)), (&open, Some(&ours))] {
        let error = read(bytes, &ID, key).unwrap_err();
        assert!(error.is_locked(), "{error}");
        assert!(error.to_string().contains("key"), "{error}");
    }
    // Frames of one length, so that they can be swapped: of two layers, and of two chunks.
    let [one, two] = [1, 2].map(|seed| packed(&sample(seed), Codec::Raw, Some(&ours)));
    let len = SHAPE.layer_values(TOKENS) * 2;
    let (first, second) = (frames..frames + len, frames + len..frames + 2 * len);
    let entry = |layer: usize| FRAMES + layer * FRAME + 12..FRAMES + (layer + 1) * FRAME;
    let swapped = with(&one, |b| {
        b[first.clone()].copy_from_slice(&one[second.clone()]);
        b[second].copy_from_slice(&one[first.clone()]);
        b[entry(0)].copy_from_slice(&one[entry(1)]);
        b[entry(1)].copy_from_slice(&one[entry(0)]);
    });
    let mixed = with(&one, |b| {
        b[first.clone()].copy_from_slice(&two[first]);
        b[entry(0)].copy_from_slice(&two[entry(0)]);
    });
    for forged in [swapped, mixed] {
        assert!(matches!(read(&forged, &ID, Some(&ours)), Err(Error::Forged { layer: 0 })));
    }
    // Another name, salt or codec for a genuine chunk.
    let renamed = ChunkId([1; 32]);
    let moved = with(&one, |b| b[48..80].copy_from_slice(&renamed.0));
    assert!(matches!(read(&moved, &renamed, Some(&ours)), Err(Error::Forged { layer: 0 })));
    for at in [22, 32] {
        assert!(matches!(read(&with(&one, |b| b[at] ^= 1), &ID, Some(&ours)), Err(Error::Forged { layer: 0 })));
    }
    // Nor can the names of a text be computed, or those of a codec that rounds and of one that does not meet.
    let root = Root::new(&[1; 32], b"tenant");
    let names = [root.clone(), root.secret(&ours), root.secret(&other)].map(|root| root.link(None, &[1, 2, 3]));
    assert!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2]);
    let store = KvStore::new(Store::open("memory:").unwrap(), SHAPE, Codec::Lossless).with_key(Some(ours));
    assert_eq!(store.root(&[1; 32], b"tenant").link(None, &[1, 2, 3]), names[1]);
}

/// Two workers with different keys, or one without: neither harms what the other stored.
#[tokio::test]
async fn a_wrong_key_removes_nothing() {
    let store = Store::open("memory:").unwrap();
    let kv = |key| KvStore::new(store.clone(), SHAPE, Codec::Lossless).with_key(key);
    let (block, path) = (sample(1), ObjectPath::chunk(&ID));
    for (writer, reader) in [(Some(key()), None), (Some(key()), Some(SealKey::new([9; 32]))), (None, Some(key()))] {
        kv(writer.clone()).put(&ID, block.clone()).await.unwrap();
        let error = kv(reader).get(&ID, TOKENS).await.unwrap_err();
        assert!(matches!(error, kv::Error::Locked { .. }) && error.is_missing(), "{error:?}");
        assert_eq!(*kv(writer).get(&ID, TOKENS).await.unwrap().unwrap().block, block);
        store.delete(&path).await.unwrap();
    }
    // With the right key, a forged frame is damage, which goes.
    let mut forged = packed(&block, Codec::Lossless, Some(&key())).to_vec();
    *forged.last_mut().unwrap() ^= 1;
    store.put_new(&path, forged.into()).await.unwrap();
    let error = kv(Some(key())).get(&ID, TOKENS).await.unwrap_err();
    assert!(matches!(error, kv::Error::Damaged { source: Damage::Chunk(Error::Forged { .. }), .. }), "{error:?}");
    assert!(!store.exists(&path).await.unwrap());
}

/// A server that claims a terabyte: the claim is refused as a number, and the body is not read.
#[tokio::test]
async fn a_claim_of_any_size_is_refused_before_the_body_is_read() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 64 * 1024];
            let len = stream.read(&mut request).await.unwrap();
            let answer = match request[..len].starts_with(b"DELETE") {
                true => "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".to_owned(),
                // Of the promised body there is one byte: who waits for more, waits for ever.
                false if String::from_utf8_lossy(&request[..len]).to_lowercase().contains("range: bytes=0-") => {
                    let first = chunk::prefix_len(&SHAPE) as u64;
                    let range = format!("content-range: bytes 0-{}/{}", first - 1, 1u64 << 40);
                    head(&format!("206 Partial Content\r\n{range}"), first)
                }
                false => head("200 OK", 1 << 40),
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
            if request.starts_with(b"GET") {
                // Keeps the connection open until the reader goes.
                tokio::spawn(async move { stream.read(&mut [0; 1]).await });
            }
        }
    });
    let vars = [("AWS_ENDPOINT_URL", endpoint.as_str()), ("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")];
    let vars = vars.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let store = Store::open_with("s3://bucket", vars).unwrap();
    for request_bytes in [usize::MAX, 64] {
        let kv = KvStore::new(store.clone(), SHAPE, Codec::Lossless).with_request_bytes(request_bytes);
        let error = kv.get(&ID, TOKENS).await.unwrap_err();
        let oversize =
            matches!(error, kv::Error::Damaged { source: Damage::Oversize { found, .. }, .. } if found == 1 << 40);
        assert!(oversize, "{error:?}");
    }
    server.abort();
}

fn head(status: &str, len: u64) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {len}\r\netag: \"1\"\r\nconnection: close\r\nlast-modified: Tue, 01 Jan 2030 00:00:00 GMT\r\n\r\nx"
    )
}

/// What the fuzz targets do, on their corpus and a few thousand mutations of it.
#[test]
fn the_fuzz_corpus_and_mutations_of_it_are_harmless() {
    println!("seed {SEED}");
    let mut random = Random(SEED);
    let corpus = |target: &str| -> Vec<Vec<u8>> {
        let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        files.iter().map(|file| std::fs::read(file).unwrap()).collect()
    };
    let prefix = chunk::prefix_len(&SHAPE);
    let mut chunks = decode::seeds();
    let mut headers: Vec<_> = chunks.iter().map(|bytes| bytes[..prefix].to_vec()).collect();
    assert!(chunks.iter().all(|bytes| decode::chunk(bytes)), "a sound chunk is refused");
    assert_eq!(headers.iter().filter(|bytes| decode::header(bytes)).count(), Codec::ALL.len());
    chunks.extend(corpus("chunk"));
    headers.extend(corpus("header"));
    for (seeds, target) in [(chunks, decode::chunk as fn(&[u8]) -> bool), (headers, decode::header)] {
        assert!(seeds.len() > 2 * Codec::ALL.len(), "the corpus is missing");
        seeds.iter().for_each(|bytes| _ = target(bytes));
        for _ in 0..5_000 {
            let mut bytes = seeds[random.below(seeds.len())].clone();
            for _ in 0..1 + random.below(5) {
                random.mutate(&mut bytes);
            }
            target(&bytes);
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        // Half of the time where the header is.
        let near = if self.below(2) == 0 { bytes.len().min(200) } else { bytes.len() };
        let at = self.below(near);
        let part = at..(at + 1 + self.below(32)).min(bytes.len());
        match self.below(6) {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
            2 => bytes.truncate(at),
            3 => bytes[part].iter_mut().for_each(|byte| *byte = self.next() as u8),
            4 => drop(bytes.drain(part)),
            _ => {
                let copied = bytes[part].to_vec();
                let to = self.below(bytes.len());
                bytes.splice(to..to, copied);
            }
        }
    }
}

fn packed(block: &Block, codec: Codec, key: Option<&SealKey>) -> Bytes {
    chunk::encode_with(block, &SHAPE, codec, &ID, key).unwrap()
}

/// The chunk with a change, and the header's checksum right again.
fn with(bytes: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    change(&mut changed);
    decode::repaired(&changed)
}

#[test]
fn sealed_frames_are_read_alone() {
    let (block, key) = (sample(3), key());
    let bytes = packed(&block, Codec::Lossless, Some(&key));
    let header = Header::read(&bytes[..chunk::prefix_len(&SHAPE)], &SHAPE, TOKENS, &ID, Some(&key)).unwrap();
    let frame = header.frame(1);
    let alone = chunk::decode_layers(&header, 1..2, &bytes[frame.clone()], frame.start).unwrap();
    assert_eq!(alone, block.layers[1..2]);
    assert!(chunk::decode_layers(&header, 0..2, &bytes[frame.clone()], frame.start).is_err());
}
