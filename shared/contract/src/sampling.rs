//! How the next token is chosen, and what is told about it.

use serde_json::Value;

/// Sampling parameters of one job, complete: defaults are filled in when a request is admitted.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub struct Sampling {
    /// 0 picks the most likely token (greedy); higher flattens the distribution. Range 0 to 2.
    pub temperature: f32,
    /// Keeps this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the smallest set of most likely tokens whose probabilities sum to at least this. Range (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keeps the tokens that have at least this share of the likeliest one's probability. Range 0 to 1; 0 keeps all.
    pub min_p: f32,
    /// Tokens of prompt and answer: positive logits are divided by it, negative ones multiplied. Above 0; 1 changes none.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that the answer has. Range -2 to 2.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens that the answer has, once for each time. Range -2 to 2.
    pub frequency_penalty: f32,
    /// Token ids, ascending, and what is added to their logits, -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// What form the answer must have.
    pub constraint: Option<Constraint>,
    /// Whether log-probabilities are told, and those of how many alternatives. At most [`MAX_TOP_LOGPROBS`].
    pub logprobs: Option<u32>,
    /// With the position of a token in the sequence, determines its random number.
    pub seed: u64,
}

/// Alternatives to a token whose log-probabilities a request may ask for.
pub const MAX_TOP_LOGPROBS: u32 = 20;

impl Sampling {
    /// The likeliest token, whatever it is.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: Vec::new(),
        constraint: None,
        logprobs: None,
        seed: 0,
    };

    /// The parameters of one of a job's answers: the first has the seed itself, the others seeds that are drawn from it.
    pub fn of_choice(&self, choice: u32) -> Self {
        let mut own = self.clone();
        if choice > 0 {
            let mut drawn = blake3::Hasher::new_derive_key("baton seed of a further answer");
            drawn.update(&self.seed.to_le_bytes()).update(&choice.to_le_bytes());
            let digest = drawn.finalize();
            own.seed = u64::from_le_bytes(std::array::from_fn(|i| digest.as_bytes()[i]));
        }
        own
    }

    /// Log-probabilities that an answer of so many tokens tells.
    pub fn logprobs_of(&self, tokens: u32) -> u64 {
        self.logprobs.map_or(0, |top| u64::from(tokens) * (u64::from(top) + 1))
    }
}

/// A form that an answer must have.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema describes; the text of the schema, a JSON object.
    JsonSchema(String),
    /// Text that a regular expression matches as a whole.
    Regex(String),
}

impl Constraint {
    /// Where the public request says so.
    pub fn path(&self) -> &'static str {
        match self {
            Self::JsonObject => "response_format",
            Self::JsonSchema(_) => "response_format.json_schema.schema",
            Self::Regex(_) => "structured_outputs.regex",
        }
    }

    /// The text of a schema, its keys in the order they were written in: answers have them in that order.
    pub(crate) fn schema(schema: &Value) -> Self {
        Self::JsonSchema(schema.to_string())
    }
}
