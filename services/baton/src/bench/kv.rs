//! `baton bench kv`: what each codec makes of the KV cache of real text: bytes, time, and what the model loses by it.

use std::{
    io::{self, Write as _},
    num::NonZeroUsize,
    path::PathBuf,
};

use baton_measure::bench::kv::{self, Options, Report};
use baton_model::{model::Compute, verify::Continuation};
use baton_storage::Codec;
use baton_terminal::table;
use tokio::task::spawn_blocking;

use crate::{local::EngineArguments, measuring, output::stdout};

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

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let source = arguments.engine.source().await?;
    let options = Options {
        engine: arguments.engine.engine(),
        compute: arguments.compute,
        texts: arguments.text,
        codecs: arguments.codec,
        prompt: arguments.prompt.into(),
        next: arguments.next.into(),
        repeat: arguments.repeat.into(),
    };
    let (bar, mut steps) = measuring::bar("{bar:30} {msg}  {elapsed}");
    let reports = spawn_blocking(move || kv::measure(&options, &source, &mut steps)).await??;
    bar.finish_and_clear();
    if arguments.json {
        for report in &reports {
            writeln!(stdout(), "{}", serde_json::to_string(report)?)?;
        }
    } else {
        print(&reports)?;
    }
    Ok(())
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
