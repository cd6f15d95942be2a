//! The simulated model keeps the promises of every model, and its text shows what KV it read.

use baton_contract::kv::Block;
use baton_model::model::{Error, Model, SequenceId, Step};
use baton_model::sampling;
use baton_model::sim::{AnswerTokens, Options, Sim};
use baton_model::source::{Source, vocabulary};

const PROMPT: &str = "user: What is a tide?\nassistant:\n";

fn sim() -> Sim {
    Sim::new(Options { layers: 3, kv_width: 6, ..Options::default() }, 1 << 20).expect("good options")
}

fn tokens(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn forward(model: &mut Sim, sequence: SequenceId, tokens: &[u32]) -> Vec<f32> {
    let mut rows = model.forward(&[Step { sequence, tokens, logits: 1 }]).expect("there is room");
    rows.remove(0)
}

/// Goes on greedily from the logits after the last token.
fn generate(model: &mut Sim, sequence: SequenceId, mut logits: Vec<f32>, count: usize) -> Vec<u32> {
    let mut answer = Vec::new();
    for _ in 0..count {
        answer.push(sampling::greedy(&logits));
        logits = forward(model, sequence, &answer[answer.len() - 1..]);
    }
    answer
}

fn answer(model: &mut Sim, prompt: &str, count: usize) -> Vec<u32> {
    let sequence = model.open();
    let logits = forward(model, sequence, &tokens(prompt));
    generate(model, sequence, logits, count)
}

/// The answer after importing `blocks` for the prompt but its last token.
fn answer_from(blocks: &[Block], count: usize) -> Vec<u32> {
    let (model, prompt) = (&mut sim(), tokens(PROMPT));
    let sequence = model.open();
    for block in blocks {
        let at = model.len(sequence).expect("open");
        model.import(sequence, &prompt[at..at + block.tokens], block).expect("fits");
    }
    let at = model.len(sequence).expect("open");
    let logits = forward(model, sequence, &prompt[at..]);
    generate(model, sequence, logits, count)
}

#[test]
fn the_answer_is_the_same_alone_batched_split_and_imported() {
    let expected = answer(&mut sim(), PROMPT, 80);
    let text = String::from_utf8(expected.iter().map(|&token| token as u8).collect()).expect("letters");
    assert!(text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b' ') && text.contains(' '), "{text:?}");
    assert!(!text.contains("  ") && text.split(' ').all(|word| word.len() <= 8), "{text:?}");
    assert_ne!(expected, answer(&mut sim(), "user: What is a bide?\nassistant:\n", 80));

    let (model, prompt) = (&mut sim(), tokens(PROMPT));
    let [split, other] = [0, 0].map(|_| model.open());
    let none = model.forward(&[Step { sequence: split, tokens: &prompt[..5], logits: 0 }]).expect("there is room");
    assert!(none[0].is_empty());
    let steps = [
        Step { sequence: other, tokens: &prompt[3..9], logits: 1 },
        Step { sequence: split, tokens: &prompt[5..], logits: 1 },
    ];
    let rows = model.forward(&steps).expect("there is room");
    let logits = rows[1].clone();
    assert_eq!(generate(model, split, logits, 80), expected);

    let blocks = [0..7, 7..7, 7..20].map(|range| model.export(split, range).expect("computed"));
    assert_eq!(answer_from(&blocks, 80), expected);
    // Exported again, the block is the same, wherever it came from.
    let copy = model.open();
    model.import(copy, &prompt[..7], &blocks[0]).expect("fits");
    assert_eq!(model.export(copy, 0..7).expect("imported"), blocks[0]);
}

#[test]
fn a_wrong_block_changes_the_answer() {
    let model = &mut sim();
    let sequence = model.open();
    forward(model, sequence, &tokens(PROMPT));
    let block = model.export(sequence, 0..20).expect("computed");
    let right = answer_from(std::slice::from_ref(&block), 80);
    assert_eq!((block.layers.len(), block.layers[0].len()), (3, 2 * 20 * 6));
    for (layer, value) in [(0, 0), (1, 63), (2, 239)] {
        let mut wrong = block.clone();
        wrong.layers[layer][value] ^= 1;
        assert_ne!(answer_from(&[wrong], 80), right, "value {value} of layer {layer}");
    }
    let mut swapped = block.clone();
    swapped.layers.swap(0, 1);
    assert_ne!(answer_from(&[swapped], 80), right);
    let mut halves = [0..10, 10..20].map(|range| model.export(sequence, range).expect("computed"));
    halves.reverse();
    assert_ne!(answer_from(&halves, 80), right);
}

#[test]
fn blocks_have_the_size_and_the_spread_of_real_kv() {
    let model = &mut Sim::new(Options::default(), 1 << 30).expect("good options");
    let sequence = model.open();
    forward(model, sequence, &[101; 256]);
    let block = model.export(sequence, 0..256).expect("computed");
    assert!(block.fits(&model.spec().kv));
    assert_eq!(block.layers.iter().map(|layer| 2 * layer.len()).sum::<usize>(), 5_898_240);
    let values: Vec<f64> =
        block.layers[7].iter().map(|&bits| f64::from(half::bf16::from_bits(bits).to_f32())).collect();
    assert_eq!((values[0], values[1]), (101.0, 0.0), "the token's id");
    let drawn: Vec<f64> = values.into_iter().filter(|value| value.abs() < 10.0 && *value != 0.0).collect();
    let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
    let variance = drawn.iter().map(|value| value * value).sum::<f64>() / drawn.len() as f64;
    assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "mean {mean}, variance {variance}");
}

#[test]
fn answers_end_where_the_prompt_decides() {
    let answer_tokens = Some(AnswerTokens { min: 3, max: 12 });
    let model =
        &mut Sim::new(Options { layers: 1, kv_width: 2, answer_tokens, ..Options::default() }, 1 << 20).expect("good");
    let length = |model: &mut Sim, prompt: &str| answer(model, prompt, 40).iter().position(|&token| token == 256);
    let mut lengths: Vec<usize> = (0..300).filter_map(|number| length(model, &format!("Prompt {number}:"))).collect();
    assert_eq!(lengths.len(), 300);
    lengths.sort_unstable();
    lengths.dedup();
    assert_eq!(lengths, (3..=12).collect::<Vec<_>>());
    assert_eq!(length(&mut sim(), PROMPT), None, "without bounds an answer goes on");
}

#[test]
fn impossible_requests_change_nothing() {
    // One page of 64 tokens, a context of 40.
    let model = &mut Sim::new(Options { layers: 3, kv_width: 6, context: 40, ..Options::default() }, 0).expect("good");
    let sequence = model.open();
    let step = |tokens: &'static [u32]| Step { sequence, tokens, logits: 1 };
    let unknown = Step { sequence: SequenceId(99), ..step(&[1]) };
    assert!(matches!(model.forward(&[step(&[1]), unknown]), Err(Error::UnknownSequence(SequenceId(99)))));
    assert!(matches!(model.forward(&[step(&[1; 41])]), Err(Error::ContextExceeded { context: 40, needed: 41 })));
    assert!(matches!(model.forward(&[Step { logits: 2, ..step(&[1]) }]), Err(Error::EmptyStep)));
    assert!(matches!(model.forward(&[step(&[])]), Err(Error::EmptyStep)));
    assert!(matches!(model.forward(&[step(&[257])]), Err(Error::TokenOutOfRange { token: 257, vocabulary: 257 })));
    assert_eq!(model.len(sequence).expect("open"), 0);
    forward(model, sequence, &[1, 2]);
    assert!(matches!(model.export(sequence, 1..3), Err(Error::RangeOutOfBounds { len: 2, .. })));
    let block = model.export(sequence, 0..2).expect("computed");
    assert!(matches!(model.import(sequence, &[1], &block), Err(Error::BlockMismatch { .. })));
    let thin = Block { tokens: 2, layers: block.layers[1..].to_vec() };
    assert!(matches!(model.import(sequence, &[1, 2], &thin), Err(Error::BlockMismatch { layers: 2, .. })));
    model.import(sequence, &[1, 2], &block).expect("there is room");
    let other = model.open();
    assert_eq!(model.memory().free_pages, 0);
    let full = Error::OutOfMemory { needed: 1, free: 0, pages: 1, page_tokens: 64 };
    assert_eq!(model.import(other, &[1, 2], &block).expect_err("no page is free").to_string(), full.to_string());
    assert!(matches!(model.forward(&[Step { sequence: other, ..step(&[1]) }]), Err(Error::OutOfMemory { .. })));
    model.close(sequence);
    assert_eq!(model.memory().free_pages, 1);
    assert!(matches!(model.len(sequence), Err(Error::UnknownSequence(_))));
}

#[test]
fn bad_options_are_refused_by_name() {
    let refused = |options: Options| vocabulary(&Source::Sim(options)).err().expect("refused").to_string();
    assert!(refused(Options { kv_width: 1, ..Options::default() }).contains("sim.kv_width"));
    assert!(refused(Options { decode_s_per_step: f64::NAN, ..Options::default() }).contains("sim.decode_s_per_step"));
    let answer_tokens = Some(AnswerTokens { min: 5, max: 4 });
    assert!(refused(Options { answer_tokens, ..Options::default() }).contains("min 5, max 4"));
}
