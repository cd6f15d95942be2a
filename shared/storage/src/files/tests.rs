use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use futures::TryStreamExt;
use proptest::prelude::*;

use super::*;
use crate::collect::{self, Census};

/// Files of tiny parts in a directory.
fn files(directory: &tempfile::TempDir) -> Files {
    let store = Store::open(directory.path().to_str().unwrap()).unwrap();
    Files { store, part_bytes: 10, key: None }
}

async fn write(files: &Files, blob: Blob, bytes: &[u8], step: usize) -> Extent {
    let mut upload = files.upload(blob, 1_000, NonZeroUsize::new(1 + step % 3).unwrap());
    for piece in bytes.chunks(step) {
        upload.push(piece).await.unwrap();
    }
    upload.finish().await.unwrap()
}

async fn read(files: &Files, blob: Blob, extent: Extent, range: Range<u64>) -> Result<Vec<u8>, Error> {
    let pieces: Vec<Bytes> = files.read(blob, extent, range, NonZeroUsize::new(3).unwrap()).try_collect().await?;
    Ok(pieces.concat())
}

fn objects(directory: &tempfile::TempDir) -> usize {
    fn count(path: &std::path::Path) -> usize {
        let Ok(entries) = std::fs::read_dir(path) else { return 0 };
        entries.map(|entry| entry.unwrap().path()).map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
    }
    count(&directory.path().join(store::FILES))
}

#[tokio::test]
async fn a_blob_comes_back_whole_and_in_ranges_however_it_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(&directory);
    for (number, (length, step)) in
        [(0, 1), (1, 1), (9, 4), (10, 10), (11, 3), (95, 100), (100, 7)].into_iter().enumerate()
    {
        let bytes: Vec<u8> = (0..length as u8).collect();
        let blob = Blob::of_upload("acme", &number.to_string());
        let extent = write(&files, blob, &bytes, step).await;
        assert_eq!(extent, Extent { bytes: length as u64, part_bytes: 10, form: Form::Checked });
        assert_eq!(read(&files, blob, extent, 0..u64::MAX).await.unwrap(), bytes);
        for range in [0..5, 5..25, 10..20, 90..95, 3..3, 200..300] {
            let expected = bytes.get(range.start.min(length)..range.end.min(length)).unwrap();
            let range = range.start as u64..range.end as u64;
            assert_eq!(read(&files, blob, extent, range).await.unwrap(), expected);
        }
        files.delete(blob, extent).await.unwrap();
        if length > 0 {
            assert!(matches!(read(&files, blob, extent, 0..1).await, Err(Error::Damaged { part: 0, .. })));
        }
    }
    assert_eq!(objects(&directory), 0);
}

#[tokio::test]
async fn an_upload_that_ends_early_leaves_nothing_and_one_that_grows_too_large_what_did_fit() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(&directory);
    let at_once = NonZeroUsize::new(3).unwrap();
    let full = async |name: &str| {
        let mut upload = files.upload(Blob::of_upload("acme", name), 50, at_once);
        upload.push(&[7; 45]).await.unwrap();
        assert!(matches!(upload.push(&[8; 6]).await, Err(Error::TooLarge { max: 50 })));
        upload
    };
    // What did fit is a file if its owner wants it.
    let (blob, upload) = (Blob::of_upload("acme", "kept"), full("kept").await);
    let extent = upload.finish().await.unwrap();
    assert_eq!(read(&files, blob, extent, 0..100).await.unwrap(), [7; 45]);
    files.delete(blob, extent).await.unwrap();

    let upload = full("dropped").await;
    assert!(objects(&directory) > 0);
    drop(upload);
    // The removal runs by itself.
    while objects(&directory) > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn sweeps_take_old_parts_that_no_file_names_and_leave_chunks_alone_as_collection_leaves_files() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(&directory);
    let (kept, lost) = (Blob::of_upload("acme", "kept"), Blob::of_upload("acme", "lost"));
    let extent = write(&files, kept, &[1; 25], 25).await;
    write(&files, lost, &[2; 25], 25).await;
    let chunk = ObjectPath::chunk(&"ab".repeat(32).parse().unwrap());
    files.store.put_new(&chunk, Bytes::from_static(b"chunk")).await.unwrap();

    let named = || async { Ok::<_, Error>(HashSet::from([kept])) };
    let (hour, now) = (Duration::from_secs(3_600), SystemTime::now());
    let young = files.sweep(hour, now, named()).await.unwrap();
    assert_eq!(young, Swept { blobs: 2, removed: 0 });
    let old = files.sweep(hour, now + 2 * hour, named()).await.unwrap();
    assert_eq!(old, Swept { blobs: 2, removed: 3 });
    assert_eq!(read(&files, kept, extent, 0..100).await.unwrap(), [1; 25]);
    assert!(files.store.exists(&chunk).await.unwrap());

    // All chunks are too old, and every byte is over the budget: still only the chunk goes.
    let census = Census::take(&files.store, || {}).await.unwrap();
    let options = collect::Options { max_age: Duration::ZERO, max_bytes: Some(0), grace: Duration::ZERO };
    let removals = collect::plan(&census.objects, &HashSet::new(), now + hour, &options);
    let swept = collect::sweep(&files.store, removals, census.leftovers, || {}).await;
    assert_eq!((swept.removed.len(), swept.leftovers, swept.failed), (1, 0, 0));
    assert_eq!(read(&files, kept, extent, 0..100).await.unwrap(), [1; 25]);
}

/// The stored parts of a blob.
fn stored(directory: &tempfile::TempDir, blob: Blob, part: u64) -> std::path::PathBuf {
    directory.path().join(blob.part(part).to_string())
}

#[tokio::test]
async fn what_a_store_loses_mixes_up_or_changes_is_an_error_and_never_other_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let plain = files(&directory);
    let sealed = files(&directory).sealed(SealKey::new([7; 32]));
    for (files, form) in [(&plain, Form::Checked), (&sealed, Form::Sealed)] {
        let bytes: Vec<u8> = (0..35).collect();
        let [blob, other] = ["one", "other"].map(|name| Blob::of_upload("acme", &format!("{name}{form:?}")));
        let extent = write(files, blob, &bytes, 7).await;
        assert_eq!((extent.form, extent.parts()), (form, 4));
        write(files, other, &[9; 35], 7).await;
        assert_eq!(read(files, blob, extent, 8..33).await.unwrap(), bytes[8..33]);

        let [first, second, last] = [0, 1, 3].map(|part| stored(&directory, blob, part));
        let of_other = std::fs::read(stored(&directory, other, 1)).unwrap();
        let kept = std::fs::read(&second).unwrap();
        assert_eq!(form == Form::Sealed, kept[..10] != bytes[10..20], "only a sealed one hides its bytes");
        let mut flipped = kept.clone();
        flipped[3] ^= 1;
        for (damage, what) in [
            (std::fs::read(&first).unwrap(), "another part's"),
            (of_other, "another file's"),
            (flipped, "a changed one"),
            (kept[..kept.len() - 1].to_vec(), "a cut one"),
            (kept[1..].to_vec(), "one without its beginning"),
            ([&kept[..], &[0]].concat(), "a longer one"),
            (bytes[10..20].to_vec(), "one without a proof"),
            (Vec::new(), "an empty one"),
        ] {
            std::fs::write(&second, damage).unwrap();
            let error = read(files, blob, extent, 12..13).await.unwrap_err();
            assert!(matches!(error, Error::Damaged { part: 1, .. }), "{what}: {error}");
            assert_eq!(read(files, blob, extent, 0..10).await.unwrap(), bytes[..10], "{what}: the others are good");
        }
        std::fs::write(&second, kept).unwrap();
        assert_eq!(read(files, blob, extent, 0..35).await.unwrap(), bytes);
        // The last part is not one of a longer file, or of a shorter one.
        let (longer, shorter) = (Extent { bytes: 36, ..extent }, Extent { bytes: 34, ..extent });
        for extent in [longer, shorter] {
            assert!(matches!(read(files, blob, extent, 30..34).await, Err(Error::Damaged { part: 3, .. })));
        }
        std::fs::remove_file(last).unwrap();
        assert!(matches!(files.check(blob, extent).await, Err(Error::Damaged { part: 3, .. })));
        assert!(matches!(read(files, blob, extent, 0..35).await, Err(Error::Damaged { part: 3, .. })));
    }
    let blob = Blob::of_upload("acme", "key");
    let extent = write(&sealed, blob, &[1; 5], 5).await;
    assert!(matches!(read(&plain, blob, extent, 0..5).await, Err(Error::NoKey { .. })));
    let wrong = files(&directory).sealed(SealKey::new([8; 32]));
    assert!(matches!(read(&wrong, blob, extent, 0..5).await, Err(Error::Damaged { .. })));
}

#[tokio::test]
async fn what_releases_without_checksums_wrote_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(&directory);
    let blob = Blob::of_upload("acme", "old");
    for (part, bytes) in ["0123456789", "abc"].into_iter().enumerate() {
        files.store.put_new(&blob.part(part as u64), Bytes::from(bytes)).await.unwrap();
    }
    let extent = Extent { bytes: 13, part_bytes: 10, form: Form::Plain };
    assert_eq!(read(&files, blob, extent, 8..12).await.unwrap(), b"89ab");
}

proptest! {
    #[test]
    fn parts_cover_a_range_exactly(bytes in 0u64..200, part_bytes in 0u64..40, start in 0u64..220, length in 0u64..220) {
        let extent = Extent { bytes, part_bytes, form: Form::Plain };
        let mut at = start.min(bytes);
        for (part, range) in extent.cover(start..start + length) {
            prop_assert!(!range.is_empty() && range.end <= part_bytes.max(1) && part < extent.parts());
            prop_assert_eq!(part * part_bytes.max(1) + range.start, at);
            at += range.end - range.start;
        }
        prop_assert_eq!(at, (start + length).clamp(start.min(bytes), bytes));
    }

    #[test]
    fn no_two_tenants_share_a_blob(a in "[a-z]{1,4}", b in "[a-z]{1,4}", upload in "[a-z]{0,4}") {
        prop_assume!(a != b);
        prop_assert_ne!(Blob::of_upload(&a, &format!("{b}{upload}")), Blob::of_upload(&format!("{a}{b}"), &upload));
        prop_assert_ne!(Blob::of_upload(&a, &upload), Blob::of_upload(&b, &upload));
    }
}
