//! `baton run` and `baton verify`: the engine in this one process, without broker or store.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context;
use baton_contract::{
    Name,
    job::{Answer, Job},
    outcome::{Outcome, Timings, request_digest},
};
use baton_engine::{
    generation::Generator,
    model::{self, Model, Step},
    source::{self, Vocabulary},
    verify::{self, Report},
};
use clap::ValueEnum;
use tokio::task::spawn_blocking;

use crate::{context, prompts::PromptArguments, submit::print_outcome};

/// Tokens of a prompt that are computed at a time.
const PASS: usize = 256;

#[derive(clap::Args)]
struct EngineArguments {
    /// A GGUF file, a Hugging Face folder or hf:owner/name, perhaps with @revision and /file.gguf; `default` is the model
    /// that `baton setup` brings, `sim` the one without weights
    #[arg(long, short, default_value = "default")]
    model: String,
    /// What to compute on: flex (the CPU) or cuda
    #[arg(long, default_value = "flex")]
    device: String,
    /// CPU threads; 0 takes all cores
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

impl EngineArguments {
    fn model(&self) -> anyhow::Result<baton_topology::Model> {
        baton_topology::Model::from_source(&self.model).with_context(|| {
            format!("expected hf:owner/name, perhaps with @revision and /file.gguf, found {}", self.model)
        })
    }

    async fn load(&self) -> anyhow::Result<(Arc<Vocabulary>, Box<dyn Model>)> {
        baton_engine::use_threads(self.threads)?;
        let model = self.model()?;
        let options = model::Options { device: self.device.clone(), ..model::Options::default() };
        let source = spawn_blocking(move || context::source(&model)).await??;
        let load = move || Ok((Arc::new(source::vocabulary(&source)?), source::load(&source, &options)?));
        let loaded: Result<_, source::Error> = spawn_blocking(load).await?;
        loaded.with_context(|| format!("cannot load model {}", self.model))
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

The same requests give the same tokens as a pipeline with this model.")]
pub struct RunArguments {
    #[command(flatten)]
    prompt: PromptArguments,
    #[command(flatten)]
    engine: EngineArguments,
    /// Print whole results as JSON, one a line
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: RunArguments) -> anyhow::Result<ExitCode> {
    let requests = arguments.prompt.requests(None)?;
    let (vocabulary, mut model) = arguments.engine.load().await?;
    let generator = Generator::new(vocabulary);
    let name = Name::new("local")?;
    let models =
        baton_ingest::Models { generators: BTreeMap::from([(name.clone(), generator.clone())]), default: name.clone() };
    let mut code = ExitCode::SUCCESS;
    for request in requests {
        let arrival = baton_ingest::Arrival {
            id: request.id,
            tenant: name.clone(),
            lane: name.clone(),
            digest: request_digest(&request.body),
            timings: Timings { accepted_at_ms: baton_bus::unix_ms(), ..Timings::default() },
        };
        let job = match baton_ingest::read(&models, &arrival, &request.body).await {
            Ok(job) => job,
            Err(failure) => {
                code = ExitCode::FAILURE;
                print_outcome(&arrival.refused(failure), arguments.json, None, false)?;
                continue;
            }
        };
        let generator = generator.clone();
        let json = arguments.json;
        let answered: anyhow::Result<_> = spawn_blocking(move || {
            let outcome = answer(model.as_mut(), &generator, &job, !json)?;
            Ok((model, outcome))
        })
        .await?;
        let (kept, outcome) = answered?;
        model = kept;
        if outcome.error.is_some() {
            code = ExitCode::FAILURE;
        }
        let shown = (!json).then_some(&outcome.text);
        print_outcome(&outcome, json, shown, false)?;
    }
    Ok(code)
}

/// Answers one job, token by token; prints the text as it comes if asked.
fn answer(model: &mut dyn Model, generator: &Generator, job: &Job, print: bool) -> anyhow::Result<Outcome> {
    let prompt = &job.prompt;
    let sequence = model.open();
    let mut generation = generator.start(job)?;
    let mut answer = Answer::default();
    let mut logits = Vec::new();
    for (index, tokens) in prompt.chunks(PASS).enumerate() {
        let last = usize::from((index + 1) * PASS >= prompt.len());
        logits = model.forward(&[Step { sequence, tokens, logits: last }])?.remove(0);
    }
    let ended = loop {
        let emitted = match generation.next(&logits) {
            Ok(emitted) => emitted,
            Err(error) => break Err(error.failure()),
        };
        if print {
            let mut out = io::stdout().lock();
            write!(out, "{}", emitted.text)?;
            out.flush()?;
        }
        answer.tokens.push(emitted.token);
        answer.text.push_str(&emitted.text);
        answer.logprobs.extend(emitted.logprobs);
        if let Some(reason) = emitted.finish {
            break Ok(reason);
        }
        logits = model.forward(&[Step { sequence, tokens: &[emitted.token], logits: 1 }])?.remove(0);
    };
    model.close(sequence);
    Ok(match ended {
        Ok(reason) => job.completed(answer, reason, Timings::default()),
        Err(failure) => job.failed(failure, answer, Timings::default()),
    })
}

#[derive(clap::Args)]
#[command(after_help = "\
Example:
  baton verify --reference shared/engine/tests/reference/smollm2-chat.jsonl

Each line of the file is a case: id, messages and rendered, or prompt; prompt_tokens; and steps, the reference engine's \
tokens with their log-probabilities. Every step is compared on the reference's own history.")]
pub struct VerifyArguments {
    #[command(flatten)]
    engine: EngineArguments,
    /// JSON-lines file of the reference engine's answers
    #[arg(long, value_name = "FILE")]
    reference: PathBuf,
    /// How to compute: exact is f32 on de-quantized weights
    #[arg(long, value_enum, default_value = "exact")]
    compute: Compute,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Compute {
    Exact,
}

pub async fn verify(arguments: VerifyArguments) -> anyhow::Result<()> {
    let Compute::Exact = arguments.compute;
    let path = arguments.reference.clone();
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let (vocabulary, mut model) = arguments.engine.load().await?;
    let cases = verify::cases(BufReader::new(file));
    let report: Report = spawn_blocking(move || verify::run(&vocabulary, model.as_mut(), cases)).await??;
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    println!("cases                    {}", report.cases);
    println!("steps                    {}", report.steps);
    println!("template mismatches      {}", report.template_mismatches);
    println!("tokenizer mismatches     {}", report.tokenizer_mismatches);
    println!("top-1 agreement          {:.4}", report.top1_agreement);
    println!("clear steps              {} ({} mismatches)", report.clear_steps, report.clear_mismatches);
    println!("mean |log-prob error|    {:.5}", report.mean_abs_logprob_error);
    println!("max |log-prob error|     {:.5}", report.max_abs_logprob_error);
    Ok(())
}
