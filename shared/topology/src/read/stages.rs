//! The stages, and what their workers compute on.

use std::collections::BTreeMap;

use baton_contract::Name;

use super::{HOUR, SECOND, unknown_model};
use crate::{
    plan::{Compute, Decode, Device, Model, Prefill, Stage, Stages},
    section::Section,
};

pub(super) fn stages(mut section: Section<'_>, models: &BTreeMap<Name, Model>) -> Option<Stages> {
    let mut ingest_section = section.table("ingest");
    let ingest = stage(&mut ingest_section);
    ingest_section.finish();
    let mut prefill_section = section.table("prefill");
    let prefill = compute(&mut prefill_section, models);
    let batch_tokens = prefill_section.integer("batch_tokens", 16..=65_536);
    prefill_section.finish();
    let mut decode_section = section.table("decode");
    let decode = compute(&mut decode_section, models);
    let prefill_tokens = decode_section.integer("prefill_tokens", 0..=65_536);
    let checkpoint_ms = decode_section.integer("checkpoint_ms", 10..=60_000);
    decode_section.finish();
    section.finish();
    let prefill = prefill.map(|compute| Prefill { compute, batch_tokens });
    let decode = decode.map(|compute| Decode { compute, prefill_tokens, checkpoint_ms });
    Some(Stages { ingest, prefill: prefill?, decode: decode? })
}

fn stage(section: &mut Section<'_>) -> Stage {
    Stage {
        replicas: section.integer("replicas", 0..=1024),
        slots: section.integer("slots", 1..=4096),
        ack_wait: section.duration("ack_wait", SECOND..=HOUR),
        max_deliver: section.integer("max_deliver", 1..=100),
    }
}

fn compute(section: &mut Section<'_>, models: &BTreeMap<Name, Model>) -> Option<Compute> {
    let stage = stage(section);
    let mut served: Vec<Name> = models.keys().cloned().collect();
    if section.may_have("models") {
        served = section.names("models", 1..=1024);
        served.sort();
        for name in served.iter().filter(|name| !models.contains_key(name)) {
            section.note("models", unknown_model(name, models));
        }
    }
    let devices = [("flex", Device::Flex), ("cuda", Device::Cuda), ("wgpu", Device::Wgpu)];
    let device = section.choice("device", &devices);
    let threads = section.integer("threads", 0..=1024);
    let memory_fraction = section.fraction("memory_fraction");
    let kv_memory = section.may_have("kv_memory").then(|| section.bytes("kv_memory"));
    if kv_memory.is_none() && device.is_some_and(|device| device != Device::Flex) {
        section.note(
            "kv_memory",
            "expected a size such as \"8GiB\", for the device's memory is not the machine's; found nothing",
        );
    }
    Some(Compute { stage, models: served, device: device?, threads, memory_fraction, kv_memory })
}
