//! `baton bench kv`: what each codec makes of the KV cache of real text: bytes, time, and what the model loses by it.

use std::{
    io::{self, Write as _},
    num::NonZeroUsize,
    path::PathBuf,
};

use anyhow::ensure;
use baton_contract::kv::{Block, Shape};
use baton_engine::{
    model::{self, Compute, Model, SequenceId, Step},
    source::Source,
    verify::{self, Continuation},
};
use baton_storage::{ChunkId, Codec, chunk};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::{task::spawn_blocking, time::Instant};

use super::{
    engine::{fits, kv_bytes, name_of},
    machine::Cpu,
    runs::Runs,
};
use crate::{
    local::{self, EngineArguments},
    output::stdout,
    table,
};

/// Tokens of a chunk, as pipelines have it when nothing else is said.
const CHUNK: usize = 256;

/// Tokens of the prompt that are computed at a time.
const PASS: usize = 512;

/// The chunks' name, which matters to nobody here.
const ID: ChunkId = ChunkId([0; 32]);

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton bench kv --text book.txt
  baton bench kv --text book.txt --text licence.txt --codec lossless,near --prompt 1024 --json

The first --prompt tokens of the text are prefilled and their KV cache is cut into chunks of 256 tokens, as a pipeline does. \
Ratios are bf16 bytes by bytes of whole chunks, headers and checksums included; that of K is measured on chunks whose V is \
replaced by ones and minus ones, less what these take, and that of V likewise. Speeds are of packing and unpacking all chunks one after another on one thread, \
checksums included, in 10^6 bf16 bytes a second: the median of --repeat runs, after one to warm up.

Then the model reads the text's next tokens twice, with the exact KV cache of the prompt and with the one that was packed and \
unpacked, and expects --next tokens that follow: the mean and greatest Kullback-Leibler divergence KL(exact || codec) in \
nats, how often the likeliest token is the same, and the perplexity of the text's own tokens. In fast mode the least change \
of the KV cache makes activations round otherwise, which drowns what a codec does: so exact is the default here. The text \
must have --prompt and --next tokens and one more.")]
pub struct Arguments {
    #[command(flatten)]
    engine: EngineArguments,
    /// How to compute: exact (in f32 on de-quantized weights) or fast (on quantized weights and activations)
    #[arg(long, value_name = "MODE", default_value = "exact")]
    compute: Compute,
    /// Plain texts, each measured by itself
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    text: Vec<PathBuf>,
    /// The codecs to measure
    #[arg(long, value_name = "CODEC", value_delimiter = ',', default_values_t = Codec::ALL)]
    codec: Vec<Codec>,
    /// Tokens of the text whose KV cache is packed
    #[arg(long, value_name = "TOKENS", default_value = "2048")]
    prompt: NonZeroUsize,
    /// Tokens after them that the model must expect
    #[arg(long, value_name = "TOKENS", default_value = "128")]
    next: NonZeroUsize,
    /// How often all chunks are packed, and unpacked
    #[arg(long, value_name = "TIMES", default_value = "5")]
    repeat: NonZeroUsize,
    /// Print one JSON object for each text and codec, one a line
    #[arg(long)]
    json: bool,
}

/// One codec on one text.
#[derive(Serialize)]
struct Report {
    /// The model as it was named, and as its file does.
    model: String,
    name: String,
    compute: &'static str,
    device: String,
    cpu: Cpu,
    repeat: usize,
    text: String,
    prompt_tokens: usize,
    chunk_tokens: usize,
    codec: String,
    #[serde(flatten)]
    size: Size,
    encode: Speed,
    decode: Speed,
    #[serde(flatten)]
    quality: Continuation,
}

/// What a prompt's KV cache takes.
#[derive(Clone, Copy, Debug, Serialize)]
struct Size {
    /// In bf16.
    raw_bytes: usize,
    /// In chunks.
    stored_bytes: usize,
    /// The former by the latter: of all, and of K and V alone.
    ratio: f64,
    k_ratio: f64,
    v_ratio: f64,
}

/// 10^6 bf16 bytes a second in several runs.
#[derive(Clone, Copy, Debug, Serialize)]
struct Speed {
    /// The median.
    mb_s: f64,
    min_mb_s: f64,
    max_mb_s: f64,
}

impl Speed {
    /// Of runs over `bytes` bytes each; `seconds` holds at least one.
    fn of(bytes: usize, seconds: Vec<f64>) -> Speed {
        let Runs { median, least, most } = Runs::of(seconds);
        let mb_s = |seconds: f64| bytes as f64 / 1e6 / seconds;
        Speed { mb_s: mb_s(median), min_mb_s: mb_s(most), max_mb_s: mb_s(least) }
    }
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let source = arguments.engine.source().await?;
    let json = arguments.json;
    let reports = spawn_blocking(move || measure(&arguments, &source)).await??;
    if json {
        for report in &reports {
            writeln!(stdout(), "{}", serde_json::to_string(report)?)?;
        }
    } else {
        print(&reports)?;
    }
    Ok(())
}

/// All codecs on the first text, then on the next.
fn measure(arguments: &Arguments, source: &Source) -> anyhow::Result<Vec<Report>> {
    let Arguments { engine, compute, codec: codecs, .. } = arguments;
    let (prompt, next, repeat) = (arguments.prompt.get(), arguments.next.get(), arguments.repeat.get());
    let vocabulary = engine.vocabulary(source)?;
    let spec = vocabulary.spec();
    // The last token of the text is only expected, never read.
    let (read, needed) = (prompt.saturating_add(next), prompt.saturating_add(next).saturating_add(1));
    fits(spec, &[needed], "--prompt and --next together")?;
    let mut texts = Vec::new();
    for path in &arguments.text {
        let (tokens, name) = (local::text_tokens(&vocabulary, path, needed)?, path.display().to_string());
        let found = tokens.len();
        ensure!(
            found == needed,
            "{name} must have {needed} tokens for --prompt and --next, found {found}; ask for fewer"
        );
        texts.push((name, tokens));
    }

    let bar = ProgressBar::new((texts.len() * (codecs.len() + 1)) as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg}  {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message("loading");
    let kv_bytes = kv_bytes(&spec.kv, &[], &[2], read);
    let mut model = engine.load(source, model::Options { compute: *compute, kv_bytes, ..model::Options::default() })?;
    let model = model.as_mut();
    let mut reports = Vec::new();
    for (text, tokens) in texts {
        bar.set_message(format!("prefill of {text}"));
        let exact = prefill(model, &tokens[..prompt])?;
        bar.inc(1);
        for &codec in codecs {
            bar.set_message(format!("{codec} on {text}"));
            let measured = Measured::of(codec, &exact, &spec.kv, repeat)?;
            reports.push(Report {
                model: engine.model.clone(),
                name: spec.name.clone(),
                compute: name_of(*compute),
                device: engine.device.clone(),
                cpu: Cpu::of_this_machine(),
                repeat,
                text: text.clone(),
                prompt_tokens: prompt,
                chunk_tokens: CHUNK,
                codec: codec.to_string(),
                size: measured.size,
                encode: measured.encode,
                decode: measured.decode,
                quality: quality(model, &tokens, &exact, &measured.unpacked)?,
            });
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
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

fn print(reports: &[Report]) -> io::Result<()> {
    let mut out = stdout();
    for (index, reports) in reports.chunk_by(|a, b| a.text == b.text).enumerate() {
        let Report { model, name, compute, device, text, prompt_tokens, quality, size, .. } = &reports[0];
        if index > 0 {
            writeln!(out)?;
        }
        writeln!(out, "{name} ({model}), {compute} on {device}")?;
        let raw = table::bytes(size.raw_bytes as u64);
        let (next, perplexity) = (quality.divergence.positions, quality.exact_perplexity);
        writeln!(
            out,
            "{text}: KV cache of {prompt_tokens} tokens, {raw} in bf16; perplexity {perplexity:.3} over the next {next}\n"
        )?;
        let headings = [
            "codec",
            "ratio",
            "K",
            "V",
            "in MB/s",
            "out MB/s",
            "mean KL",
            "max KL",
            "same top",
            "perplexity",
            "change",
        ];
        let rows: Vec<_> = reports.iter().map(row).collect();
        write!(out, "{}", table::render(&headings, &rows))?;
    }
    let repeat = reports.first().map_or(0, |report| report.repeat);
    writeln!(out, "\nspeeds on one core, the median of {repeat} runs; KL(exact || codec) in nats")?;
    Ok(())
}

fn row(report: &Report) -> Vec<String> {
    let Report { codec, size, encode, decode, quality, .. } = report;
    let Continuation { divergence, exact_perplexity, perplexity } = quality;
    vec![
        codec.clone(),
        format!("{:.3}", size.ratio),
        format!("{:.3}", size.k_ratio),
        format!("{:.3}", size.v_ratio),
        format!("{:.0}", encode.mb_s),
        format!("{:.0}", decode.mb_s),
        format!("{:.6}", divergence.mean_kl),
        format!("{:.6}", divergence.max_kl),
        format!("{:.1} %", divergence.same_top * 100.0),
        format!("{perplexity:.3}"),
        format!("{:+.2} %", (perplexity / exact_perplexity - 1.0) * 100.0),
    ]
}
