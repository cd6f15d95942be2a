//! The real vocabulary of Gemma 3: `BATON_TEST_GEMMA`, or where `baton setup --model gemma3-270m` puts it.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use baton_model::source::{Source, vocabulary};
use baton_model::vocabulary::Vocabulary;
use serde_json::{Value, json};

static GEMMA: LazyLock<Vocabulary> = LazyLock::new(|| vocabulary(&Source::Checkpoint(path())).unwrap());

fn path() -> PathBuf {
    let home = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let path = home("BATON_TEST_GEMMA").unwrap_or_else(|| {
        let baton = home("BATON_HOME").unwrap_or_else(|| home("HOME").expect("a home").join(".local/share/baton"));
        baton.join("models/gemma-3-270m.Q4_K_M.gguf")
    });
    let bring = "run `baton setup --model gemma3-270m`, or set BATON_TEST_GEMMA";
    assert!(path.exists(), "{} is missing: {bring}", path.display());
    path
}

#[test]
fn prompts_and_answers_equal_the_reference() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/gemma3-raw.jsonl");
    let ids = |value: &Value| serde_json::from_value::<Vec<u32>>(value.clone()).unwrap();
    let mut count = 0;
    for line in std::fs::read_to_string(file).unwrap().lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let tokens = GEMMA.encode(case["prompt"].as_str().unwrap(), false).unwrap();
        assert_eq!(tokens, ids(&case["prompt_tokens"]), "{}", case["id"]);
        assert_eq!(GEMMA.decode(&ids(&case["completion_tokens"])), case["text"], "{}", case["id"]);
        count += 1;
    }
    assert_eq!(count, 5);
    // Begin and end of a turn stand for themselves in templates only.
    let turn = "<start_of_turn>user\nhi<end_of_turn>";
    assert_eq!(GEMMA.encode(turn, true).unwrap(), [2, 105, 2364, 107, 2202, 106]);
    let plain = GEMMA.encode(turn, false).unwrap();
    assert!(!plain.contains(&105) && !plain.contains(&106));
    assert_eq!(GEMMA.decode(&plain), turn);
    assert!(GEMMA.is_end(106) && GEMMA.is_end(1));
}

/// Whatever stands in a text a hundred thousand times over, encoding it takes no time that grows with its square.
#[test]
fn endless_words_neither_hang_nor_change() {
    for unit in ["a", " ", "\n", "é", "<", "7", "\u{2581}", " the", "<end_of_turn>", "\u{1f6a2}", "\u{378}"] {
        let text = unit.repeat((1 << 20) / unit.len());
        for parse_special in [false, true] {
            let tokens = GEMMA.encode(&text, parse_special).unwrap();
            let expected = if unit == "\u{2581}" { text.replace(unit, " ") } else { text.clone() };
            let control = parse_special && unit == "<end_of_turn>";
            assert!(control || GEMMA.decode(&tokens) == expected, "{unit:?} came back changed");
        }
    }
    assert_eq!(GEMMA.encode(&json!({"a": [1, 2]}).to_string(), false).unwrap().len(), 8);
}
