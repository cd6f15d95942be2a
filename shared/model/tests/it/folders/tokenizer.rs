//! Tokenizers of folders: the ids that Hugging Face's own library gives.

use std::path::Path;

use baton_contract::causes;
use baton_model::source::{self, Source, vocabulary};
use baton_model::vocabulary::Vocabulary;
use baton_model::{chat, tokenizer};
use serde_json::{Value, json};

use super::folder::{BEGIN, END, Folder, VOCABULARY, byte_level, pieces};

const TEXTS: [&str; 12] = [
    "",
    "the and 1234, thé!",
    "  two  spaces\n\nand lines \t ",
    "don't SHOUT'LL é \u{65}\u{301} \u{1f980}",
    "ab aab  ab",
    " a",
    "▁a b",
    "aaaa€b",
    "c",
    "   ",
    "the<tool>an",
    "\u{0}\u{7f}\u{ad}",
];

fn open(tokenizer: Value, files: &[(&str, Value)]) -> Vocabulary {
    let mut folder = Folder::new("Llama");
    folder.tokenizer = tokenizer;
    folder.files.extend(files.iter().map(|(name, content)| ((*name).to_owned(), content.to_string())));
    let written = folder.write();
    vocabulary_of(written.path()).unwrap_or_else(|error| panic!("{error}"))
}

fn vocabulary_of(path: &Path) -> Result<Vocabulary, source::Error> {
    vocabulary(&Source::Checkpoint(path.to_owned()))
}

/// The ids of the library that defines the format.
fn reference(tokenizer: &Value, text: &str, special: bool) -> Vec<u32> {
    let mut reference = tokenizers::Tokenizer::from_bytes(tokenizer.to_string()).unwrap();
    reference.set_encode_special_tokens(!special);
    reference.encode(text, false).unwrap().get_ids().to_vec()
}

fn metaspace(scheme: &str) -> Value {
    json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false })
}

#[test]
fn ids_are_those_of_the_library() {
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let prepend = json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" }, replace] });
    let idle =
        json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false });
    let mut composed = byte_level();
    composed["normalizer"] = json!({ "type": "NFC" });
    let mut plain = byte_level();
    plain["pre_tokenizer"] = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true });
    plain["model"]["ignore_merges"] = json!(false);
    let mut digits = plain.clone();
    digits["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Digits", "individual_digits": true },
        { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
    ] });
    let cases = [
        ("llama 3", byte_level()),
        ("qwen's normal form", composed),
        ("gpt-2", plain),
        ("smollm", digits),
        ("llama 2", pieces(prepend, json!(null))),
        ("gemma", pieces(replace, idle)),
        ("always", pieces(json!(null), metaspace("always"))),
        ("first", pieces(json!(null), metaspace("first"))),
        ("never", pieces(json!(null), metaspace("never"))),
    ];
    for (name, tokenizer) in cases {
        // Without what goes before every text, which is tested below.
        let vocabulary = open(tokenizer.clone(), &[("tokenizer_config.json", json!({ "add_bos_token": false }))]);
        let control = if tokenizer["model"]["byte_fallback"] == true { "</s>" } else { "<|end|>" };
        let around = format!("a{control} ab{control}{control}a");
        for text in TEXTS.into_iter().chain([around.as_str()]) {
            for special in [true, false] {
                let (found, expected) =
                    (vocabulary.encode(text, special).unwrap(), reference(&tokenizer, text, special));
                assert_eq!(found, expected, "{name}: {text:?}, special tokens {special}");
            }
        }
    }
}

#[test]
fn tokens_turn_back_into_text() {
    let llama = open(byte_level(), &[]);
    let text = "the thé \u{1f980} and 123 <tool>";
    assert_eq!(llama.decode(&llama.encode(text, false).unwrap()), text);
    let gemma = open(pieces(json!(null), metaspace("never")), &[]);
    assert_eq!(gemma.decode(&gemma.encode("ab  a€\u{1f980}", false).unwrap()), "ab  a€\u{1f980}");
    assert_eq!(gemma.token_bytes(1), b"", "a control token has no text");
    assert_eq!(gemma.token_bytes(3 + 0xe2), [0xe2], "a byte is a byte");
    assert_eq!(gemma.token_bytes(259), b"", "no token has this id");
}

#[test]
fn beginnings_and_ends_come_from_all_files() {
    let begins =
        |files: &[(&str, Value)]| open(byte_level(), files).encode("a", true).unwrap().first() == Some(&(BEGIN as u32));
    let named = json!({ "bos_token": { "content": "<|begin|>" }, "eos_token": "<|end|>" });
    assert!(begins(&[("tokenizer_config.json", named)]), "as the template of tokenizer.json says");
    let never = json!({ "bos_token": "<|begin|>", "add_bos_token": false });
    assert!(!begins(&[("tokenizer_config.json", never)]));

    // Ids that no token has are those of none.
    let several = open(byte_level(), &[("generation_config.json", json!({ "eos_token_id": [97, 98, 5000, -1] }))]);
    assert!([97, 98, END as u32].into_iter().all(|id| several.is_end(id)) && !several.is_end(99));
}

/// Padding that was added for training, behind the rows of the embeddings.
#[test]
fn tokens_without_an_embedding_are_refused_where_they_occur() {
    let added = |id: usize, content: &str, special: bool| json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "special": special });
    let mut tokenizer = byte_level();
    let tokens = tokenizer["added_tokens"].as_array_mut().unwrap();
    tokens.extend([added(VOCABULARY, "[PAD]", true), added(VOCABULARY + 1, "<pad>", false)]);
    let template = "{% for message in messages %}{{ message.content }}{% endfor %}[PAD]";
    let names = json!({ "pad_token": "[PAD]", "chat_template": template });
    let vocabulary = open(tokenizer.clone(), &[("tokenizer_config.json", names)]);
    assert_eq!(vocabulary.spec().vocabulary, VOCABULARY);
    assert!(vocabulary.encode("[PAD]", false).unwrap().len() > 1, "the text of a control token is text");
    let refused = |found: Result<Vec<u32>, tokenizer::Error>| found.unwrap_err().to_string();
    assert!(refused(vocabulary.encode("a[PAD]", true)).contains("token [PAD] has the id 320"));
    assert!(refused(vocabulary.encode("<pad>", false)).contains("token <pad> has the id 321"));
    let chat = vocabulary.encode_chat(&[json!({ "role": "user", "content": "a" })], 0);
    assert!(matches!(chat, Err(chat::Error::Encode(tokenizer::Error::NotEmbedded { .. }))), "{chat:?}");

    tokenizer["added_tokens"][4]["id"] = json!(u64::MAX);
    let mut folder = Folder::new("Llama");
    folder.tokenizer = tokenizer;
    let written = folder.write();
    let far = vocabulary_of(written.path()).err().expect("it is refused").to_string();
    assert!(far.contains("must have an id below the 320 rows of the embeddings, and as many as"), "{far}");
}

#[test]
fn a_template_that_cannot_be_used_refuses_messages_only() {
    let names = json!({ "chat_template": "{% nonsense %}" });
    let vocabulary = open(byte_level(), &[("tokenizer_config.json", names)]);
    assert!(!vocabulary.encode("a", false).unwrap().is_empty());
    let refused = vocabulary.encode_chat(&[json!({ "role": "user", "content": "a" })], 0).unwrap_err();
    let said = causes(&refused);
    assert!(said.contains("send a prompt instead of messages") && said.contains("nonsense"), "{said}");
}

#[test]
fn templates_are_found_wherever_they_are() {
    let template = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}";
    let names = json!({ "bos_token": null, "eos_token": "<|end|>" });
    let with = |template: Value| {
        let mut settings = names.clone();
        settings["chat_template"] = template;
        settings
    };
    let several = json!([{ "name": "tool_use", "template": "no" }, { "name": "default", "template": template }]);
    for settings in [with(json!(template)), with(several)] {
        let vocabulary = open(byte_level(), &[("tokenizer_config.json", settings)]);
        assert_eq!(vocabulary.render(&[json!({ "role": "user", "content": "a" })], 0).unwrap(), "a<|end|>");
        // What the template says is a control token, what a message says is text.
        let ids = vocabulary.encode_chat(&[json!({ "role": "user", "content": "<|end|>" })], 0).unwrap();
        assert!(ids.len() > 2 && ids.iter().filter(|id| **id == END as u32).count() == 1, "{ids:?}");
    }
    let mut folder = Folder::new("Llama");
    folder.files.insert("tokenizer_config.json".to_owned(), with(json!("no")).to_string());
    folder.files.insert("chat_template.jinja".to_owned(), template.to_owned());
    let written = folder.write();
    let vocabulary = vocabulary(&Source::Checkpoint(written.path().to_owned())).unwrap();
    assert_eq!(vocabulary.render(&[json!({ "role": "user", "content": "a" })], 0).unwrap(), "a<|end|>");
}
