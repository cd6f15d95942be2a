//! The figures of an engine's queue, out of the text that it gives to Prometheus.

use baton_contract::upstream::Engine;

use crate::Instance;

/// Lines of a text that are read: an engine's own are some hundreds.
const LINES: usize = 20_000;

/// What an engine tells of its load: everybody's, not only ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Requests that it works on, if it tells.
    pub(crate) running: Option<usize>,
    /// Requests that wait in it.
    pub(crate) waiting: usize,
}

/// The names of what runs and of what waits.
fn names(engine: Engine) -> Option<(&'static str, &'static str)> {
    match engine {
        Engine::Vllm => Some(("vllm:num_requests_running", "vllm:num_requests_waiting")),
        Engine::Sglang => Some(("sglang:num_running_reqs", "sglang:num_queue_reqs")),
        Engine::LlamaCpp => Some(("llamacpp:requests_processing", "llamacpp:requests_deferred")),
        Engine::OpenAi => None,
    }
}

/// Whether it is known how an engine tells of its queue.
pub(crate) fn has(engine: Engine) -> bool {
    names(engine).is_some()
}

impl Instance {
    /// Whether it tells how many requests wait in it; none if that is not known of such engines.
    pub async fn tells_its_queue(&self) -> Option<bool> {
        names(self.engine())?;
        Some(self.metrics().await.is_ok_and(|text| read(self.engine(), &text).is_some()))
    }
}

/// Reads them; none if the text doesn't tell what waits. An engine's parts (of data parallelism) count together.
pub(crate) fn read(engine: Engine, text: &str) -> Option<Figures> {
    let (running, waiting) = names(engine)?;
    let mut figures = (None, None);
    for line in text.lines().take(LINES) {
        let Some((name, rest)) = line.split_at_checked(line.find(['{', ' ']).unwrap_or(line.len())) else { continue };
        let sum = match name {
            name if name == running => &mut figures.0,
            name if name == waiting => &mut figures.1,
            _ => continue,
        };
        // Behind the labels, whose values may have spaces and braces; a time may follow.
        let behind = rest.rfind('}').map_or(rest, |end| &rest[end + 1..]);
        let value = behind.split_ascii_whitespace().next().and_then(|value| value.parse::<f64>().ok());
        if let Some(value) = value.filter(|value| (0.0..1e9).contains(value)) {
            *sum = Some(sum.unwrap_or(0) + value as usize);
        }
    }
    figures.1.map(|waiting| Figures { running: figures.0, waiting })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VLLM: &str = "\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine=\"0\",model_name=\"Qwen/{x} y\"} 7.0
vllm:num_requests_running{engine=\"1\",model_name=\"Qwen/{x} y\"} 1.0
vllm:num_requests_waiting{engine=\"0\",model_name=\"Qwen\"} 3.0
vllm:num_requests_waiting_by_reason{engine=\"0\",model_name=\"Qwen\",reason=\"capacity\"} 3.0
vllm:kv_cache_usage_perc{engine=\"0\"} 0.25
";

    #[test]
    fn the_figures_of_each_engine_are_found() {
        let both = |running, waiting| Some(Figures { running: Some(running), waiting });
        assert_eq!(read(Engine::Vllm, VLLM), both(8, 3));
        let text =
            "sglang:num_running_reqs{model_name=\"m\"} 12\nsglang:num_queue_reqs{model_name=\"m\"} 0 1700000000\n";
        assert_eq!(read(Engine::Sglang, text), both(12, 0));
        let text = "llamacpp:requests_processing 4\nllamacpp:requests_deferred 28\n";
        assert_eq!(read(Engine::LlamaCpp, text), both(4, 28));
        assert_eq!(read(Engine::LlamaCpp, "llamacpp:requests_deferred 1"), Some(Figures { running: None, waiting: 1 }));
    }

    #[test]
    fn what_tells_no_queue_is_none() {
        assert!(!has(Engine::OpenAi) && has(Engine::Vllm));
        for text in ["", "<html>", "vllm:num_requests_waiting NaN", "vllm:num_requests_waiting -1\nx 3", "{} } {"] {
            assert_eq!(read(Engine::Vllm, text), None, "{text}");
        }
        assert_eq!(read(Engine::Sglang, VLLM), None);
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(text in "(vllm:num_requests_waiting|[ {}\"\n.0-9a-f\u{e9}-]){0,40}") {
            read(Engine::Vllm, &text);
        }
    }
}
