//! Names of tensors: Hugging Face's to GGUF's.

use super::config::Architecture;

/// What a tensor of a folder is called in GGUF files.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Known(String),
    /// Nothing that computes: left out.
    Ignored,
    Unknown,
}

/// The name for `name` in a model of that architecture.
pub(super) fn translate(name: &str, architecture: Architecture) -> Name {
    match name {
        "model.embed_tokens.weight" => return Name::Known("token_embd.weight".to_owned()),
        "model.norm.weight" => return Name::Known("output_norm.weight".to_owned()),
        "lm_head.weight" => return Name::Known("output.weight".to_owned()),
        _ => {}
    }
    let Some((layer, rest)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        return Name::Unknown;
    };
    // Old folders keep the rotation's frequencies, which follow from the configuration.
    if rest == "self_attn.rotary_emb.inv_freq" {
        return Name::Ignored;
    }
    let canonical = layer.parse::<u32>().is_ok_and(|number| number.to_string() == layer);
    let part = rest.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"));
    match part.and_then(|(part, kind)| Some((self::part(part, architecture)?, kind))) {
        Some((part, kind)) if canonical => Name::Known(format!("blk.{layer}.{part}.{kind}")),
        _ => Name::Unknown,
    }
}

fn part(part: &str, architecture: Architecture) -> Option<&'static str> {
    let gemma = architecture == Architecture::Gemma3;
    Some(match part {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        // The same name for what comes after attention, and for what comes before the feed-forward part.
        "post_attention_layernorm" if gemma => "post_attention_norm",
        "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    })
}
