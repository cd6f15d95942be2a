//! `baton run` and `baton verify`: the engine in this one process, without broker or store.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::{Context, anyhow, bail};
use baton_measure::{Engine, verify};
use baton_model::{
    model::{self, Compute},
    source::Source,
    verify::Divergence,
};
use baton_worker::alone::Alone;
use tokio::task::spawn_blocking;

use crate::{
    exit::{Exit, Usage},
    output::stdout,
    prompts::PromptArguments,
    submit::print_outcome,
};

/// Which model to compute with, and on what.
#[derive(clap::Args)]
pub struct EngineArguments {
    /// A GGUF file, a Hugging Face folder or hf:owner/name, perhaps with @revision and /file.gguf; `default` is the model
    /// that `baton setup` brings, `sim` the one without weights
    #[arg(long, short, default_value = "default")]
    pub model: String,
    /// What to compute on: flex (the CPU), cuda or wgpu
    #[arg(long, default_value = "flex")]
    pub device: String,
    /// CPU threads; 0 takes all cores
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

impl EngineArguments {
    fn model(&self) -> anyhow::Result<baton_topology::Model> {
        baton_topology::Model::from_source(&self.model).with_context(|| {
            format!("expected hf:owner/name, perhaps with @revision and /file.gguf, found {}", self.model)
        })
    }

    /// Sets this process's compute threads, once, and says where the model lies; brings it first if it is missing.
    pub async fn source(&self) -> anyhow::Result<Source> {
        baton_model::threads::use_threads(self.threads)?;
        let model = self.model()?;
        Ok(spawn_blocking(move || baton_assembly::models::source(&model)).await??)
    }

    /// The model and what computes it.
    pub fn engine(&self) -> Engine {
        Engine { model: self.model.clone(), device: self.device.clone(), threads: self.threads }
    }
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton run 'What is the capital of France?'
  baton run --model model.gguf --raw 'Once upon a time' --max-tokens 50 --temperature 0.8 --seed 7
  baton run 'Name three birds.' --temperature 0.8 --min-p 0.1 --presence-penalty 0.5 --json-schema birds.json
  baton run 'Is water wet?' --regex 'yes|no' --logprobs 5 --json
  baton run --jsonl requests.jsonl --json > results.jsonl

The same requests give the same tokens as a pipeline with this model. Exit code: 3 if a request was not answered.")]
pub struct RunArguments {
    #[command(flatten)]
    prompt: PromptArguments,
    #[command(flatten)]
    engine: EngineArguments,
    /// How to compute: fast (on quantized weights and activations) or exact (in f32 on de-quantized weights)
    #[arg(long, value_name = "MODE", default_value = "fast")]
    compute: Compute,
    /// Print whole results as JSON, one a line
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: RunArguments) -> anyhow::Result<ExitCode> {
    let requests = arguments.prompt.requests(None)?;
    let source = arguments.engine.source().await?;
    let options = model::Options { compute: arguments.compute, ..model::Options::default() };
    let engine = arguments.engine.engine();
    let load = move || anyhow::Ok((engine.vocabulary(&source)?, engine.load(&source, options)?));
    let (vocabulary, model) = spawn_blocking(load).await??;
    let mut alone = Alone::new(vocabulary, model)?;
    let mut completed = true;
    let json = arguments.json;
    for request in requests {
        let show = move |text: &str| {
            let mut out = stdout();
            if json { Ok(()) } else { write!(out, "{text}").and_then(|()| out.flush()) }
        };
        let (kept, outcome) = alone.answer(request.id, &request.body, show).await?;
        alone = kept;
        completed &= outcome.error.is_none();
        let shown = (!json).then_some(&outcome.text);
        print_outcome(&mut stdout(), &outcome, json, shown, false)?;
    }
    Ok(Exit::of_jobs(completed))
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton verify --reference shared/model/tests/reference/smollm2-chat.jsonl
  baton verify --reference shared/model/tests/reference/smollm2-raw.jsonl --compute fast --text README.md book.txt

Each line of the file is a case: id, messages and rendered, or prompt; prompt_tokens; and steps, the reference engine's \
tokens with their log-probabilities. Every step is compared on the reference's own history.

With --compute fast the model is loaded twice, and the fast mode is compared with the exact one at every position of the \
cases: the Kullback-Leibler divergence KL(exact || fast) in nats, and how often the likeliest token is the same.")]
pub struct VerifyArguments {
    #[command(flatten)]
    engine: EngineArguments,
    /// JSON-lines file of the reference engine's answers
    #[arg(long, value_name = "FILE")]
    reference: PathBuf,
    /// How to compute: exact (in f32 on de-quantized weights) or fast (on quantized weights and activations)
    #[arg(long, value_name = "MODE", default_value = "exact")]
    compute: Compute,
    /// With --compute fast: plain texts on which to compare it with exact too, the first 2,048 tokens of each
    #[arg(long, value_name = "FILE", num_args = 1..)]
    text: Vec<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub async fn verify(arguments: VerifyArguments) -> anyhow::Result<()> {
    if arguments.compute == Compute::Exact && !arguments.text.is_empty() {
        bail!(Usage("--text compares fast with exact: add --compute fast".into()));
    }
    let json = arguments.json;
    let options = verify::Options {
        engine: arguments.engine.engine(),
        compute: arguments.compute,
        reference: arguments.reference,
        texts: arguments.text,
        at_ms: baton_bus::unix_ms(),
    };
    let cases = verify::cases(&options)?;
    let source = arguments.engine.source().await?;
    let verified = spawn_blocking(move || verify::verify(&options, &source, &cases)).await??;
    let report = &verified.report;
    let sound = match report.non_finite {
        0 => Ok(()),
        steps => Err(anyhow!(
            "the logits of {steps} of {} steps are infinite or no numbers; fetch or convert the model again, or take \
             another device",
            steps + report.steps
        )),
    };
    if json {
        writeln!(stdout(), "{}", serde_json::to_string(&verified)?)?;
        return sound;
    }
    let mut out = stdout();
    writeln!(out, "cases                    {}", report.cases)?;
    writeln!(out, "steps                    {}", report.steps)?;
    writeln!(out, "not finite               {}", report.non_finite)?;
    writeln!(out, "template mismatches      {}", report.template_mismatches)?;
    writeln!(out, "tokenizer mismatches     {}", report.tokenizer_mismatches)?;
    writeln!(out, "top-1 agreement          {:.4}", report.top1_agreement)?;
    writeln!(out, "clear steps              {} ({} mismatches)", report.clear_steps, report.clear_mismatches)?;
    writeln!(out, "mean |log-prob error|    {:.5}", report.mean_abs_logprob_error)?;
    writeln!(out, "max |log-prob error|     {:.5}", report.max_abs_logprob_error)?;
    let on_cases = verified.divergence.iter().map(|divergence| ("the cases", divergence));
    let on_texts = verified.texts.iter().map(|text| (text.text.as_str(), &text.divergence));
    for (name, Divergence { positions, mean_kl, max_kl, same_top }) in on_cases.chain(on_texts) {
        writeln!(out, "\nfast against exact on {name}")?;
        writeln!(out, "positions                {positions}")?;
        writeln!(out, "mean KL                  {mean_kl:.6}")?;
        writeln!(out, "max KL                   {max_kl:.6}")?;
        writeln!(out, "same likeliest token     {same_top:.4}")?;
    }
    sound
}
