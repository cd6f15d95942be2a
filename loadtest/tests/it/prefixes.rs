//! The replay of a trace that is small enough to be done by hand.

use std::fs;

use baton_loadtest::prefixes::{self, Error, Hits, Options};
use clap::Parser;

/// Blocks of 100 tokens at 2 bytes: 200 bytes each, but for last blocks. Two conversations, A (1, 2, 3) and B (11, 12), that
/// share nothing, and a third (1, 4) that begins as A does.
const TRACE: &str = r#"
{"timestamp": 0, "input_length": 250, "output_length": 5, "hash_ids": [1, 2, 3]}
{"timestamp": 7, "input_length": 200, "output_length": 5, "hash_ids": [11, 12]}
{"timestamp": 8, "input_length": 250, "output_length": 5, "hash_ids": [1, 2, 3]}
{"timestamp": 9, "input_length": 110, "output_length": 5, "hash_ids": [1, 4]}
{"timestamp": 9, "input_length": 200, "output_length": 5, "hash_ids": [11, 12]}
"#;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn options(words: &[&str]) -> Options {
    Arguments::parse_from([&["loadtest"], words].concat()).options
}

#[test]
fn a_small_trace_hits_what_fits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.jsonl");
    fs::write(&path, TRACE).unwrap();
    let trace = ["--trace", path.to_str().unwrap()];
    let small = ["--block-tokens", "100", "--bytes-per-token", "2"];
    let with = |words: &[&str]| prefixes::run(&options(&[&trace[..], &small, words].concat()));

    // Held to begin with: 1, 2, half of 3, 11, 12: 900 bytes, and later 4's 20 bytes.
    let report = with(&["--cache", "5blocks,1KB,1blocks"]).unwrap();
    assert_eq!((report.requests, report.prompt_blocks, report.prompt_tokens), (5, 12, 1010));
    // The second A and B whole, and block 1 of the third conversation.
    let all = hits(3 + 1 + 2, 250 + 100 + 200, 920);
    assert_eq!(report.unbounded, all);
    let found: Vec<_> = report.caches.iter().map(|it| (it.cache.to_string(), it.bytes, it.blocks, it.hits)).collect();
    assert_eq!(found[0], ("5blocks".into(), 1000, 5, all));
    assert_eq!(found[1], ("1KB".into(), 1000, 5, all));
    // Of each prompt only the last block stays, and no prompt begins with it.
    assert_eq!(found[2], ("1blocks".into(), 200, 1, hits(0, 0, 200)));

    // 800 bytes: 12 drops 1, and so A is not found again, though 2 and 3 are there. To enter it again drops 2 and 3, which
    // come back, and 11. The third conversation finds 1; and B is not found, though 12 is there.
    let report = with(&["--cache", "4blocks"]).unwrap();
    assert_eq!(report.caches[0].hits, hits(1, 100, 800));
    let text = report.markdown();
    assert!(text.contains("| 4blocks          |            4 |      8.3 % |      9.9 % |       16.7 % |\n"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["caches"][0]["cache"], &json["caches"][0]["hit_blocks"]), (&"4blocks".into(), &1.into()));

    let svg = prefixes::svg(&with(&["--cache", "4blocks,1KB,1blocks"]).unwrap());
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
    assert_eq!((svg.matches("<polyline").count(), svg.matches("<circle").count()), (2, 6));
    assert!(svg.contains(">1blocks<") && svg.contains("blocks (unbounded: 50.0 %)"), "{svg}");

    let other = prefixes::run(&options(&[&trace[..], &["--block-tokens", "50"]].concat())).unwrap_err();
    assert!(matches!(other, Error::Blocks { line: 2, expected: 5, found: 3, .. }), "{other}");
    fs::write(&path, "\n").unwrap();
    assert!(matches!(with(&[]), Err(Error::Empty { .. })));
    fs::write(&path, "{}").unwrap();
    assert!(matches!(with(&[]), Err(Error::Line { line: 1, .. })));
    fs::remove_file(&path).unwrap();
    assert!(matches!(with(&[]), Err(Error::Read { .. })));
}

/// Shares of 12 blocks and 1,010 tokens.
fn hits(hit_blocks: u64, hit_tokens: u64, most_bytes: u64) -> Hits {
    let (block_hit_rate, token_hit_rate) = (hit_blocks as f64 / 12.0, hit_tokens as f64 / 1010.0);
    Hits { hit_blocks, hit_tokens, block_hit_rate, token_hit_rate, most_bytes }
}
