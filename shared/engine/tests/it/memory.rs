//! KV memory: it runs out, it is used again, and it is all that grows with a prompt.

use std::process::Command;

use baton_contract::kv;
use baton_engine::llama::Llama;
use baton_model::model::{Compute, Error, KvMemory, Model, Step};

use crate::invariance::{MODES, bits};
use crate::load_as;
use crate::writer::{Tiny, VOCABULARY};

/// A model of few pages.
fn small(compute: Compute) -> Llama {
    let tiny = Tiny { quantized: true, context: 8192, ..Tiny::new(11) };
    let model = load_as(&tiny.file(), compute, 300_000).unwrap();
    let KvMemory { pages, free_pages, .. } = model.memory();
    assert!((4..100).contains(&pages) && free_pages == pages, "{:?}", model.memory());
    model
}

fn text(count: usize) -> Vec<u32> {
    (0..count).map(|i| (i * i % VOCABULARY) as u32).collect()
}

/// The logits after the last token and the KV of all, in a new model.
fn anew(compute: Compute, tokens: &[u32]) -> (Vec<u32>, kv::Block) {
    let mut model = small(compute);
    let sequence = model.open();
    let logits = model.forward(&[Step { sequence, tokens, logits: 1 }]).unwrap();
    (bits(&logits[0]), model.export(sequence, 0..tokens.len()).unwrap())
}

#[test]
fn memory_that_runs_out_changes_nothing() {
    for compute in MODES {
        let mut model = small(compute);
        let KvMemory { page_tokens, pages, .. } = model.memory();
        let (one, two) = (model.open(), model.open());
        // All pages but one, the last of them with room for one token.
        let held = (pages - 1) * page_tokens - 1;
        let tokens = text(held + 2);
        model.forward(&[Step { sequence: one, tokens: &tokens[..held], logits: 0 }]).unwrap();
        model.forward(&[Step { sequence: two, tokens: &[5], logits: 0 }]).unwrap();
        assert_eq!(model.memory().free_pages, 0);
        let before = (model.export(one, 0..held).unwrap(), model.export(two, 0..1).unwrap());

        let refused = |result: Result<(), Error>| match result {
            Err(Error::OutOfMemory { needed, free, pages: all, page_tokens: size }) => {
                assert_eq!((needed, free, all, size), (1, 0, pages, page_tokens));
            }
            other => panic!("{compute:?}: there was no room, but {other:?}"),
        };
        let good = Step { sequence: two, tokens: &[6], logits: 1 };
        let large = Step { sequence: one, tokens: &tokens[held..], logits: 1 };
        refused(model.forward(&[good, large]).map(drop));
        refused(model.forward(&[good, Step { tokens: &tokens[..page_tokens], ..good }]).map(drop));
        let block = model.export(one, 0..2).unwrap();
        refused(model.import(one, &tokens[..2], &block));
        assert_eq!((model.len(one).unwrap(), model.len(two).unwrap()), (held, 1));
        assert_eq!((model.export(one, 0..held).unwrap(), model.export(two, 0..1).unwrap()), before);

        // What fits the pages at hand goes on; and after a close, so does the rest.
        let last = model.forward(&[good, Step { tokens: &tokens[held..=held], ..large }]).unwrap().remove(1);
        assert_eq!(bits(&last), anew(compute, &tokens[..=held]).0, "{compute:?}");
        model.close(one);
        assert_eq!(model.memory().free_pages, pages - 1);
        let more = model.forward(&[Step { sequence: two, tokens: &tokens[..held - 2], logits: 1 }]).unwrap().remove(0);
        let whole = [&[5, 6], &tokens[..held - 2]].concat();
        let found = (bits(&more), model.export(two, 0..whole.len()).unwrap());
        assert!(found == anew(compute, &whole), "{compute:?}");
        model.close(two);
        assert_eq!(model.memory().free_pages, pages);
    }
}

#[test]
fn pages_are_used_again_without_a_trace() {
    for compute in MODES {
        let mut model = small(compute);
        let KvMemory { page_tokens, pages, .. } = model.memory();
        let shape = model.spec().kv;
        // NaN, infinities and the largest numbers in every page; then in some, beside the sequences that count.
        let junk = |model: &mut Llama, count: usize| {
            let values = [0x7fc0, 0xffff, 0x7f80, 0xff80, 0x7f7f, 0xff7f, 1].into_iter().cycle();
            let layer: Vec<u16> = values.take(shape.layer_values(count)).collect();
            let block = kv::Block { tokens: count, layers: vec![layer; shape.layers] };
            let sequence = model.open();
            model.import(sequence, &text(count), &block).unwrap();
            sequence
        };
        let first = junk(&mut model, pages * page_tokens);
        model.close(first);
        let beside = junk(&mut model, page_tokens + 1);

        let tokens = text(2 * page_tokens + 20);
        let (one, two) = (model.open(), model.open());
        let mut found = Vec::new();
        for part in tokens.chunks(page_tokens - 7) {
            let steps = [one, beside, two].map(|sequence| match sequence == beside {
                true => Step { sequence, tokens: &[1], logits: 1 },
                false => Step { sequence, tokens: part, logits: 1 },
            });
            found = model.forward(&steps).unwrap();
        }
        let expected = anew(compute, &tokens);
        for (sequence, logits) in [(one, &found[0]), (two, &found[2])] {
            let found = (bits(logits), model.export(sequence, 0..tokens.len()).unwrap());
            assert!(found == expected, "{compute:?}: old pages show");
        }
    }
}

/// Each mode in a process of its own, whose peak of memory is nobody else's.
#[test]
fn a_long_prompt_takes_no_quadratic_memory() {
    const CHILD: &str = "BATON_TEST_LONG_PROMPT";
    if let Some(mode) = std::env::var(CHILD).ok().and_then(|mode| mode.parse().ok()) {
        long_prompt(mode);
        return;
    }
    let name = "memory::a_long_prompt_takes_no_quadratic_memory";
    for mode in ["exact", "fast"] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", name, "--nocapture"]).env(CHILD, mode).output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }
}

fn long_prompt(compute: Compute) {
    const TOKENS: usize = 8192;
    let tiny = Tiny { layers: 1, quantized: true, context: TOKENS, ..Tiny::new(13) };
    let mut model = load_as(&tiny.file(), compute, 16 << 20).unwrap();
    let tokens = text(TOKENS);
    let warm = model.open();
    model.forward(&[Step { sequence: warm, tokens: &tokens[..600], logits: 1 }]).unwrap();
    let before = peak();
    let sequence = model.open();
    let whole = model.forward(&[Step { sequence, tokens: &tokens, logits: 1 }]).unwrap();
    // Some 5 MiB, of which the KV cache is one. A score for each pair of positions would be 256 MiB a head; for each row of
    // a pass and each position, 64 MiB for all heads.
    let grown = peak().zip(before).map(|(after, before)| after - before);
    assert!(grown.is_none_or(|grown| grown < 32 << 20), "{compute:?}: {grown:?} bytes more");

    let parted = model.open();
    let mut last = Vec::new();
    for part in tokens.chunks(3000) {
        last = model.forward(&[Step { sequence: parted, tokens: part, logits: 1 }]).unwrap();
    }
    assert_eq!(bits(&last[0]), bits(&whole[0]), "{compute:?}");
}

/// The most memory that this process ever had, in bytes, where the system tells.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}
