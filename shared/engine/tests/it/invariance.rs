//! A sequence's logits and KV don't depend, to the bit, on its neighbours, on how it was split, on what was imported.

use baton_contract::kv;
use baton_engine::llama::Llama;
use baton_model::model::{Compute, Error, Model, SequenceId, Step};
use proptest::prelude::*;

use crate::writer::{CONTEXT, Tiny, VOCABULARY};
use crate::{load, load_as};

pub(crate) const MODES: [Compute; 2] = [Compute::Exact, Compute::Fast];

pub(crate) fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// The logits after the last token and the KV of all, computed alone and at once.
fn alone(model: &mut Llama, tokens: &[u32]) -> (Vec<u32>, kv::Block) {
    let sequence = model.open();
    let logits = model.forward(&[Step { sequence, tokens, logits: 1 }]).unwrap().remove(0);
    assert!(logits.iter().all(|logit| logit.is_finite()));
    let block = model.export(sequence, 0..tokens.len()).unwrap();
    model.close(sequence);
    (bits(&logits), block)
}

/// A sequence to compute, with the sizes of its parts; the first part may be imported.
#[derive(Clone, Debug)]
struct Plan {
    tokens: Vec<u32>,
    parts: Vec<usize>,
    import: bool,
}

fn plan(most: usize) -> impl Strategy<Value = Plan> {
    let tokens = prop::collection::vec(0..VOCABULARY as u32, 1..most);
    (tokens, prop::collection::vec(1usize..most, 1..6), any::<bool>()).prop_map(|(tokens, parts, import)| Plan {
        tokens,
        parts,
        import,
    })
}

fn tiny() -> impl Strategy<Value = Tiny> {
    let heads = prop_oneof![Just((4, 2)), Just((6, 2)), Just((2, 2)), Just((8, 1))];
    let windows = prop_oneof![Just(None), (1usize..40).prop_map(Some), (1usize..500).prop_map(Some)];
    (any::<u64>(), heads, 1usize..5, any::<[bool; 3]>(), windows).prop_map(
        |(seed, (queries, kv), head, [whole, tied, quantized], window)| {
            let head = head * 16;
            let rope = if whole { head } else { head / 2 };
            Tiny { layers: 2, queries, kv, head, rope, tied, quantized, window, ..Tiny::new(seed) }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn neighbours_splits_and_imports_change_no_bit(
        tiny in tiny(),
        plans in prop::collection::vec(plan(70), 1..6),
        long in plan(600),
    ) {
        let plans: Vec<Plan> = plans.into_iter().chain([long]).collect();
        let mut logits = Vec::new();
        for compute in MODES {
            let mut model = load_as(&tiny.file(), compute, 1 << 24).unwrap();
            let expected: Vec<_> = plans.iter().map(|plan| alone(&mut model, &plan.tokens)).collect();
            together(&mut model, &plans, &expected)?;
            logits.push(expected.into_iter().map(|(logits, _)| logits).collect::<Vec<_>>());
        }
        prop_assert_ne!(&logits[0], &logits[1], "fast computes like exact");
    }
}

/// All sequences side by side, by their parts: each as it is alone.
fn together(model: &mut Llama, plans: &[Plan], expected: &[(Vec<u32>, kv::Block)]) -> Result<(), TestCaseError> {
    let mut open: Vec<(SequenceId, usize)> = Vec::new();
    for (plan, (_, block)) in plans.iter().zip(expected) {
        let sequence = model.open();
        let mut done = 0;
        if plan.import && plan.parts[0] < plan.tokens.len() {
            done = plan.parts[0];
            let part = part_of(block, done, model.spec().kv.width);
            model.import(sequence, &plan.tokens[..done], &part).unwrap();
        }
        open.push((sequence, done));
    }
    let mut last: Vec<Vec<f32>> = vec![Vec::new(); plans.len()];
    for round in 0.. {
        let mut steps = Vec::new();
        let mut who = Vec::new();
        for (index, (plan, (sequence, done))) in plans.iter().zip(&mut open).enumerate().rev() {
            let end = plan.tokens.len().min(*done + plan.parts[round % plan.parts.len()]);
            if *done < end {
                let logits = usize::from(end == plan.tokens.len() || round % 2 == 0);
                steps.push(Step { sequence: *sequence, tokens: &plan.tokens[*done..end], logits });
                who.push(index);
                *done = end;
            }
        }
        if steps.is_empty() {
            break;
        }
        for (index, logits) in who.into_iter().zip(model.forward(&steps).unwrap()) {
            last[index] = logits;
        }
    }
    for (((plan, expected), (sequence, _)), logits) in plans.iter().zip(expected).zip(&open).zip(&last) {
        prop_assert_eq!(&bits(logits), &expected.0);
        prop_assert_eq!(&model.export(*sequence, 0..plan.tokens.len()).unwrap(), &expected.1);
    }
    Ok(())
}

/// The first `tokens` tokens of a block.
fn part_of(block: &kv::Block, tokens: usize, width: usize) -> kv::Block {
    let layers = block.layers.iter().map(|layer| {
        let (keys, values) = layer.split_at(layer.len() / 2);
        [&keys[..tokens * width], &values[..tokens * width]].concat()
    });
    kv::Block { tokens, layers: layers.collect() }
}

/// The logits of many tokens of a step, also where the step takes several passes.
#[test]
fn rows_of_logits_are_those_of_single_steps() {
    for compute in MODES {
        let file = Tiny { quantized: true, window: Some(77), ..Tiny::new(17) }.file();
        let mut model = load_as(&file, compute, 1 << 24).unwrap();
        let tokens: Vec<u32> = (0..600).map(|i| i * i % VOCABULARY as u32).collect();
        let sequence = model.open();
        let single = tokens.iter().flat_map(|token| {
            model.forward(&[Step { sequence, tokens: std::slice::from_ref(token), logits: 1 }]).unwrap().remove(0)
        });
        let single = bits(&single.collect::<Vec<f32>>());
        for count in [0, 1, 88, 89, 513, 600] {
            let (one, two) = (model.open(), model.open());
            let steps = [one, two].map(|sequence| Step { sequence, tokens: &tokens, logits: count });
            for found in model.forward(&steps).unwrap() {
                assert!(bits(&found) == single[single.len() - count * VOCABULARY..], "{compute:?}, {count} rows");
            }
            model.close(one);
            model.close(two);
        }
    }
}

#[test]
fn bad_requests_are_refused_and_change_nothing() {
    let mut model = load(&Tiny::new(7).file()).unwrap();
    let (one, two) = (model.open(), model.open());
    model.forward(&[Step { sequence: one, tokens: &[1, 2], logits: 0 }]).unwrap();
    let block = model.export(one, 0..2).unwrap();

    let good = Step { sequence: two, tokens: &[3], logits: 1 };
    let with = |sequence, tokens| [good, Step { sequence, tokens, logits: 0 }];
    let unknown = SequenceId(99);
    assert!(matches!(model.forward(&with(one, &[])), Err(Error::EmptyStep)));
    assert!(matches!(model.forward(&with(one, &[90])), Err(Error::TokenOutOfRange { token: 90, vocabulary: 90 })));
    let long = [1; CONTEXT];
    assert!(matches!(model.forward(&with(one, &long)), Err(Error::ContextExceeded { context: CONTEXT, .. })));
    assert!(matches!(model.forward(&with(unknown, &[1])), Err(Error::UnknownSequence(_))));
    assert!(matches!(model.forward(&[good; CONTEXT + 1]), Err(Error::ContextExceeded { context: CONTEXT, .. })));
    assert!(matches!(model.export(one, 1..3), Err(Error::RangeOutOfBounds { start: 1, end: 3, len: 2 })));
    assert!(matches!(model.import(one, &[1], &block), Err(Error::BlockMismatch { .. })));
    assert!(matches!(model.import(one, &[1, 90], &block), Err(Error::TokenOutOfRange { .. })));
    assert_eq!((model.len(one).unwrap(), model.len(two).unwrap()), (2, 0));
    assert_eq!(model.export(one, 0..2).unwrap(), block);

    model.import(one, &[1, 2], &block).unwrap();
    model.close(one);
    assert!(matches!(model.len(one), Err(Error::UnknownSequence(_))));
    assert_eq!(model.forward(&[]).unwrap().len(), 0);
}

#[test]
fn the_fingerprint_tells_models_apart() {
    let fingerprint = |tiny: Tiny| load(&tiny.file()).unwrap().spec().fingerprint;
    assert_eq!(fingerprint(Tiny::new(1)), fingerprint(Tiny::new(1)));
    assert_ne!(fingerprint(Tiny::new(1)), fingerprint(Tiny::new(3)));
}
