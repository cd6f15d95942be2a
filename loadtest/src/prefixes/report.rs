//! What the replay found, for people and for programs.

use std::fmt::Write;

use baton_load::table;
use serde::Serialize;

use super::{Hits, Options, Size};

/// How much of a trace's prompts caches of some sizes hold already.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub options: Options,
    /// Requests of the trace, and what their prompts have together.
    pub requests: usize,
    pub prompt_blocks: u64,
    pub prompt_tokens: u64,
    /// Of a cache that forgets nothing: the most that any can find.
    pub unbounded: Hits,
    /// In the order of the options.
    pub caches: Vec<Bounded>,
}

/// What a cache of some size found.
#[derive(Clone, Debug, Serialize)]
pub struct Bounded {
    pub cache: Size,
    pub bytes: u64,
    /// Whole blocks that fit.
    pub blocks: u64,
    #[serde(flatten)]
    pub hits: Hits,
}

impl Report {
    /// A Markdown table, a cache a row, and what it is about.
    pub fn markdown(&self) -> String {
        let heading = ["cache", "whole blocks", "blocks hit", "tokens hit", "of unbounded"].map(str::to_owned).to_vec();
        let row = |name: String, blocks: String, hits: &Hits| {
            let percent = |share: f64| format!("{:.1} %", share * 100.0);
            let of_unbounded = hits.hit_blocks as f64 / (self.unbounded.hit_blocks as f64).max(1.0);
            vec![name, blocks, percent(hits.block_hit_rate), percent(hits.token_hit_rate), percent(of_unbounded)]
        };
        let bounded = self.caches.iter().map(|it| row(it.cache.to_string(), it.blocks.to_string(), &it.hits));
        let needed = format!("unbounded ({:.0} GB)", self.unbounded.most_bytes as f64 / 1e9);
        let unbounded = row(needed, String::new(), &self.unbounded);
        let rows: Vec<_> = [heading].into_iter().chain(bounded).chain([unbounded]).collect();
        let mut text = table::aligned(&rows);
        let Options { block_tokens, bytes_per_token, .. } = &self.options;
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "\n{} requests, {} blocks of up to {block_tokens} tokens, {} tokens; {bytes_per_token} bytes a token",
            self.requests, self.prompt_blocks, self.prompt_tokens
        );
        text
    }
}
