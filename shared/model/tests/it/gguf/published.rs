//! Files as publishers write them: in several parts, and with what their metadata does not say.

use std::path::{Path, PathBuf};

use baton_contract::causes;
use baton_model::checkpoint;
use baton_model::gguf::{self, Error, part_names};
use baton_model::tokenizer::Tokenizer;

use super::open;
use super::writer::{F32, Writer};

/// Parts of a model: the number of each, how many it says there are, how many tensors in all, and the tensors in it.
fn write(folder: &Path, parts: &[(u16, u16, i32, &[&str])]) -> Vec<PathBuf> {
    let part = |(place, (number, count, tensors, names)): (usize, &(u16, u16, i32, &[&str]))| {
        let mut writer = Writer::new(1);
        writer.pair("split.no", 2, &number.to_le_bytes());
        writer.pair("split.count", 2, &count.to_le_bytes());
        writer.pair("split.tensors.count", 5, &tensors.to_le_bytes());
        writer.string("said.by", &format!("part {place}"));
        names.iter().for_each(|name| writer.tensor(name, &[2], F32, &[place as u8; 8]));
        let path = folder.join(format!("m-{:05}-of-{:05}.gguf", place + 1, parts.len()));
        std::fs::write(&path, writer.finish()).unwrap();
        path
    };
    parts.iter().enumerate().map(part).collect()
}

#[test]
fn a_model_in_parts_is_one_model_whichever_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write(folder.path(), &[(0, 3, 4, &["a", "b"]), (1, 3, 4, &["c"]), (2, 3, 4, &["d"])]);
    let mut digests = Vec::new();
    for path in &paths {
        let model = gguf::open(path).unwrap();
        assert_eq!(model.string("said.by").unwrap(), "part 0");
        assert_eq!(model.tensor_names().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        assert_eq!(["a", "c", "d"].map(|name| model.tensor(name).unwrap().bytes[0]), [0, 1, 2]);
        assert_eq!(model.path(), path);
        digests.push(model.digest());
    }
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    let mut changed = std::fs::read(&paths[2]).unwrap();
    let last = changed.len() - 30;
    changed[last] ^= 1;
    std::fs::write(&paths[2], changed).unwrap();
    assert_ne!(gguf::open(&paths[0]).unwrap().digest(), digests[0], "the digest is that of all parts");
}

#[test]
fn parts_that_are_missing_or_of_another_model_are_named() {
    let refused = |parts: &[(u16, u16, i32, &[&str])], named: usize| {
        let folder = tempfile::tempdir().unwrap();
        let paths = write(folder.path(), parts);
        causes(&gguf::open(&paths[named]).unwrap_err())
    };
    let other = refused(&[(0, 2, 2, &["a"]), (0, 2, 2, &["b"])], 0);
    assert!(other.contains("m-00002-of-00002.gguf") && other.contains("expected 1, found 0"), "{other}");
    let other = refused(&[(0, 2, 2, &["a"]), (1, 3, 2, &["b"])], 0);
    assert!(other.contains("number of parts: expected 2, found 3"), "{other}");
    let fewer = refused(&[(0, 2, 3, &["a"]), (1, 2, 3, &["b"])], 1);
    assert!(fewer.contains("tensors in all parts: expected 3, found 2"), "{fewer}");
    let twice = refused(&[(0, 2, 2, &["a"]), (1, 2, 2, &["a"])], 0);
    assert!(twice.contains("must occur once in all parts, found a"), "{twice}");
    assert!(refused(&[(0, 5000, 2, &["a"])], 0).contains("1024 parts, found 5000"));

    let folder = tempfile::tempdir().unwrap();
    let paths = write(folder.path(), &[(0, 2, 2, &["a"]), (1, 2, 2, &["b"])]);
    let renamed = folder.path().join("model.gguf");
    std::fs::rename(&paths[1], &renamed).unwrap();
    let missing = causes(&gguf::open(&paths[0]).unwrap_err());
    assert!(missing.contains("m-00002-of-00002.gguf, a part of the model, is missing"), "{missing}");
    let error = gguf::open(&renamed).unwrap_err();
    let checkpoint::Error::Gguf(Error::PartName { part: 2, count: 2, expected }) = &error else { panic!("{error}") };
    assert_eq!(expected, "-00002-of-00002.gguf");
}

#[test]
fn names_of_parts_have_one_form() {
    let names = part_names("q4/m-00002-of-00002.gguf").unwrap();
    assert_eq!(names, ["q4/m-00001-of-00002.gguf", "q4/m-00002-of-00002.gguf"]);
    for other in
        ["m.gguf", "m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m-1-of-2.gguf", "m-00001-of-99999.gguf", "-of-"]
    {
        assert_eq!(part_names(other), None, "{other}");
    }
}

/// A byte-level tokenizer for the bytes of e, an acute accent and both in one.
fn tokenizer(pre: &str, more: &dyn Fn(&mut Writer)) -> Tokenizer {
    let strings = |values: &[&str]| {
        let mut bytes = [&8u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        for value in values {
            bytes.extend((value.len() as u64).to_le_bytes());
            bytes.extend(value.as_bytes());
        }
        bytes
    };
    let mut writer = Writer::new(1);
    writer.string("tokenizer.ggml.model", "gpt2");
    writer.string("tokenizer.ggml.pre", pre);
    writer.pair("tokenizer.ggml.tokens", 9, &strings(&["e", "Ì", "ģ", "Ã", "©"]));
    writer.pair("tokenizer.ggml.merges", 9, &strings(&[]));
    more(&mut writer);
    Tokenizer::from_gguf(&open(&writer.finish()).unwrap()).unwrap()
}

#[test]
fn the_name_of_the_word_pattern_tells_whether_text_is_composed() {
    let ids = |pre: &str| encode(&tokenizer(pre, &|_| {}), "e\u{301}");
    assert_eq!((ids("qwen2"), ids("smollm"), ids("gpt-2")), (vec![3, 4], vec![0, 1, 2], vec![0, 1, 2]));
    let told = tokenizer("qwen2", &|writer| writer.pair("baton.tokenizer.nfc", 7, &[0]));
    assert_eq!(encode(&told, "e\u{301}"), [0, 1, 2]);
}

#[test]
fn ids_of_no_token_are_those_of_none() {
    let lost = tokenizer("llama-bpe", &|writer| {
        writer.number("tokenizer.ggml.bos_token_id", 99);
        writer.pair("tokenizer.ggml.eos_token_id", 5, &(-1i32).to_le_bytes());
        writer.number("tokenizer.ggml.eot_token_id", 4);
    });
    assert_eq!((lost.bos_text(), lost.eos_text()), (None, None));
    assert_eq!((encode(&lost, "e"), lost.is_end(4)), (vec![0], true));
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, false, None).unwrap()
}
