//! The stages of a pipeline.

/// A stage of the pipeline, in the order a job passes them.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    bincode::Encode,
    bincode::Decode,
)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Request to job.
    Ingest,
    /// Prompt to KV cache and first token.
    Prefill,
    /// KV cache to answer.
    Decode,
}

impl Stage {
    /// All stages, in that order.
    pub const ALL: [Self; 3] = [Self::Ingest, Self::Prefill, Self::Decode];

    /// Its name in subjects and options.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
