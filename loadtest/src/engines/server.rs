//! An engine's process: started, asked for its figures, killed.

use std::{ffi::OsString, fs::OpenOptions, path::PathBuf, process::Stdio, time::Duration};

use baton_contract::causes;
use baton_load::target::http;
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use tokio::{
    process::Child,
    time::{Instant, sleep},
};

use super::{Error, Ground, Kind, MODEL};
use crate::chaos::broker::free_port;

/// Tokens of a prompt and its answer.
pub(super) const CONTEXT: u32 = 1024;
const START_WITHIN: Duration = Duration::from_secs(900);
const LOOK_EVERY: Duration = Duration::from_millis(200);
const HANDS_OVER: &str = r#"{"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}"#;

/// An engine's place: its port stays whoever has it now.
#[derive(Debug)]
pub(super) struct Engine {
    kind: Kind,
    words: Vec<OsString>,
    environment: Vec<(String, String)>,
    launcher: Vec<OsString>,
    port: u16,
    log: PathBuf,
    http: reqwest::Client,
    child: Option<Child>,
}

impl Ground<'_> {
    /// The engine of a number, which does not run yet. With a core it is bound to that and hands KV caches over (vLLM).
    pub(super) async fn engine(&self, number: usize, core: Option<&str>) -> Result<Engine, Error> {
        let (port, other) = (free_port().await?, free_port().await?);
        let (options, home) = (self.options, &self.home);
        let program = |name: &str| home.programs.join(name).into_os_string();
        let cores = core.or(options.engine_cores.as_deref());
        let mut words: Vec<OsString> = Vec::new();
        if let Some(cores) = cores {
            words.extend(["taskset", "-c", cores].map(OsString::from));
        }
        let mut environment = Vec::new();
        match options.engine {
            Kind::LlamaCpp => {
                let numbers =
                    [u32::from(port), options.slots, options.slots * CONTEXT].map(|number| number.to_string());
                words.extend([program("python"), home.script.clone().into(), home.model.clone().into()]);
                words.extend(numbers.map(OsString::from));
            }
            Kind::Vllm => {
                words.extend([program("python"), "-m".into(), "vllm.entrypoints.openai.api_server".into()]);
                words.extend(["--model".into(), home.model.clone().into(), "--port".into(), port.to_string().into()]);
                let (context, slots) = (CONTEXT.to_string(), options.slots.to_string());
                // Where texts are compared, what runs beside one is not to show in its last bits.
                let numbers = if core.is_some() { "float32" } else { "bfloat16" };
                let more = ["--host", "127.0.0.1", "--served-model-name", MODEL, "--dtype", numbers, "--enforce-eager"];
                let sizes = ["--max-model-len", &context, "--max-num-seqs", &slots, "--disable-uvicorn-access-log"];
                words.extend(more.into_iter().chain(sizes).map(OsString::from));
                if core.is_some() {
                    words.extend(["--kv-transfer-config", HANDS_OVER].map(OsString::from));
                }
                // ninja is there.
                let path = format!("{}:{}", home.programs.display(), std::env::var("PATH").unwrap_or_default());
                let all = std::thread::available_parallelism().map_or(1, |count| count.get());
                let cores = cores.map_or_else(|| format!("0-{}", all - 1), str::to_owned);
                let side = other.to_string();
                let variables = [
                    ("PATH", path.as_str()),
                    ("VLLM_CPU_KVCACHE_SPACE", "1"),
                    ("VLLM_CPU_OMP_THREADS_BIND", &cores),
                    ("HF_HUB_OFFLINE", "1"),
                    ("VLLM_NO_USAGE_STATS", "1"),
                    ("DO_NOT_TRACK", "1"),
                    ("UCX_TLS", "tcp,self,shm"),
                    ("UCX_NET_DEVICES", "lo"),
                    ("VLLM_NIXL_SIDE_CHANNEL_HOST", "127.0.0.1"),
                    ("VLLM_NIXL_SIDE_CHANNEL_PORT", &side),
                ];
                environment.extend(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
            }
        }
        let http = http().timeout(Duration::from_secs(120)).build().map_err(Error::Http)?;
        let log = self.place.join(format!("engine-{number}.log"));
        let launcher = self.program.launcher();
        Ok(Engine { kind: options.engine, words, environment, launcher, port, log, http, child: None })
    }
}

impl Engine {
    /// Where it listens.
    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// Starts it, and waits until it answers.
    pub(super) async fn start(&mut self) -> Result<(), Error> {
        self.launch()?;
        self.wait().await
    }

    /// Waits until it answers.
    pub(super) async fn wait(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + START_WITHIN;
        while !self.is_well().await {
            let ended = self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || Instant::now() > deadline {
                let problem = if ended { "ended by itself" } else { "was not ready in time" };
                return Err(self.failed(problem.into()));
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Starts it, and waits for nothing.
    pub(super) fn launch(&mut self) -> Result<(), Error> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.and_then(|log| Ok((log.try_clone()?, log)));
        let (out, log) = log.map_err(|error| self.failed(format!("has no log: {}", causes(&error))))?;
        let mut words = self.launcher.iter().chain(&self.words);
        let mut command = tokio::process::Command::new(words.next().cloned().unwrap_or_default());
        command.args(words).envs(self.environment.iter().cloned()).process_group(0).kill_on_drop(true);
        // A file of the folder where it starts could hide one of its modules.
        command.current_dir("/").stdin(Stdio::null()).stdout(out).stderr(log);
        let child = command.spawn().map_err(|error| self.failed(format!("did not start: {}", causes(&error))))?;
        self.child = Some(child);
        Ok(())
    }

    fn failed(&self, problem: String) -> Error {
        Error::Engine { engine: self.kind, problem, log: self.log.clone() }
    }

    async fn is_well(&self) -> bool {
        let asked = self.http.get(format!("{}/health", self.url())).timeout(Duration::from_secs(5)).send().await;
        asked.is_ok_and(|response| response.status().is_success())
    }

    /// The sum of a metric over all its labels that contain `label`.
    pub(super) async fn metric(&self, name: &str, label: &str) -> Option<f64> {
        let text = self.http.get(format!("{}/metrics", self.url())).send().await.ok()?.text().await.ok()?;
        let of_it = |line: &&str| line.starts_with(name) && line.contains(label);
        let values = text.lines().filter(of_it).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Some(values.sum())
    }

    /// Ends it and all that it started at once, as a crash would.
    pub(super) async fn kill(&mut self) {
        self.end();
        if let Some(mut child) = self.child.take() {
            let _ = child.wait().await;
        }
    }

    fn end(&self) {
        if let Some(id) = self.child.as_ref().and_then(Child::id) {
            // Fails only for those that have ended.
            let _ = signal::killpg(Pid::from_raw(id as i32), Signal::SIGKILL);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end();
    }
}
