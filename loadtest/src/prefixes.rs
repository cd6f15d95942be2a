//! A trace's prompts replayed through the index of a worker's KV cache: how much of the prompts a cache of some size holds
//! already. No model, no broker, no values: only names and sizes.

mod plot;
mod report;
mod size;
mod trace;

use std::num::NonZeroU32;
use std::path::PathBuf;

use baton_storage::cache::Index;
use serde::Serialize;

pub use plot::svg;
pub use report::Report;
pub use size::{ParseSizeError, Size};
pub use trace::Error;
use trace::Request;

/// Stored KV of SmolLM2-135M: 23,040 bytes of bf16 a token, packed 1.5 times smaller.
const BYTES_PER_TOKEN: u32 = 15_360;

/// What to replay, and through which caches.
#[derive(clap::Args, Clone, Debug, Serialize)]
pub struct Options {
    /// The trace, a JSON object a line
    #[arg(long, value_name = "FILE")]
    pub trace: PathBuf,
    /// Sizes of the caches, in bytes (10GB, 512MiB) or in blocks (5000blocks)
    #[arg(long, value_name = "SIZE", value_delimiter = ',', default_value = "10GB,30GB,100GB,300GB,1TB")]
    pub cache: Vec<Size>,
    /// Tokens of a block that a hash of the trace stands for; a prompt's last block may hold fewer
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    pub block_tokens: NonZeroU32,
    /// Bytes of stored KV a token; the default is SmolLM2-135M's, packed without loss
    #[arg(long, value_name = "BYTES", default_value_t = BYTES_PER_TOKEN,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub bytes_per_token: u32,
}

impl Options {
    /// Bytes that a whole block takes in a cache.
    fn block_bytes(&self) -> u64 {
        u64::from(self.block_tokens.get()) * u64::from(self.bytes_per_token)
    }
}

/// What was found in a cache, over the whole trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Hits {
    pub hit_blocks: u64,
    pub hit_tokens: u64,
    /// The two as shares of all prompts' blocks and tokens, 0 to 1.
    pub block_hit_rate: f64,
    pub token_hit_rate: f64,
    /// The most bytes that the cache held.
    pub most_bytes: u64,
}

/// Replays the trace through each cache, and through one without a bound.
pub fn run(options: &Options) -> Result<Report, Error> {
    let requests = trace::read(options)?;
    let hits = |budget| replay(options, &requests, budget);
    let unbounded = hits(u64::MAX);
    let caches = options.cache.iter().map(|size| {
        let bytes = size.bytes(options.block_bytes());
        report::Bounded { cache: *size, bytes, blocks: bytes / options.block_bytes(), hits: hits(bytes) }
    });
    let caches = caches.collect();
    let total = |count: fn(&Request) -> u64| requests.iter().map(count).sum();
    Ok(Report {
        options: options.clone(),
        requests: requests.len(),
        prompt_blocks: total(Request::blocks),
        prompt_tokens: total(|request| request.input_length),
        unbounded,
        caches,
    })
}

/// Sends all requests through a cache of at most `budget` bytes, which is empty at first.
fn replay(options: &Options, requests: &[Request], budget: u64) -> Hits {
    let block_tokens = u64::from(options.block_tokens.get());
    let mut cache = Index::new(budget);
    let mut found = Hits::default();
    let (mut blocks, mut tokens) = (0, 0);
    for request in requests {
        let hit = request.hash_ids.iter().take_while(|block| cache.contains(*block)).count() as u64;
        found.hit_blocks += hit;
        found.hit_tokens += request.tokens(hit, block_tokens);
        blocks += request.blocks();
        tokens += request.input_length;
        for (index, block) in (0..).zip(&request.hash_ids) {
            // The last block takes only what it holds.
            let held = request.tokens(index + 1, block_tokens) - request.tokens(index, block_tokens);
            cache.insert(*block, held * u64::from(options.bytes_per_token));
            found.most_bytes = found.most_bytes.max(cache.bytes());
        }
    }
    found.block_hit_rate = found.hit_blocks as f64 / blocks as f64;
    found.token_hit_rate = found.hit_tokens as f64 / tokens as f64;
    found
}
