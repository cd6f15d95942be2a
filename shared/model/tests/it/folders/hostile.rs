//! Folders that are cut, flipped or lie about their sizes: an error, never a panic, and no memory for what isn't there.

use baton_model::checkpoint::{Checkpoint, Error};
use baton_model::{hugging_face, source};
use proptest::prelude::*;
use serde_json::json;

use super::folder::{Folder, Written, serialize};

fn refused(written: &Written) -> String {
    match hugging_face::open(written.path()) {
        Ok(_) => panic!("the folder is damaged, but was taken"),
        Err(error) => error.to_string(),
    }
}

/// A safetensors file of a header and `data` bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

#[test]
fn lies_about_sizes_are_errors() {
    let folder = Folder::new("Llama");
    let good = serialize(folder.tensors.iter());
    let written = folder.write();
    let check = |bytes: &[u8], text: &str| {
        written.put("model.safetensors", bytes);
        let message = refused(&written);
        assert!(message.contains("model.safetensors") && message.contains(text), "{text}: {message}");
    };
    let length = |length: u64| [&length.to_le_bytes()[..], &good[8..]].concat();
    check(&good[..7], "at least 8 bytes");
    check(&length(u64::MAX), "a header of 18446744073709551615 bytes");
    check(&length(good.len() as u64), "a header of");
    check(&file(&" ".repeat(17 << 20), 0), "a header of 17825792 bytes");
    check(&good[..good.len() - 1], "bytes of data");
    check(&[&good[..], &[0]].concat(), "bytes of data");
    let entry = |shape: &str, start: u64, end: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let one = |entry: String| file(&format!(r#"{{"model.norm.weight":{entry}}}"#), 8);
    check(&one(entry("[2]", 0, 16)), "model.safetensors");
    check(&one(entry("[4]", 0, 16)), "8 bytes of data, expected 16");
    check(&one(entry("[2]", 8, 0)), "model.safetensors");
    check(&one(entry("[2]", u64::MAX - 7, u64::MAX)), "model.safetensors");
    check(&one(entry("[4611686018427387904,4]", 0, 8)), "model.safetensors");
    check(&one(entry("[0,99]", 0, 0)), "model.safetensors");
    check(&file(&format!(r#"{{"model.norm.weight":{}}}"#, entry("[0,99]", 0, 0)), 0), "1 to 4 sizes above 0");
    let end = u64::MAX - 7;
    check(&one(entry(&format!("[{end}]"), 0, end).replace("F32", "U8")), "overflow");
    check(&one(entry("[-2]", 0, 8)), "its header says");
    check(&one(entry("[1,1,1,1,2]", 0, 8)), "1 to 4 sizes");
    check(&one(entry("[2]", 0, 8).replace("F32", "F33")), "its header says");
    let overlap = format!(r#"{{"a":{},"b":{}}}"#, entry("[2]", 0, 8), entry("[1]", 4, 8));
    check(&file(&overlap, 8), "model.safetensors");
    check(&file("[]", 0), "its header says");
    check(&file(&"[".repeat(1 << 20), 0), "its header says");
    check(&file(&format!(r#"{{"a":{}"#, r#"{"a":"#.repeat(1 << 18)), 0), "its header says");
    let empty = written.file("model.safetensors");
    std::fs::write(&empty, b"").unwrap();
    assert!(hugging_face::open(written.path()).is_err());
}

#[test]
fn endless_documents_are_refused_before_they_are_read() {
    for (name, limit) in [("config.json", 4 << 20), ("tokenizer.json", 64 << 20), ("tokenizer_config.json", 4 << 20)] {
        let written = Folder::new("Llama").write();
        std::fs::File::create(written.file(name)).unwrap().set_len(limit + 1).unwrap();
        let message = refused(&written);
        assert!(message.contains(name) && message.contains(&format!("at most {limit}")), "{message}");
    }
    for name in ["config.json", "tokenizer.json"] {
        let written = Folder::new("Llama").write();
        written.put(name, "[".repeat(1 << 20).as_bytes());
        assert!(refused(&written).contains(&format!("{name} can't be understood")));
    }
}

#[test]
fn an_index_names_files_of_the_folder_and_all_they_hold() {
    let folder = Folder::new("Llama");
    let written = folder.write_shards(2);
    let index = |change: &dyn Fn(&mut serde_json::Value)| {
        let shard = |number: usize| format!("model-0000{number}-of-00002.safetensors");
        let map = folder.tensors.keys().enumerate().map(|(index, name)| (name.clone(), json!(shard(index % 2 + 1))));
        let mut map = serde_json::Value::Object(map.collect());
        change(&mut map);
        written.put("model.safetensors.index.json", json!({ "weight_map": map }).to_string().as_bytes());
    };
    let norm = "model.norm.weight";
    index(&|_| {});
    assert!(hugging_face::open(written.path()).is_ok());
    for name in ["../model.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..safetensors", "config.json", ""] {
        index(&|map| map[norm] = json!(name));
        let message = refused(&written);
        assert!(message.contains("expected names of .safetensors files"), "{message}");
    }
    index(&|map| map[norm] = json!("missing.safetensors"));
    assert!(matches!(hugging_face::open(written.path()), Err(Error::Io { .. } | Error::HuggingFace(_))));
    index(&|map| drop(map.as_object_mut().unwrap().remove(norm)));
    assert!(refused(&written).contains("tensors should be in"));
    index(&|map| map["model.other.weight"] = json!("model-00001-of-00002.safetensors"));
    assert!(refused(&written).contains("model.other.weight should be in"));
    index(&|map| *map = json!({}));
    assert!(refused(&written).contains("expected 1 to 1024 files, found 0"));
    // The same tensors in both files.
    index(&|_| {});
    std::fs::copy(written.file("model-00001-of-00002.safetensors"), written.file("model-00002-of-00002.safetensors"))
        .unwrap();
    assert!(refused(&written).contains("is in another file, too"));
}

/// Reads all that a checkpoint says it has.
fn read_all(checkpoint: &Checkpoint) {
    for name in checkpoint.tensor_names() {
        let tensor = checkpoint.tensor(name).unwrap();
        let values: usize = tensor.dims.iter().product();
        assert_eq!(tensor.bytes.len(), values / tensor.dtype.block_len() * tensor.dtype.block_bytes(), "{name}");
        tensor.dequantize_row(tensor.rows() - 1, &mut vec![0.0; tensor.row_len()]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Whatever changed bytes leave readable is a model or is refused.
    #[test]
    fn changed_bytes_never_panic(
        sharded in any::<bool>(),
        file in 0usize..5,
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"\x00\x01\x80\xff019-{}[]\",:.eE/tn".to_vec())), 1..4),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let mut folder = Folder::new("Gemma3");
        folder.files.insert("tokenizer_config.json".to_owned(), json!({ "bos_token": "<|begin|>" }).to_string());
        let written = if sharded { folder.write_shards(2) } else { folder.write() };
        let weights = if sharded { "model-00001-of-00002.safetensors" } else { "model.safetensors" };
        let index = if sharded { "model.safetensors.index.json" } else { weights };
        let name = ["config.json", "tokenizer.json", "tokenizer_config.json", weights, index][file];
        let mut bytes = std::fs::read(written.file(name)).unwrap();
        // Of the weights only the header matters.
        let range = if name == weights { 8 + bytes[..8].iter().rev().fold(0, |n, b| n * 256 + usize::from(*b)) } else { bytes.len() };
        for (at, byte) in changes {
            bytes[at.index(range)] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        written.put(name, &bytes);
        if let Ok(checkpoint) = hugging_face::open(written.path()) {
            read_all(&checkpoint);
            drop(source::vocabulary(&source::Source::Checkpoint(written.path().to_owned())));
        }
    }
}
