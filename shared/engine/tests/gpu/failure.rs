//! What a device that fails leaves: clear errors, no wrong answers, and a model that goes on if it can.

use std::io::Write;

use baton_engine::llama;
use baton_model::checkpoint::Checkpoint;
use baton_model::gguf;
use baton_model::model::{Error, Model, Step};

use crate::writer::{CONTEXT, Tiny, VOCABULARY};
use crate::{KV_BYTES, forward, load, tokens};

/// A model with so many heads that the scores of 512 tokens over 1,024 positions are 192 MiB: more than the 128 MiB that
/// Mesa's software driver allows a buffer. Those of the first 512 tokens are 96 MiB.
fn many_headed() -> Checkpoint {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&Tiny { queries: 96, ..Tiny::new(11) }.file()).unwrap();
    gguf::open(file.path()).unwrap()
}

fn reason(error: Option<Error>) -> String {
    match error {
        Some(Error::StepFailed(reason)) => reason,
        other => panic!("expected a failed step, found {other:?}"),
    }
}

#[test]
fn a_step_too_large_for_the_device_fails_and_smaller_ones_go_on() {
    let mut model = load(many_headed(), "wgpu", KV_BYTES).unwrap();
    let pages = model.memory().free_pages;
    let prompt = tokens(CONTEXT, VOCABULARY, 2);
    let (long, short) = (model.open(), model.open());
    let expected = forward(&mut model, long, &prompt[..512], 1);

    // The neighbour's own attention succeeds, and nobody wants logits: still the failure is told.
    let steps = [
        Step { sequence: long, tokens: &prompt[512..1023], logits: 0 },
        Step { sequence: short, tokens: &prompt[..1], logits: 0 },
    ];
    let text = reason(model.forward(&steps).err());
    assert!(text.contains("the device failed: can't allocate buffer of size: 2"), "{text}");
    assert!(
        text.ends_with(
            "all sequences are closed, for their KV cache is lost; start them again with less to do at once"
        )
    );
    assert!(!text.contains('\n'), "{text}");
    assert!(matches!(model.len(long), Err(Error::UnknownSequence(_))));
    assert_eq!(model.memory().free_pages, pages);

    let again = model.open();
    assert!(forward(&mut model, again, &prompt[..512], 1) == expected, "the model computes as before");
    for part in prompt[512..].chunks(128) {
        let logits = forward(&mut model, again, part, 1);
        assert!(logits.iter().all(|logit| logit.is_finite()));
    }
    assert_eq!(model.len(again).unwrap(), CONTEXT);
}

#[test]
fn a_model_without_room_on_the_device_is_refused() {
    let error = load(many_headed(), "wgpu", 1 << 40).err();
    let Some(llama::Error::DoesNotFit { reason }) = error else { panic!("expected a refusal, found {error:?}") };
    assert!(reason.contains("can't allocate buffer of size"), "{reason}");
}
