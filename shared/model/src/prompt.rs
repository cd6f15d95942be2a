//! What is to be answered becomes a job's prompt.

use baton_contract::{
    causes,
    job::Job,
    outcome::{Code, Failure},
    request::Input,
};

use crate::{chat, generation::Generator, tokenizer, vocabulary::Vocabulary};

/// Gives a job its prompt, as many tokens for its answers as the context leaves at most, and looks whether these can begin at all.
/// `at_ms` is when the request was accepted.
pub fn fit(generator: &Generator, job: &mut Job, input: Input, at_ms: u64) -> Result<(), Failure> {
    let vocabulary = generator.vocabulary();
    job.prompt = tokens(vocabulary, input, at_ms)?;
    let room = vocabulary.spec().context - job.prompt.len();
    job.max_tokens = job.max_tokens.min(room as u32);
    generator.start(job, 0).map_err(|error| error.failure())?;
    Ok(())
}

/// The prompt's token ids: at least one, fewer than the context. Templates are told the time at which the request was
/// accepted, so that a retry has the same prompt.
fn tokens(vocabulary: &Vocabulary, input: Input, accepted_at_ms: u64) -> Result<Vec<u32>, Failure> {
    let spec = vocabulary.spec();
    let too_long = |found: String| {
        Failure::new(
            Code::PromptTooLong,
            format!("expected a prompt of fewer than {} tokens, the model's context; found {found}", spec.context),
        )
    };
    let prompt = match input {
        Input::Tokens(tokens) => {
            if let Some(token) = tokens.iter().find(|token| **token as usize >= spec.vocabulary) {
                let message = format!("prompt: token id {token} is outside the vocabulary of {}", spec.vocabulary);
                return Err(Failure::new(Code::InvalidValue, message));
            }
            tokens
        }
        Input::Text(text) => vocabulary.encode(&text, false).map_err(|error| match error {
            tokenizer::Error::TooLong { .. } => too_long(error.to_string()),
            error => Failure::new(Code::InvalidValue, format!("prompt: {}", causes(&error))),
        })?,
        Input::Rich { at } => {
            let message = format!("{at}: expected a role and a text, which are all that Baton's own models take");
            return Err(Failure::new(Code::UnknownField, message));
        }
        Input::Messages(messages) => {
            vocabulary.encode_chat(&messages, accepted_at_ms).map_err(|error| match error {
                chat::Error::TooLong { .. } | chat::Error::Encode(tokenizer::Error::TooLong { .. }) => {
                    too_long(error.to_string())
                }
                error => Failure::new(Code::InvalidTemplateInput, format!("messages: {}", causes(&error))),
            })?
        }
    };
    if prompt.is_empty() {
        return Err(Failure::new(Code::EmptyPrompt, "the prompt is empty"));
    }
    if prompt.len() >= spec.context {
        return Err(too_long(prompt.len().to_string()));
    }
    Ok(prompt)
}
