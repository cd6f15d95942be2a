//! One prompt between the engine and the store: what it reuses goes in, what is computed comes out and is put.

use std::{ops::Range, pin::pin, sync::Arc};

use baton_bus::{
    duty::counters::Counters,
    stage::{Retry, StageError},
};
use baton_contract::{
    causes,
    kv::Block,
    outcome::{Code, Failure, Timings},
};
use baton_model::generation::{self, Emitted};
use baton_storage::{
    key::Piece,
    kv::{self, KvStore, Stored},
};
use futures::{Stream, StreamExt, stream};
use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};
use tracing::{Instrument, info_span};

use crate::{
    engine::Ticket,
    messages::{Computed, Failed},
    reuse::{Prefix, Source},
};

/// Pieces that are fetched at a time.
const PARALLEL_FETCHES: usize = 4;
/// Pieces that are in memory and not in the engine's pages, at most.
const PIECES_IN_MEMORY: usize = 8;

/// Which piece was put, and what that stored.
type PutResult = Result<(usize, Stored), kv::Error>;

/// A prompt that was handed to the engine.
pub(crate) struct Computing<'a> {
    store: &'a KvStore,
    pieces: &'a [Piece],
    prefix: Prefix,
    ticket: Ticket,
    timings: &'a mut Timings,
    puts: JoinSet<PutResult>,
    submitted: Instant,
    started: Option<Instant>,
    counters: Counters,
}

/// The part of a prompt that the first `sources` pieces are: at most all but its last token, whose logits are wanted.
pub(crate) fn reusable(pieces: &[Piece], sources: usize) -> usize {
    let end = |pieces: &[Piece]| pieces.last().map_or(0, |piece| piece.range.end);
    end(&pieces[..sources]).min(end(pieces).saturating_sub(1))
}

impl<'a> Computing<'a> {
    pub(crate) fn new(
        store: &'a KvStore,
        pieces: &'a [Piece],
        prefix: Prefix,
        ticket: Ticket,
        timings: &'a mut Timings,
        submitted: Instant,
    ) -> Self {
        let (puts, started, counters) = (JoinSet::new(), None, Counters::default());
        Self { store, pieces, prefix, ticket, timings, puts, submitted, started, counters }
    }

    /// Counts what is put and got there.
    pub(crate) fn counted(self, counters: &Counters) -> Self {
        Self { counters: counters.clone(), ..self }
    }

    /// Works until every piece of the prompt's KV cache is stored; returns the first token of each of the job's answers.
    pub(crate) async fn finish(mut self) -> Result<Vec<Emitted>, StageError> {
        let sources = self.prefix.sources.clone();
        let first = self.compute(&sources).await?;
        let done = Instant::now();
        while let Some(put) = self.puts.join_next().await {
            self.note_put(put)?;
        }
        self.confirm(sources).await?;
        // Waiting for pages, for others who compute the same, or for a part of the passes, is part of the queue.
        let (started, looking) = (self.started.unwrap_or(done), self.prefix.looking.as_secs_f64() * 1e3);
        let timings = self.timings;
        timings.prefix_get_ms += looking;
        timings.prefill_ms = done.duration_since(started).as_secs_f64() * 1e3 + looking;
        timings.kv_put_ms = done.elapsed().as_secs_f64() * 1e3;
        timings.prefill_queue_ms += started.duration_since(self.submitted).as_secs_f64() * 1e3 - looking;
        Ok(first)
    }

    /// Brings what is reused, and puts what is computed, until the first tokens are there.
    async fn compute(&mut self, sources: &[Source]) -> Result<Vec<Emitted>, StageError> {
        let mut fetched = pin!(fetch(self.store, self.pieces, sources, self.counters.clone()));
        // Pieces that were brought, and those of them that the engine has not taken yet.
        let (mut brought, mut waiting) = (0, 0);
        let mut fetching = None;
        loop {
            let event = tokio::select! {
                Some(put) = self.puts.join_next() => {
                    self.note_put(put)?;
                    continue;
                }
                block = fetched.next(), if fetching.is_some() && waiting < PIECES_IN_MEMORY => {
                    match block {
                        Some(Some(block)) => {
                            self.ticket.bring(brought, block);
                            brought += 1;
                            waiting += 1;
                        }
                        ended => {
                            let begun: Option<Instant> = fetching.take();
                            let took = begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64() * 1e3);
                            self.timings.prefix_get_ms += took;
                            if ended.is_some() {
                                self.ticket.compute_rest();
                                // Others may want what this prompt computes now.
                                let ids: Vec<_> = self.pieces[brought..sources.len()].iter().map(|piece| piece.id).collect();
                                let _ = self.prefix.owned.enter(&ids);
                            }
                        }
                    }
                    continue;
                }
                event = self.ticket.next() => event,
            };
            match event {
                Some(Computed::Started) => {
                    self.started = Some(Instant::now());
                    fetching = (!sources.is_empty()).then(Instant::now);
                }
                Some(Computed::Taken) => waiting -= 1,
                Some(Computed::Piece { piece, block }) => self.begin_put(piece, block)?,
                Some(Computed::FirstTokens { first, reused }) => {
                    self.timings.cached_tokens = reused as u32;
                    return Ok(first);
                }
                Some(Computed::Refused(error)) => return Err(refused(error)),
                Some(Computed::Failed(failed)) => {
                    let (code, message) = match failed {
                        Failed::TooLong(_) => (Code::Internal, failed.to_string()),
                        Failed::Model(error) => (error.code(), format!("prefill failed: {}", causes(&error))),
                    };
                    return Err(StageError::new(Retry::Elsewhere, code, message));
                }
                // The try counts for the prompts that the engine was at, and for no other.
                None if self.started.is_some() => {
                    let message = "the engine's thread ended while it computed the prompt";
                    return Err(StageError::new(Retry::Elsewhere, Code::Internal, message));
                }
                None => return Err(StageError::passing("the engine's thread ended")),
            }
        }
    }

    /// Puts a computed piece, and gives it to those who wait for it.
    fn begin_put(&mut self, piece: usize, block: Block) -> Result<(), StageError> {
        let Some(planned) = self.pieces.get(piece) else {
            return Err(StageError::passing("more KV pieces than planned"));
        };
        let (planned, block) = (planned.clone(), Arc::new(block));
        self.prefix.owned.mark_computed(&planned.id, block.clone());
        self.spawn_put(piece, planned, block);
        Ok(())
    }

    fn spawn_put(&mut self, piece: usize, Piece { id, kind, .. }: Piece, block: Arc<Block>) {
        let (store, span) = (self.store.clone(), info_span!("kv.put", tokens = block.tokens));
        self.puts.spawn(async move { Ok((piece, store.put_piece(&id, kind, block).await?)) }.instrument(span));
    }

    /// Notes what a finished put stored.
    fn note_put(&mut self, put: Result<PutResult, JoinError>) -> Result<(), StageError> {
        let (piece, stored) = put.map_err(StageError::passing)?.map_err(StageError::passing)?;
        self.timings.kv_raw_bytes += stored.raw_bytes;
        self.timings.kv_stored_bytes += stored.stored_bytes;
        self.counters.kv_put(stored.raw_bytes, if stored.created { stored.stored_bytes } else { 0 });
        if let Some(piece) = self.pieces.get(piece) {
            self.prefix.mark_stored(&piece.id);
            self.ticket.mark_stored(piece.range.len());
        }
        Ok(())
    }

    /// Sees to it that what other prompts were about to store is stored.
    async fn confirm(&mut self, sources: Vec<Source>) -> Result<(), StageError> {
        for (piece, source) in sources.into_iter().enumerate() {
            if let Source::InMemory(block, mut chunk) = source
                && !chunk.wait_stored().await
            {
                self.spawn_put(piece, self.pieces[piece].clone(), block);
            }
        }
        while let Some(put) = self.puts.join_next().await {
            self.note_put(put)?;
        }
        Ok(())
    }
}

/// The KV cache of the first pieces in their order, without the prompt's last token; none where it can't be had.
fn fetch<'a>(
    store: &'a KvStore,
    pieces: &'a [Piece],
    sources: &'a [Source],
    counters: Counters,
) -> impl Stream<Item = Option<Arc<Block>>> + 'a {
    let reused = reusable(pieces, sources.len());
    let fetches = pieces.iter().zip(sources).map(move |(piece, source)| {
        let Range { start, end } = piece.range;
        let wanted = end.min(reused) - start;
        let counters = counters.clone();
        async move {
            let block = match source {
                Source::InMemory(block, _) => block.clone(),
                Source::Stored => get_stored(store, piece, &counters).await?,
            };
            Some(if wanted < block.tokens { Arc::new(head(&block, wanted)) } else { block })
        }
    });
    stream::iter(fetches).buffered(PARALLEL_FETCHES)
}

/// Gets a piece, if it can be had.
async fn get_stored(store: &KvStore, piece: &Piece, counters: &Counters) -> Option<Arc<Block>> {
    let tokens = piece.range.len();
    match store.get_piece(&piece.id, piece.kind, tokens).instrument(info_span!("kv.get", tokens)).await {
        Ok(Some(fetched)) => {
            counters.kv_got(fetched.stored_bytes);
            Some(fetched.block)
        }
        Ok(None) => {
            tracing::info!(piece = %piece.id, "a stored prefix was gone; it is computed");
            None
        }
        Err(error) => {
            tracing::warn!(error = %causes(&error), "a stored prefix could not be read; it is computed");
            None
        }
    }
}

/// The first tokens of a block.
pub(crate) fn head(block: &Block, tokens: usize) -> Block {
    let layer = |layer: &Vec<u16>| {
        let (keys, values) = layer.split_at(layer.len() / 2);
        let kept = keys.len() / block.tokens.max(1) * tokens;
        [&keys[..kept], &values[..kept]].concat()
    };
    Block { tokens, layers: block.layers.iter().map(layer).collect() }
}

/// The request's fault, so that no other worker would do better; or this worker's.
pub(crate) fn refused(error: generation::Error) -> StageError {
    let Failure { code, message } = error.failure();
    let retry = if error.may_pass_elsewhere() { Retry::Elsewhere } else { Retry::Never };
    StageError::new(retry, code, message)
}
