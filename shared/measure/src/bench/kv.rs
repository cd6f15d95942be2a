//! What each codec makes of the KV cache of real text: bytes, time, and what the model loses by it.

use std::path::PathBuf;

use baton_contract::kv::{Block, Shape};
use baton_model::{
    model::{self, Compute, Model, SequenceId, Step},
    source::Source,
    verify::{self, Continuation},
};
use baton_storage::{ChunkId, Codec, chunk};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    bench::sequence::kv_bytes,
    engine::{Engine, fits, name_of, text_tokens},
    error::Error,
    machine::Cpu,
    progress::Steps,
    runs::Runs,
};

/// Tokens of a chunk, as pipelines have it when nothing else is said.
const CHUNK: usize = 256;

/// Tokens of the prompt that are computed at a time.
const PASS: usize = 512;

/// The chunks' name, which matters to nobody here.
const ID: ChunkId = ChunkId([0; 32]);

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model, and what computes it.
    pub engine: Engine,
    /// How it computes.
    pub compute: Compute,
    /// Plain texts, each measured by itself.
    pub texts: Vec<PathBuf>,
    /// The codecs to measure.
    pub codecs: Vec<Codec>,
    /// Tokens of the text whose KV cache is packed.
    pub prompt: usize,
    /// Tokens after them that the model must expect.
    pub next: usize,
    /// How often all chunks are packed, and unpacked.
    pub repeat: usize,
}

/// One codec on one text.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The model as it was named.
    pub model: String,
    /// The model as its file names it.
    pub name: String,
    /// `exact` or `fast`.
    pub compute: &'static str,
    /// What computed it.
    pub device: String,
    /// This machine's processor.
    pub cpu: Cpu,
    /// Runs of every measure.
    pub repeat: usize,
    /// The text's file.
    pub text: String,
    /// Tokens whose KV cache was packed.
    pub prompt_tokens: usize,
    /// Tokens of a chunk.
    pub chunk_tokens: usize,
    /// The codec.
    pub codec: String,
    /// What the KV cache took.
    #[serde(flatten)]
    pub size: Size,
    /// How fast chunks were packed.
    pub encode: Speed,
    /// How fast they were unpacked.
    pub decode: Speed,
    /// What the model lost.
    #[serde(flatten)]
    pub quality: Continuation,
}

/// What a prompt's KV cache takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Size {
    /// In bf16.
    pub raw_bytes: usize,
    /// In chunks.
    pub stored_bytes: usize,
    /// The former by the latter.
    pub ratio: f64,
    /// The same of K alone.
    pub k_ratio: f64,
    /// The same of V alone.
    pub v_ratio: f64,
}

/// 10^6 bf16 bytes a second in several runs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Speed {
    /// The median.
    pub mb_s: f64,
    /// The slowest run's.
    pub min_mb_s: f64,
    /// The fastest run's.
    pub max_mb_s: f64,
}

impl Speed {
    /// Of runs over `bytes` bytes each; `seconds` holds at least one.
    fn of(bytes: usize, seconds: Vec<f64>) -> Speed {
        let Runs { median, least, most } = Runs::of(seconds);
        let mb_s = |seconds: f64| bytes as f64 / 1e6 / seconds;
        Speed { mb_s: mb_s(median), min_mb_s: mb_s(most), max_mb_s: mb_s(least) }
    }
}

/// All codecs on the first text, then on the next. Blocks.
///
/// # Errors
///
/// If the model can't be loaded, or a text has too few tokens.
pub fn measure(options: &Options, source: &Source, steps: &mut Steps) -> Result<Vec<Report>, Error> {
    let Options { engine, compute, texts, codecs, prompt, next, repeat } = options;
    let vocabulary = engine.vocabulary(source)?;
    let spec = vocabulary.spec();
    // The last token of the text is only expected, never read.
    let (read, needed) = (prompt.saturating_add(*next), prompt.saturating_add(*next).saturating_add(1));
    fits(spec, &[needed], "--prompt and --next together")?;
    let mut read_texts = Vec::new();
    for path in texts {
        let (tokens, name) = (text_tokens(&vocabulary, path, needed)?, path.display().to_string());
        if tokens.len() != needed {
            return Err(Error::ShortText { name, needed, found: tokens.len() });
        }
        read_texts.push((name, tokens));
    }

    steps.total(texts.len() * (codecs.len() + 1));
    steps.doing("loading");
    let kv_bytes = kv_bytes(&spec.kv, &[], &[2], read);
    let mut model = engine.load(source, model::Options { compute: *compute, kv_bytes, ..model::Options::default() })?;
    let model = model.as_mut();
    let mut reports = Vec::new();
    for (text, tokens) in read_texts {
        steps.doing(format!("prefill of {text}"));
        let exact = prefill(model, &tokens[..*prompt])?;
        steps.done();
        for &codec in codecs {
            steps.doing(format!("{codec} on {text}"));
            let measured = Measured::of(codec, &exact, &spec.kv, *repeat)?;
            reports.push(Report {
                model: engine.model.clone(),
                name: spec.name.clone(),
                compute: name_of(*compute),
                device: engine.device.clone(),
                cpu: Cpu::of_this_machine(),
                repeat: *repeat,
                text: text.clone(),
                prompt_tokens: *prompt,
                chunk_tokens: CHUNK,
                codec: codec.to_string(),
                size: measured.size,
                encode: measured.encode,
                decode: measured.decode,
                quality: quality(model, &tokens, &exact, &measured.unpacked)?,
            });
            steps.done();
        }
    }
    Ok(reports)
}

/// The KV cache of a prompt in chunks, as the model computes it.
fn prefill(model: &mut dyn Model, prompt: &[u32]) -> Result<Vec<Block>, model::Error> {
    let sequence = model.open();
    for tokens in prompt.chunks(PASS) {
        model.forward(&[Step { sequence, tokens, logits: 0 }])?;
    }
    let starts = (0..prompt.len()).step_by(CHUNK);
    let blocks = starts.map(|start| model.export(sequence, start..(start + CHUNK).min(prompt.len()))).collect();
    model.close(sequence);
    blocks
}

/// What a codec makes of a prompt's KV cache.
struct Measured {
    size: Size,
    encode: Speed,
    decode: Speed,
    unpacked: Vec<Block>,
}

impl Measured {
    fn of(codec: Codec, blocks: &[Block], shape: &Shape, repeat: usize) -> Result<Measured, chunk::Error> {
        let pack = |block: &Block| chunk::encode(block, shape, codec, &ID);
        let raw_bytes = blocks.iter().map(|block| shape.bytes(block.tokens)).sum();
        let (packed, encode) = timed(raw_bytes, repeat, || blocks.iter().map(pack).collect::<Result<Vec<_>, _>>())?;
        let (unpacked, decode) = timed(raw_bytes, repeat, || {
            let chunks = packed.iter().zip(blocks);
            chunks.map(|(bytes, block)| chunk::decode(bytes, shape, block.tokens, &ID)).collect::<Result<Vec<_>, _>>()
        })?;

        let stored_bytes = packed.iter().map(|chunk| chunk.len()).sum();
        // Both halves are plain, then one of them: what that half takes, with half of the header.
        let packed_len = |k, v| -> Result<f64, chunk::Error> {
            let lens = blocks.iter().map(|block| Ok(pack(&block_of(block, k, v))?.len()));
            Ok(lens.sum::<Result<usize, chunk::Error>>()? as f64)
        };
        let plain = packed_len(Half::Plain, Half::Plain)? / 2.0;
        let half_ratio = |len: f64| raw_bytes as f64 / 2.0 / (len - plain);
        let ratio = raw_bytes as f64 / stored_bytes as f64;
        let k_ratio = half_ratio(packed_len(Half::Own, Half::Plain)?);
        let v_ratio = half_ratio(packed_len(Half::Plain, Half::Own)?);
        let size = Size { raw_bytes, stored_bytes, ratio, k_ratio, v_ratio };
        Ok(Measured { size, encode, decode, unpacked })
    }
}

/// What a half of each layer holds, K or V.
#[derive(Clone, Copy)]
enum Half {
    Own,
    /// Ones, minus ones in every other token: next to nothing to any codec that packs, and the same in K and V.
    Plain,
}

/// A block with other values for K or V, so that what one of them takes can be told without the codecs' help.
fn block_of(block: &Block, k: Half, v: Half) -> Block {
    const ONE: u16 = 0x3f80;
    const MINUS_ONE: u16 = 0xbf80;
    let half = |own: &[u16], half| match half {
        Half::Own => own.to_vec(),
        Half::Plain => {
            let width = own.len() / block.tokens;
            (0..own.len()).map(|at| if (at / width).is_multiple_of(2) { ONE } else { MINUS_ONE }).collect()
        }
    };
    let layers = block.layers.iter().map(|layer| {
        let (own_k, own_v) = layer.split_at(layer.len() / 2);
        [half(own_k, k), half(own_v, v)].concat()
    });
    Block { tokens: block.tokens, layers: layers.collect() }
}

/// Does the same once to warm up and then as often as asked; the last result, and how fast `bytes` bytes went through.
fn timed<T, E>(bytes: usize, repeat: usize, mut work: impl FnMut() -> Result<T, E>) -> Result<(T, Speed), E> {
    let mut result = work()?;
    let mut seconds = Vec::new();
    for _ in 0..repeat {
        // What the last run left is dropped before the clock starts.
        drop(result);
        let started = Instant::now();
        result = work()?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    Ok((result, Speed::of(bytes, seconds)))
}

/// What the model expects after the prompt, with its KV cache as it was computed and as it was unpacked.
fn quality(
    model: &mut dyn Model,
    tokens: &[u32],
    exact: &[Block],
    unpacked: &[Block],
) -> Result<Continuation, model::Error> {
    let sequences = [model.open(), model.open()];
    let mut compare = || {
        import(model, sequences[0], tokens, exact)?;
        let next = import(model, sequences[1], tokens, unpacked)?;
        verify::continuation(model, sequences[0], sequences[1], next)
    };
    let compared = compare();
    sequences.into_iter().for_each(|sequence| model.close(sequence));
    compared
}

/// Gives a sequence the KV cache of the first tokens; the tokens after them.
fn import<'t>(
    model: &mut dyn Model,
    sequence: SequenceId,
    mut tokens: &'t [u32],
    blocks: &[Block],
) -> Result<&'t [u32], model::Error> {
    for block in blocks {
        let (now, later) = tokens.split_at(block.tokens);
        model.import(sequence, now, block)?;
        tokens = later;
    }
    Ok(tokens)
}
