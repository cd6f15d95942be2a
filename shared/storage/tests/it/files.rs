//! Users' files on a real S3 server.

use std::num::NonZeroUsize;

use baton_storage::files::{Blob, Files};
use futures::{StreamExt, TryStreamExt};
use tokio::time::{Duration, advance, pause, resume};

use crate::seaweed;

const MANY: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// Bytes of which no two parts are the same.
fn bytes(count: usize) -> Vec<u8> {
    let mut all = vec![0; count];
    blake3::Hasher::new().update(b"a file").finalize_xof().fill(&mut all);
    all
}

#[tokio::test]
async fn a_file_is_read_to_its_end_however_long_its_reader_takes() {
    let server = seaweed::Seaweed::start().await;
    let files = Files::new(server.open("files"));
    let (blob, sent) = (Blob::of_upload("acme", "slow"), bytes(12_345_678));
    let mut upload = files.upload(blob, u64::MAX, MANY);
    for piece in sent.chunks(100_000) {
        upload.push(piece).await.unwrap();
    }
    let extent = upload.finish().await.unwrap();

    // A minute passes between any two pieces: more than the store's client lets a request last.
    let mut pieces = files.read(blob, extent, 0..extent.bytes, MANY).boxed();
    let mut read = Vec::new();
    while let Some(piece) = pieces.try_next().await.unwrap() {
        read.extend_from_slice(&piece);
        pause();
        advance(Duration::from_secs(60)).await;
        resume();
    }
    assert!(read == sent, "{} of {} bytes came back, or others", read.len(), sent.len());
    files.delete(blob, extent).await.unwrap();
    assert!(files.read(blob, extent, 0..1, MANY).boxed().next().await.unwrap().is_err());
}
