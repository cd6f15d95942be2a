//! What a run came to, under the names that vLLM's benchmark and AIPerf give the same figures.

mod request;
pub(crate) mod steady;

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

pub use request::RequestLine;
pub use steady::Steady;

use crate::{
    Options, Summary,
    record::{End, Record, Stages, milliseconds},
};

/// The figures of one run without its warm-up. submitted = completed + failed + lost.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `bus` or `openai`.
    pub target: &'static str,
    /// The load that was made.
    pub options: Options,
    /// Requests that were sent.
    pub submitted: usize,
    /// Requests that have their answer.
    pub completed: usize,
    /// Requests with a result other than completed (failed, expired, cancelled), and those that could not be submitted.
    pub failed: usize,
    /// Requests without a result within the timeout.
    pub lost: usize,
    /// Why requests failed, by error code, status, or `submit`.
    pub failures: BTreeMap<String, Failures>,
    /// From the first intended send time to the last result, in seconds.
    pub duration_s: f64,
    /// Prompt tokens of the completed requests.
    pub total_input_tokens: u64,
    /// Those of them that were not computed, for their KV cache was there.
    pub total_cached_tokens: u64,
    /// Tokens that were really generated for them.
    pub total_output_tokens: u64,
    /// Completed requests per second.
    pub request_throughput: f64,
    /// Prompt tokens per second.
    pub input_throughput: f64,
    /// Generated tokens per second.
    pub output_throughput: f64,
    /// Prompt and generated tokens per second.
    pub total_token_throughput: f64,
    /// The same without the beginning and the end of the run, where the load was not what was asked for.
    pub steady: Option<Steady>,
    /// The most requests that were under way at a time.
    pub max_concurrency: usize,
    /// Where no SLO was given there is none.
    pub goodput: Option<Goodput>,
    /// Time to first token: from the intended send time to the first live token.
    pub ttft_ms: Option<Summary>,
    /// Time per output token after the first: (e2el - ttft) / (tokens - 1), one sample a request.
    pub tpot_ms: Option<Summary>,
    /// Inter-token latency: between two live tokens of a request, one sample a pair.
    pub itl_ms: Option<Summary>,
    /// End-to-end latency: from the intended send time to the result.
    pub e2el_ms: Option<Summary>,
    /// How late the client itself was: from the intended send time to the real one. Part of every latency above.
    pub send_delay_ms: Option<Summary>,
    /// Where a mean job's time went, if the target tells.
    pub stages_ms: Option<Stages>,
}

/// Requests that completed within all given SLOs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Goodput {
    /// Of all submitted requests, from 0 to 1.
    pub share: f64,
    /// Per second.
    pub rate: f64,
}

/// Requests that failed for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failures {
    /// How many they are.
    pub count: usize,
    /// The message of the first one.
    pub example: String,
}

impl Report {
    /// The times that tables show, by their names.
    pub(crate) fn times(&self) -> [(&'static str, Option<Summary>); 5] {
        [
            ("ttft", self.ttft_ms),
            ("tpot", self.tpot_ms),
            ("itl", self.itl_ms),
            ("e2el", self.e2el_ms),
            ("(send delay)", self.send_delay_ms),
        ]
    }

    /// The figures of `records`, which have all ended and hold no warm-up.
    pub fn new(target: &'static str, options: &Options, records: &[Record], steady: Option<Steady>) -> Self {
        let mut failures: BTreeMap<String, Failures> = BTreeMap::new();
        let (mut completed, mut failed, mut input, mut cached, mut output) = (0, 0, 0, 0, 0);
        let mut last = Duration::ZERO;
        for record in records {
            last = last.max(record.ended().unwrap_or_default());
            match &record.end {
                Some(End::Completed { prompt_tokens, output_tokens, cached_tokens, .. }) => {
                    completed += 1;
                    input += u64::from(*prompt_tokens);
                    cached += u64::from(*cached_tokens);
                    output += u64::from(*output_tokens);
                }
                Some(End::Failed { kind, message, .. }) => {
                    failed += 1;
                    let fresh = || Failures { count: 0, example: message.clone() };
                    failures.entry(kind.clone()).or_insert_with(fresh).count += 1;
                }
                Some(End::Lost) | None => {}
            }
        }
        let first = records.first().map_or(Duration::ZERO, |record| record.planned);
        let duration_s = last.saturating_sub(first).as_secs_f64();
        let per_second = |amount: f64| if duration_s > 0.0 { amount / duration_s } else { 0.0 };
        let goodput = (!options.goodput.is_empty()).then(|| {
            let is_good =
                |record: &&Record| record.e2el().is_some() && options.goodput.iter().all(|bound| bound.holds(record));
            let good = records.iter().filter(is_good).count() as f64;
            Goodput { share: good / records.len().max(1) as f64, rate: per_second(good) }
        });
        let done = || records.iter().filter(|record| record.e2el().is_some());
        Self {
            target,
            options: options.clone(),
            submitted: records.len(),
            completed,
            failed,
            lost: records.len() - completed - failed,
            failures,
            duration_s,
            total_input_tokens: input,
            total_cached_tokens: cached,
            total_output_tokens: output,
            request_throughput: per_second(completed as f64),
            input_throughput: per_second(input as f64),
            output_throughput: per_second(output as f64),
            total_token_throughput: per_second((input + output) as f64),
            steady,
            max_concurrency: steady::concurrency(records).into_iter().map(|(_, count)| count).max().unwrap_or(0),
            goodput,
            ttft_ms: summary(done().filter_map(Record::ttft)),
            tpot_ms: summary(done().filter_map(Record::tpot)),
            itl_ms: summary(done().flat_map(|record| record.gaps.iter().copied())),
            e2el_ms: summary(done().filter_map(Record::e2el)),
            send_delay_ms: summary(
                records.iter().filter_map(|record| Some(record.sent?.saturating_sub(record.planned))),
            ),
            stages_ms: mean_stages(records),
        }
    }
}

fn mean_stages(records: &[Record]) -> Option<Stages> {
    let all: Vec<&Stages> = records.iter().filter_map(Record::stages).collect();
    let mean = |part: fn(&Stages) -> f64| all.iter().map(|stages| part(stages)).sum::<f64>() / all.len() as f64;
    (!all.is_empty()).then(|| Stages {
        queue_ms: mean(|stages| stages.queue_ms),
        prefill_ms: mean(|stages| stages.prefill_ms),
        hand_over_ms: mean(|stages| stages.hand_over_ms),
        decode_ms: mean(|stages| stages.decode_ms),
        total_ms: mean(|stages| stages.total_ms),
    })
}

fn summary(durations: impl Iterator<Item = Duration>) -> Option<Summary> {
    Summary::of(durations.map(milliseconds).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    fn end(at: u64) -> End {
        let stages = Some(Stages { queue_ms: 4.0, total_ms: at as f64, ..Stages::default() });
        End::Completed { at: ms(at), prompt_tokens: 10, output_tokens: 3, cached_tokens: 5, stages }
    }

    fn report(options: &Options, records: &[Record]) -> Report {
        Report::new("bus", options, records, None)
    }

    /// A request of 10 prompt and 3 output tokens.
    fn completed(planned: u64, ttft: u64, e2el: u64) -> Record {
        let mut record = Record::new(ms(planned));
        record.sent = Some(ms(planned + 1));
        record.token(0, ms(planned + ttft));
        record.finish(end(planned + e2el));
        record
    }

    #[test]
    fn goodput_and_throughput_count_what_completed_over_the_whole_window() {
        let mut failed = Record::new(ms(3_000));
        failed.finish(End::Failed { at: ms(3_001), kind: "internal".into(), message: "it broke".into() });
        let mut lost = Record::new(ms(4_000));
        lost.token(0, ms(4_010));
        lost.finish(End::Lost);
        let mut silent = Record::new(ms(2_000));
        silent.finish(end(2_100));
        // Begins at 1 s and ends at 6 s, when the slow one does.
        let records =
            [completed(1_000, 50, 200), silent, failed, lost, completed(4_500, 90, 1_500), completed(5_000, 200, 300)];

        let none = Options::open_loop(1.0, 6).unwrap();
        let report = super::tests::report(&none, &records);
        assert_eq!((report.submitted, report.completed, report.failed, report.lost), (6, 4, 1, 1));
        assert_eq!(report.failures["internal"], Failures { count: 1, example: "it broke".into() });
        assert_eq!(report.duration_s, 5.0);
        assert_eq!((report.request_throughput, report.output_throughput), (0.8, 2.4));
        assert_eq!((report.total_token_throughput, report.total_input_tokens), (10.4, 40));
        assert_eq!(report.goodput, None);
        assert_eq!(report.e2el_ms.unwrap().max, 1_500.0);
        // The lost one is under way to the end.
        assert_eq!((report.total_cached_tokens, report.max_concurrency), (20, 3));
        assert_eq!(report.stages_ms.unwrap().queue_ms, 4.0);
        // The one without a live token and the lost one have no time to first token.
        assert_eq!(report.ttft_ms.unwrap().count, 3);
        assert_eq!(report.tpot_ms.unwrap().max, 705.0);

        let goodput = |bounds: &str| {
            let goodput = bounds.split(' ').map(|bound| bound.parse().unwrap()).collect();
            super::tests::report(&Options { goodput, ..none.clone() }, &records).goodput.unwrap()
        };
        assert_eq!(goodput("ttft:90"), Goodput { share: 2.0 / 6.0, rate: 0.4 });
        assert_eq!(goodput("ttft:90 e2el:300"), Goodput { share: 1.0 / 6.0, rate: 0.2 });
        assert_eq!(goodput("e2el:300"), Goodput { share: 3.0 / 6.0, rate: 0.6 });
        assert_eq!(goodput("tpot:75"), Goodput { share: 2.0 / 6.0, rate: 0.4 });
    }

    #[test]
    fn a_run_without_any_result_has_figures_too() {
        let mut lost = Record::new(ms(10));
        lost.finish(End::Lost);
        let goodput = vec!["e2el:1".parse().unwrap()];
        let options = Options { goodput, ..Options::open_loop(1.0, 1).unwrap() };
        let report = report(&options, &[lost]);
        assert_eq!((report.lost, report.request_throughput, report.e2el_ms), (1, 0.0, None));
        assert_eq!(report.goodput, Some(Goodput { share: 0.0, rate: 0.0 }));
        assert!(serde_json::to_string(&report).unwrap().contains("\"ttft_ms\":null"));
    }
}
