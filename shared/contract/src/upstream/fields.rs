//! Which fields each engine understands, besides those that Baton's requests have, as its sources name them in 2026. Engines ignore
//! what they don't know, so a field that is in none of its lists is refused.

use super::Engine;

/// Fields that ask for something that no result has a place for: whatever the engine, they would be asked for in vain.
const UNTOLD: [&str; 17] = [
    "mm_payload",
    "n_probs",
    "post_sampling_probs",
    "prompt_logprobs",
    "response_fields",
    "return_cached_tokens_details",
    "return_hidden_states",
    "return_meta_info",
    "return_mm_kwargs",
    "return_progress",
    "return_prompt_text",
    "return_prompt_token_ids",
    "return_routed_experts",
    "return_token_offsets",
    "return_tokens",
    "timings_per_token",
    "verbose",
];

/// Of conversations, in all engines.
const CHAT: [&str; 6] =
    ["max_completion_tokens", "parallel_tool_calls", "reasoning_effort", "response_format", "tool_choice", "tools"];

/// Of vLLM's `ChatCompletionRequest` and `CompletionRequest`; `guided_*` are its older names of `structured_outputs`.
const VLLM: [&str; 30] = [
    "add_special_tokens",
    "allowed_token_ids",
    "bad_words",
    "cache_salt",
    "echo",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "ignore_eos",
    "include_stop_str_in_output",
    "length_penalty",
    "logprob_token_ids",
    "min_tokens",
    "priority",
    "repetition_detection",
    "response_format",
    "return_tokens_as_token_ids",
    "session_id",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stop_token_ids",
    "stream_interval",
    "structured_outputs",
    "thinking_token_budget",
    "truncate_prompt_tokens",
    "truncation_side",
    "use_beam_search",
    "vllm_xargs",
    "watermarking",
];
const VLLM_CHAT: [&str; 8] = [
    "add_generation_prompt",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
    "include_reasoning",
    "media_io_kwargs",
    "mm_processor_kwargs",
];
const VLLM_PROMPT: [&str; 1] = ["suffix"];

/// Of SGLang's requests of the same names; `guided_*` and `structured_outputs` are vLLM's words for what it has too.
const SGLANG: [&str; 25] = [
    "cache_salt",
    "custom_logit_processor",
    "custom_params",
    "ebnf",
    "extra_key",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "ignore_eos",
    "images_config",
    "lora_path",
    "min_tokens",
    "ngram_corpus_id",
    "no_stop_trim",
    "priority",
    "regex",
    "response_format",
    "routed_dp_rank",
    "session_id",
    "session_params",
    "skip_special_tokens",
    "stop_regex",
    "stop_token_ids",
    "structured_outputs",
];
const SGLANG_CHAT: [&str; 9] = [
    "chat_template_kwargs",
    "continue_final_message",
    "max_dynamic_patch",
    "min_dynamic_patch",
    "reasoning",
    "separate_reasoning",
    "stream_reasoning",
    "task",
    "use_audio_in_video",
];
const SGLANG_PROMPT: [&str; 5] = ["best_of", "custom_labels", "echo", "json_schema", "suffix"];

/// Of llama.cpp's server, which takes what its own `/completion` takes in both; vLLM's words for forms are
/// among them, of which it has those of a schema and of choices.
const LLAMA_CPP: [&str; 37] = [
    "adaptive_decay",
    "adaptive_target",
    "cache_prompt",
    "dry_allowed_length",
    "dry_base",
    "dry_multiplier",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "dynatemp_exponent",
    "dynatemp_range",
    "grammar",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "id_slot",
    "ignore_eos",
    "json_schema",
    "lora",
    "min_keep",
    "mirostat",
    "mirostat_eta",
    "mirostat_tau",
    "n_cache_reuse",
    "n_discard",
    "n_indent",
    "n_keep",
    "repeat_last_n",
    "repeat_penalty",
    "response_format",
    "samplers",
    "structured_outputs",
    "t_max_predict_ms",
    "top_n_sigma",
    "typical_p",
    "xtc_probability",
    "xtc_threshold",
];
const LLAMA_CPP_CHAT: [&str; 9] = [
    "add_generation_prompt",
    "chat_template_kwargs",
    "continue_final_message",
    "parse_tool_calls",
    "reasoning_budget_message",
    "reasoning_budget_tokens",
    "reasoning_format",
    "thinking_budget_tokens",
    "thinking_forced_open",
];

/// What becomes of a field that Baton has no meaning for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The engine understands it.
    Taken,
    /// The engine does not know it, and would ignore it.
    Unknown,
    /// What it asks for is in no result.
    Untold,
}

/// What becomes of a field of a conversation, or of a prompt.
pub(super) fn fate(engine: Engine, chat: bool, field: &str) -> Fate {
    if UNTOLD.contains(&field) {
        return Fate::Untold;
    }
    let (both, chats, prompts): (&[&str], &[&str], &[&str]) = match engine {
        Engine::OpenAi => return Fate::Taken,
        Engine::Vllm => (&VLLM, &VLLM_CHAT, &VLLM_PROMPT),
        Engine::Sglang => (&SGLANG, &SGLANG_CHAT, &SGLANG_PROMPT),
        Engine::LlamaCpp => (&LLAMA_CPP, &LLAMA_CPP_CHAT, &[]),
    };
    let taken = match chat {
        true => both.contains(&field) || chats.contains(&field) || CHAT.contains(&field),
        false => both.contains(&field) || prompts.contains(&field),
    };
    if taken { Fate::Taken } else { Fate::Unknown }
}
