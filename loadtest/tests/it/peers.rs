//! The side-by-side runner with programs that only say what the real ones would.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use baton_loadtest::peers::{self, Error, Measure, Options};

/// Writes down that it was called, and with what; each call of our engine is a round, and slower than the last.
const BATON: &str = r#"
echo "baton $*" >> "$here/log"
round=$(grep -c ^baton "$here/log")
cat <<END
{"model": "m", "load_s": 0.$round, "rss_mib": 150.0, "file_mib": 100.0,
 "prefill_tok_s": 1, "prefill": [{"tokens": 512, "tok_s": ${round}000, "min_tok_s": 1}, {"tokens": 4096, "tok_s": ${round}00}],
 "decode": [{"batch": 1, "tok_s": 150, "step_ms": 7}, {"batch": 32, "tok_s": 900, "step_ms": 40}]}
END
"#;

/// The model b is faster at prompts, a at everything else.
const LLAMA_BENCH: &str = r#"
echo "llama-bench $*" >> "$here/log"
case "$*" in *a.gguf*) prefill=500 decode=100 ;; *) prefill=1000 decode=50 ;; esac
case "$*" in
*"-n 0"*) echo "[{\"n_prompt\": 512, \"n_gen\": 0, \"samples_ts\": [1, $prefill, 9999]},
                 {\"n_prompt\": 4096, \"n_gen\": 0, \"samples_ts\": [$prefill]}]" ;;
*) echo "[{\"n_prompt\": 0, \"n_gen\": 64, \"samples_ts\": [$decode]}]" ;;
esac
"#;

const LLAMA_BATCHED_BENCH: &str = r#"
echo "llama-batched-bench $*" >> "$here/log"
case "$*" in *a.gguf*) speed=300 ;; *) speed=200 ;; esac
echo; echo "{\"pl\": 32, \"speed_tg\": $speed}"; echo
"#;

fn program(directory: &Path, name: &str, script: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\nhere={}\n{script}", directory.display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn options(directory: &Path) -> Options {
    Options {
        llama_bench: program(directory, "llama-bench", LLAMA_BENCH),
        llama_batched_bench: program(directory, "llama-batched-bench", LLAMA_BATCHED_BENCH),
        baton: Some(program(directory, "baton", BATON)),
        model: "ours.gguf".into(),
        peer_models: vec!["/models/a.gguf".into(), "/models/b.gguf".into()],
        threads: 2,
        compute: "fast".into(),
        rounds: 3,
        repeat: 2,
        prefill: vec![512, 4096],
        batch: vec![1, 32],
        generate: 64,
        context: 256,
    }
}

// One test, so that no other thread starts a program while a script is still open for writing: the script could not be
// started then.
#[tokio::test]
async fn engines_are_compared_turn_by_turn() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    engines_take_turns_and_each_measure_has_its_own_best_peer(&options, directory.path()).await;
    programs_that_fail_are_named_with_what_they_say(options, directory.path()).await;
}

async fn engines_take_turns_and_each_measure_has_its_own_best_peer(options: &Options, directory: &Path) {
    let mut turns = Vec::new();
    let report = peers::run(options, |turn| turns.push(format!("{} {}", turn.round, turn.engine))).await.unwrap();

    assert_eq!(turns[..4], ["1 baton", "1 a.gguf", "1 b.gguf", "2 baton"]);
    let log = fs::read_to_string(directory.join("log")).unwrap();
    let log: Vec<&str> = log.lines().collect();
    assert_eq!(log.len(), 3 * (1 + 2 * 3));
    let first_round = [
        "baton bench engine --json --model ours.gguf --compute fast --threads 2 --prefill 512,4096 --batch 1,32 \
         --generate 64 --context 256 --repeat 2",
        "llama-bench -m /models/a.gguf -t 2 -p 512,4096 -n 0 -r 2 -o json",
        "llama-bench -m /models/a.gguf -t 2 -p 0 -n 64 -d 256 -r 2 -o json",
        "llama-batched-bench -m /models/a.gguf -t 2 -c 10240 -npp 256 -ntg 64 -npl 32,32 --output-format jsonl",
    ];
    assert_eq!(log[..4], first_round);
    assert_eq!(log[7], first_round[0], "the second round begins after both peers");

    let found: Vec<_> =
        report.comparisons.iter().map(|it| (it.measure, it.ours.tok_s, it.best.as_str(), it.ratio)).collect();
    let expected = [
        (Measure::Prefill { tokens: 512 }, 2000.0, "b.gguf", 2.0),
        (Measure::Prefill { tokens: 4096 }, 200.0, "b.gguf", 0.2),
        (Measure::Decode { sequences: 1 }, 150.0, "a.gguf", 1.5),
        (Measure::Decode { sequences: 32 }, 900.0, "a.gguf", 3.0),
    ];
    assert_eq!(found, expected);
    assert_eq!(report.comparisons[0].ours.rounds, [1000.0, 2000.0, 3000.0]);
    assert_eq!(report.comparisons[0].peers[0].figure.tok_s, 500.0);
    assert_eq!((report.load_s, report.long_prompt_share, report.rss_to_file), (0.2, Some(0.1), Some(1.5)));
    let text = report.markdown();
    assert!(
        text.contains("| decode, 32 sequences   |  900.0 |             300.0 |             200.0 |         3.00 |\n"),
        "{text}"
    );
    assert_eq!(serde_json::to_value(&report).unwrap()["comparisons"][2]["sequences"], 1);
}

async fn programs_that_fail_are_named_with_what_they_say(mut options: Options, directory: &Path) {
    options.llama_batched_bench = program(directory, "broken", "echo 'out of luck' >&2; exit 3");
    let error = peers::run(&options, |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::Failed { .. }) && error.to_string().ends_with("status: 3: out of luck"), "{error}");

    options.llama_batched_bench = program(directory, "silent", "exit 0");
    let error = peers::run(&options, |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("no figure for decode, 32 sequences"), "{error}");

    options.llama_bench = program(directory, "half", "echo '['");
    let error = peers::run(&options, |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::Output { .. }), "{error}");

    options.baton = Some(directory.join("nowhere"));
    let error = peers::run(&options, |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::Start { .. }), "{error}");
}
