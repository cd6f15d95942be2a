//! Answers of a given form: grammars, what of them a model's vocabulary can say next, and how far an answer has come.
//!
//! The grammars are llguidance's. All its bounds count work, not time, so that a grammar that one worker takes is taken by
//! every other.

use std::sync::{Arc, OnceLock};

use baton_contract::sampling::Constraint;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory, panic_utils};
use serde_json::{Value, json};

use super::{bounds, schema};
use crate::vocabulary::Vocabulary;

/// Longer tokens, and what goes beyond so many bytes of all tokens, are never part of a constrained answer: the trie of the
/// tokens can't take more.
const MAX_TOKEN_BYTES: usize = 256;
const MAX_TRIE_BYTES: usize = 4 << 20;

/// White space between the tokens of JSON: a space, or a new line and its indentation. With no bound weak models go on with
/// it for ever.
const WHITE_SPACE: &str = r"\x20|\x0D?\x0A[\x20\x09]{0,32}";

/// What a grammar may cost. Compiling: nodes of regular expressions (some 50 a microsecond), and symbols. Each token:
/// derivatives (some 14 a microsecond) and parser items (some 20).
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2_000,
    initial_lexer_fuel: 500_000,
    step_lexer_fuel: 100_000,
    step_max_items: 50_000,
    max_lexer_states: 50_000,
    max_grammar_size: 100_000,
    precompute_large_lexemes: false,
    verbose_errors: false,
};

/// Why an answer can't have the form.
#[derive(Clone, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error("{path}: {message}")]
    Grammar { path: &'static str, message: String },
    #[error("the model's vocabulary can't be constrained: {0}")]
    Vocabulary(String),
    #[error("the answer can't go on: {0}; simplify the schema or the expression")]
    Stuck(String),
    #[error("token {token} does not fit what the answer may go on with")]
    Token { token: u32 },
}

/// Compiles the constraints of one model's answers.
#[derive(Default)]
pub struct Grammars {
    /// Made when the first answer needs it.
    factory: OnceLock<Result<ParserFactory, Error>>,
}

impl Grammars {
    /// Compiles a constraint; always with the same vocabulary.
    pub fn compile(&self, vocabulary: &Arc<Vocabulary>, constraint: &Constraint) -> Result<Progress, Error> {
        let factory = self.factory.get_or_init(|| factory(vocabulary)).as_ref().map_err(Error::clone)?;
        let refused = |message: String| Error::Grammar { path: constraint.path(), message };
        let grammar = match constraint {
            Constraint::JsonObject => json_grammar(json!({ "type": "object" })),
            Constraint::JsonSchema(text) => {
                let mut schema: Value = serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
                if !schema.is_object() {
                    return Err(refused("expected an object".to_owned()));
                }
                if let Some(refusal) = schema::refusal(&schema) {
                    return Err(refused(refusal));
                }
                bounds::rewrite(&mut schema).map_err(refused)?;
                json_grammar(schema)
            }
            Constraint::Regex(expression) => {
                // The grammar's syntax would take these for something else than an empty and an unfinished expression.
                if expression.is_empty() || expression.chars().rev().take_while(|c| *c == '\\').count() % 2 == 1 {
                    return Err(refused("expected a regular expression, found none or half an escape".to_owned()));
                }
                TopLevelGrammar::from_regex(expression)
            }
        };
        let parser = factory.create_parser(grammar).map_err(|error| refused(said(&error)))?;
        let mut matcher = Matcher::new(Ok(parser));
        // The first mask tells what compiling doesn't: that nothing at all matches.
        matcher.compute_mask_or_eos().map_err(|error| refused(said(&error)))?;
        Ok(Progress { matcher, vocabulary: vocabulary.clone() })
    }
}

/// How far an answer has come in its grammar.
pub struct Progress {
    matcher: Matcher,
    vocabulary: Arc<Vocabulary>,
}

impl Progress {
    /// Makes impossible in `logits` `[vocabulary]` what the answer can't go on with; what it can is finite afterwards.
    pub(super) fn mask(&mut self, logits: &mut [f32]) -> Result<(), Error> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| Error::Stuck(said(&error)))?;
        for (id, logit) in logits.iter_mut().enumerate() {
            *logit = if id < allowed.len() && allowed.get(id) {
                // Far above minus infinity, even when a model says that: something allowed must be the best.
                logit.max(f32::MIN / 2.0)
            } else {
                f32::NEG_INFINITY
            };
        }
        Ok(())
    }

    /// Goes on by a token. The one that ends the answer must come where the answer may end.
    pub(super) fn accept(&mut self, token: u32) -> Result<(), Error> {
        if self.vocabulary.is_end(token) {
            let may_end = self.matcher.is_stopped() || self.matcher.is_accepting().unwrap_or(false);
            return if may_end { Ok(()) } else { Err(Error::Token { token }) };
        }
        match self.matcher.try_consume_tokens(&[token]) {
            Ok(1) => Ok(()),
            Ok(_) => Err(Error::Token { token }),
            Err(error) => Err(Error::Stuck(said(&error))),
        }
    }
}

fn json_grammar(mut schema: Value) -> TopLevelGrammar {
    let options =
        JsonCompileOptions { whitespace_pattern: Some(WHITE_SPACE.to_owned()), ..JsonCompileOptions::default() };
    // In place of the options that a request may have put there.
    options.apply_to(&mut schema);
    TopLevelGrammar::from_json_schema(schema)
}

/// A trie of the vocabulary's tokens, and all that grammars have in common.
fn factory(vocabulary: &Vocabulary) -> Result<ParserFactory, Error> {
    let count = u32::try_from(vocabulary.spec().vocabulary).unwrap_or(u32::MAX);
    let ends: Vec<u32> = (0..count).filter(|&token| vocabulary.is_end(token)).collect();
    let Some(&end) = ends.first() else {
        return Err(Error::Vocabulary("it has no token that ends an answer".to_owned()));
    };
    let mut room = MAX_TRIE_BYTES;
    let words: Vec<Vec<u8>> = (0..count)
        .map(|token| {
            let bytes = vocabulary.token_bytes(token);
            // 0xff marks llguidance's special tokens, and is in no text.
            let word = if vocabulary.is_end(token) || bytes.len() > MAX_TOKEN_BYTES.min(room) || bytes.contains(&0xff) {
                &[]
            } else {
                bytes
            };
            room -= word.len();
            word.to_vec()
        })
        .collect();
    let build = move || {
        let trie = TokTrie::from(&TokRxInfo::new(count, end), &words).with_eos_tokens(&ends);
        // Not canonical: the model chooses how it cuts a text into tokens, also where the text is certain.
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)?;
        factory.quiet();
        *factory.limits_mut() = LIMITS;
        Ok(factory)
    };
    panic_utils::catch_unwind(std::panic::AssertUnwindSafe(build)).map_err(|error| Error::Vocabulary(said(&error)))
}

/// What llguidance says, without the place in our one-line grammar before and after it, and its state and back trace.
fn said(error: &impl std::fmt::Display) -> String {
    let message = error.to_string();
    let message = message.split("\n<").next().unwrap_or_default().trim();
    match message.strip_prefix("at ").and_then(|place| place.split_once("): ")) {
        Some((place, rest)) if place.bytes().all(|byte| byte.is_ascii_digit() || byte == b'(') => {
            rest.split("\n   1 | ").next().unwrap_or_default().to_owned()
        }
        _ => message.to_owned(),
    }
}
