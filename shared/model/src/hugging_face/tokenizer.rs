//! `tokenizer.json` and the files around it, translated to the keys of GGUF files.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::{Value as Json, json};

use super::document::{Documents, SMALL, Settings, TOKENIZER, shown};
use super::error::{Error, damaged};
use crate::checkpoint::{self, Value};
use crate::tokenizer;
use crate::tokenizer::keys::{self, BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED};

const FILE: &str = "tokenizer.json";

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Json>,
    pre_tokenizer: Option<Json>,
    post_processor: Option<Json>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    /// Old files don't say; they are BPE if they have merges.
    r#type: Option<String>,
    #[serde(default)]
    vocab: Json,
    #[serde(default)]
    merges: Vec<Merge>,
    unk_token: Option<String>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// Two tokens with a space between them. Files have them so, or as a list of two.
struct Merge(String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Merge, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Pair([String; 2]),
        }
        let merge = match Form::deserialize(deserializer)? {
            Form::Text(text) => text,
            Form::Pair(pair) => pair.join(" "),
        };
        match merge.matches(' ').count() {
            1 => Ok(Merge(merge)),
            _ => Err(D::Error::custom(format!("a merge must be two tokens without spaces, found {merge:?}"))),
        }
    }
}

/// How text is cut and joined.
enum Words {
    /// Byte-level BPE with the word pattern of that name.
    ByteLevel { pre: &'static str },
    /// Pieces with `▁` for a space, which are found by ranked merges in the whole text.
    Pieces { space_prefix: &'static str },
}

/// Reads the tokenizer of a model whose embedding table has `vocabulary` rows. Added tokens may stand behind them.
pub(super) fn read(
    documents: &mut Documents,
    config: &Settings,
    vocabulary: usize,
) -> Result<BTreeMap<String, Value>, checkpoint::Error> {
    let file = documents.required(FILE, TOKENIZER)?.json::<File>()?;
    let mut settings = |name| -> Result<Settings, checkpoint::Error> {
        let document = documents.optional(name, SMALL)?;
        Ok(document.map(|document| document.settings()).transpose()?.unwrap_or_default())
    };
    let (tokenizer, generation) = (settings("tokenizer_config.json")?, settings("generation_config.json")?);
    let template = documents.optional("chat_template.jinja", SMALL)?;

    let mut keys = BTreeMap::new();
    let mut insert = |key: &str, value: Value| drop(keys.insert(key.to_owned(), value));
    let words = words(&file)?;
    let nfc = normalization(&file, &words)?;
    let (tokens, types) = tokens(&file, vocabulary)?;
    let ids: HashMap<&str, u64> = (0..).zip(&tokens).map(|(id, text)| (text.as_str(), id)).collect();
    match words {
        Words::ByteLevel { pre } => {
            insert("tokenizer.ggml.model", text("gpt2"));
            insert("tokenizer.ggml.pre", text(pre));
        }
        Words::Pieces { space_prefix } => {
            insert("tokenizer.ggml.model", text(keys::RANKED_PIECES));
            insert(keys::SPACE_PREFIX, text(space_prefix));
            let unknown = file.model.unk_token.as_deref().and_then(|unknown| ids.get(unknown));
            unknown.into_iter().for_each(|&id| insert("tokenizer.ggml.unknown_token_id", Value::Unsigned(id)));
        }
    }
    insert(keys::NFC, Value::Bool(nfc));

    // The named tokens, as texts or as objects with a text.
    let named = |key: &str| -> Result<Option<u64>, Error> {
        let Some(value) = tokenizer.get(key) else { return Ok(None) };
        let content = value.as_str().or_else(|| value.get("content")?.as_str());
        let id = content.and_then(|content| ids.get(content)).copied();
        id.map(Some).ok_or_else(|| tokenizer.wrong(key, "the text of a token", shown(value)))
    };
    let ends =
        [token_ids(&generation, "eos_token_id", tokens.len())?, token_ids(config, "eos_token_id", tokens.len())?];
    let mut ends = ends.concat();
    let eos = named("eos_token")?.or(ends.first().copied());
    ends.extend(eos);
    ends.sort_unstable();
    ends.dedup();
    // A tokenizer that says "null" has none, whatever the model's configuration says.
    let bos = match tokenizer.values.contains_key("bos_token") {
        true => named("bos_token")?,
        false => token_ids(config, "bos_token_id", tokens.len())?.first().copied(),
    };
    let (bos, begins) = match tokenizer.flag("add_bos_token")? {
        Some(begins) => (bos, begins),
        None => beginning(&file, bos, &ids)?,
    };
    eos.into_iter().for_each(|id| insert("tokenizer.ggml.eos_token_id", Value::Unsigned(id)));
    bos.into_iter().for_each(|id| insert("tokenizer.ggml.bos_token_id", Value::Unsigned(id)));
    insert(keys::END_IDS, Value::Array(ends.into_iter().map(Value::Unsigned).collect()));
    insert("tokenizer.ggml.add_bos_token", Value::Bool(begins));
    if tokenizer.flag("add_eos_token")? == Some(true) {
        return Err(tokenizer.unsupported("add_eos_token", "false", true).into());
    }

    let template = match template {
        Some(document) => {
            Some(String::from_utf8(document.bytes).map_err(|error| damaged("chat_template.jinja", error.to_string()))?)
        }
        None => chat_template(&tokenizer)?.map(str::to_owned),
    };
    template.into_iter().for_each(|template| insert("tokenizer.chat_template", Value::String(template)));
    insert("tokenizer.ggml.tokens", Value::Array(tokens.into_iter().map(Value::String).collect()));
    insert("tokenizer.ggml.token_type", Value::Array(types.into_iter().map(Value::Signed).collect()));
    let merges = file.model.merges.into_iter().map(|merge| Value::String(merge.0)).collect();
    insert("tokenizer.ggml.merges", Value::Array(merges));
    Ok(keys)
}

fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

fn unsupported(key: &str, found: impl ToString, expected: &'static str) -> Error {
    Error::Unsupported { file: FILE, key: key.to_owned(), found: found.to_string(), expected }
}

/// What the file says about words, where it is one of the ways that the supported models have.
fn words(file: &File) -> Result<Words, Error> {
    let model = &file.model;
    let kind = model.r#type.as_deref().unwrap_or("BPE");
    if kind != "BPE" {
        return Err(unsupported("model.type", shown(&json!(kind)), "BPE"));
    }
    let affixes = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
    if let Some(affix) = affixes.into_iter().flatten().find(|affix| !affix.is_empty()) {
        return Err(unsupported("the model's prefix or suffix of words", shown(&json!(affix)), "none"));
    }
    if let Some(dropout) = model.dropout.filter(|dropout| *dropout != 0.0) {
        return Err(unsupported("model.dropout", dropout, "none"));
    }
    const SUPPORTED: &str =
        "byte-level words as GPT-2, SmolLM, Llama 3, Qwen 2 and Mistral Nemo have them, or SentencePiece's pieces";
    let parts = parts(file.pre_tokenizer.as_ref(), "pretokenizers");
    let words = match parts.as_slice() {
        [bytes] if is_byte_level(bytes, true) => Some(Words::ByteLevel { pre: "gpt-2" }),
        [digits, bytes] if is_byte_level(bytes, true) => {
            let single = json!({ "type": "Digits", "individual_digits": true });
            (**digits == single).then_some(Words::ByteLevel { pre: "smollm" })
        }
        [split, bytes] if is_byte_level(bytes, false) => {
            let pattern = split["pattern"]["Regex"]
                .as_str()
                .filter(|_| split["type"] == "Split" && split["behavior"] == "Isolated" && split["invert"] != true);
            pattern.and_then(tokenizer::word_pattern).map(|pre| Words::ByteLevel { pre })
        }
        _ => space_prefix(file, &parts).map(|space_prefix| Words::Pieces { space_prefix }),
    };
    let found = || file.pre_tokenizer.as_ref().or(file.normalizer.as_ref()).map_or("none".to_owned(), shown);
    match words {
        None => Err(unsupported("the pre_tokenizer", found(), SUPPORTED)),
        Some(Words::ByteLevel { pre }) if model.ignore_merges != tokenizer::takes_whole_words(pre) => {
            Err(unsupported("model.ignore_merges", model.ignore_merges, "what models with this pre_tokenizer have"))
        }
        Some(Words::Pieces { .. }) if !model.byte_fallback => {
            Err(unsupported("model.byte_fallback", false, "true with this pre_tokenizer"))
        }
        Some(Words::Pieces { .. }) if model.ignore_merges => {
            Err(unsupported("model.ignore_merges", true, "false with this pre_tokenizer"))
        }
        Some(words) => Ok(words),
    }
}

/// The parts of a sequence; what is none is a sequence of itself.
fn parts<'a>(value: Option<&'a Json>, key: &str) -> Vec<&'a Json> {
    match value {
        Some(value) if value["type"] == "Sequence" => value[key].as_array().into_iter().flatten().collect(),
        value => value.into_iter().collect(),
    }
}

/// Whether bytes become characters here; with `words`, by GPT-2's word pattern.
fn is_byte_level(value: &Json, words: bool) -> bool {
    value["type"] == "ByteLevel"
        && value["add_prefix_space"] == false
        && value.get("use_regex").and_then(Json::as_bool).unwrap_or(true) == words
}

/// When a space is put before a text that is cut into pieces, see [`keys::SPACE_PREFIX`]. None if the file cuts text
/// in another way.
fn space_prefix(file: &File, pre_tokenizers: &[&Json]) -> Option<&'static str> {
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let prepend = json!({ "type": "Prepend", "prepend": "▁" });
    // Splits at spaces that are none any more.
    let idle =
        json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false });
    match (parts(file.normalizer.as_ref(), "normalizers").as_slice(), pre_tokenizers) {
        ([first, second], []) if **first == prepend && **second == replace => Some("always"),
        ([only], []) if **only == replace => Some("never"),
        ([only], [split]) if **only == replace && **split == idle => Some("never"),
        ([], [space]) if space["type"] == "Metaspace" && space["replacement"] == "▁" && space["split"] == false => {
            match space["prepend_scheme"].as_str() {
                Some("always") => Some("each"),
                Some("first") => Some("first"),
                Some("never") => Some("never"),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Whether text is to be brought to Unicode's normal form C first.
fn normalization(file: &File, words: &Words) -> Result<bool, Error> {
    let normalizers = parts(file.normalizer.as_ref(), "normalizers");
    match (words, normalizers.as_slice()) {
        (Words::Pieces { .. }, _) | (_, []) => Ok(false),
        (_, [only]) if only["type"] == "NFC" => Ok(true),
        (_, [first, ..]) => Err(unsupported("the normalizer", shown(first), "NFC or none")),
    }
}

/// Text and GGUF type of each token, by id. Ids that no token has get an empty text.
fn tokens(file: &File, vocabulary: usize) -> Result<(Vec<String>, Vec<i64>), Error> {
    let vocab = file.model.vocab.as_object().ok_or_else(|| damaged(FILE, "model.vocab must be an object"))?;
    let mut tokens: Vec<Option<(String, i64)>> = Vec::new();
    let mut add = |text: &str, id: Option<u64>, kind: i64, ids: usize| -> Result<(), Error> {
        let Some(id) = id.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < ids) else {
            let expected = if ids > vocabulary { ", and as many as there are added tokens" } else { "" };
            let what =
                format!("token {text:?} must have an id below the {vocabulary} rows of the embeddings{expected}");
            return Err(damaged(FILE, what));
        };
        if tokens.len() <= id {
            tokens.resize(id + 1, None);
        }
        let kind = match kind {
            NORMAL if file.model.byte_fallback && tokenizer::named_byte(text).is_some() => BYTE,
            kind => kind,
        };
        match &tokens[id] {
            // Gemma has tabs twice, as a piece and as a byte.
            Some((byte, BYTE)) if tokenizer::named_byte(byte).is_some_and(|byte| text.as_bytes() == [byte]) => {}
            Some((other, _)) if other != text && kind != BYTE => {
                return Err(damaged(FILE, format!("id {id} is that of {other:?} and of {text:?}")));
            }
            _ => tokens[id] = Some((text.to_owned(), kind)),
        }
        Ok(())
    };
    for (text, id) in vocab {
        let unknown = file.model.byte_fallback && file.model.unk_token.as_deref() == Some(text);
        add(text, id.as_u64(), if unknown { UNKNOWN } else { NORMAL }, vocabulary)?;
    }
    // Tokens that were added behind the embeddings are harmless in a text without them: padding for training is such a one.
    let ids = vocabulary.saturating_add(file.added_tokens.len());
    for added in &file.added_tokens {
        if added.single_word || added.lstrip || added.rstrip {
            let found = format!("set for {:?}", added.content);
            return Err(unsupported("single_word, lstrip or rstrip of an added token", found, "false"));
        }
        add(&added.content, Some(added.id), if added.special { CONTROL } else { USER_DEFINED }, ids)?;
    }
    Ok(tokens.into_iter().map(|token| token.unwrap_or((String::new(), CONTROL))).unzip())
}

/// The ids under `key`: one or a list. Numbers that are the id of no token stand for none.
fn token_ids(settings: &Settings, key: &str, tokens: usize) -> Result<Vec<u64>, Error> {
    let Some(value) = settings.get(key) else { return Ok(Vec::new()) };
    let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    if let Some(bad) = values.iter().find(|value| !value.is_u64() && !value.is_i64()) {
        return Err(settings.wrong(key, "ids of tokens", shown(bad)));
    }
    Ok(values.iter().filter_map(Json::as_u64).filter(|id| *id < tokens as u64).collect())
}

/// The token that begins a sequence, which is `bos` if that is known, and whether the file puts it before a text.
fn beginning(file: &File, bos: Option<u64>, ids: &HashMap<&str, u64>) -> Result<(Option<u64>, bool), Error> {
    let processors = parts(file.post_processor.as_ref(), "processors");
    let Some(template) = processors.into_iter().find(|processor| processor["type"] == "TemplateProcessing") else {
        return Ok((bos, false));
    };
    let items: Vec<Option<&str>> =
        template["single"].as_array().into_iter().flatten().map(|item| item["SpecialToken"]["id"].as_str()).collect();
    let first = match items.as_slice() {
        [None] => return Ok((bos, false)),
        [Some(first), None] => ids.get(first).copied(),
        _ => None,
    };
    match first.filter(|first| bos.is_none_or(|bos| bos == *first)) {
        Some(first) => Ok((Some(first), true)),
        None => {
            let expected = "the token that begins a sequence, then the text";
            Err(unsupported("the post_processor", shown(template), expected))
        }
    }
}

/// The template of chats; of several the one called "default".
fn chat_template(settings: &Settings) -> Result<Option<&str>, Error> {
    match settings.get("chat_template") {
        Some(Json::Array(templates)) => {
            let default = templates.iter().find(|template| template["name"] == "default");
            Ok(default.and_then(|template| template["template"].as_str()))
        }
        _ => settings.text("chat_template"),
    }
}
