use baton_contract::{Name, stats::Queue};

use super::*;

fn worker(stage: Stage, name: &str, started_ms: u64, at_ms: u64, jobs: u64) -> Worker {
    Worker {
        worker: name.into(),
        stage,
        roles: vec![Stage::Prefill, Stage::Decode],
        models: Vec::new(),
        started_ms,
        at_ms,
        draining: false,
        ended: false,
        slots: 8,
        busy: 4,
        counts: Counts {
            jobs_done: jobs,
            prompt_tokens: jobs * 100,
            cached_tokens: jobs * 25,
            completion_tokens: jobs * 10,
            ..Counts::default()
        },
        compute_ms: jobs * 50,
        engine_batch: 1,
        upstreams: Vec::new(),
        version: String::new(),
    }
}

fn snapshot(workers: Vec<Worker>, waiting: u64) -> Snapshot {
    let queue = |stage| Queue { stage, model: None, lane: Name::new("batch").unwrap(), waiting, delivered: 1 };
    Snapshot { workers, queues: vec![queue(Stage::Prefill), queue(Stage::Decode)], ..Snapshot::default() }
}

#[test]
fn late_words_lose_nothing_and_new_workers_count_from_their_start() {
    let (prefill, decode, ingest) = (Stage::Prefill, Stage::Decode, Stage::Ingest);
    let mut observer = Observer::default();
    let before =
        vec![worker(ingest, "i", 1, 1_000, 500), worker(prefill, "a", 1, 1_000, 100), worker(decode, "b", 1, 1_000, 7)];
    assert_eq!(observer.observe(&snapshot(before, 0), 10.0, None), None, "what was done before is nobody's news");
    // One second later nobody has said anything new; another second later all have, and one has begun.
    let silent =
        vec![worker(ingest, "i", 1, 1_000, 500), worker(prefill, "a", 1, 1_000, 100), worker(decode, "b", 1, 1_000, 7)];
    let first = observer.observe(&snapshot(silent, 3), 11.0, None).unwrap();
    assert_eq!((first.arrivals_per_s, first.prefill.done_per_s, first.prefill.waiting), (0.0, 0.0, 3));
    let later = vec![
        worker(ingest, "i", 1, 3_000, 540),
        worker(prefill, "a", 1, 3_000, 110),
        worker(prefill, "c", 2_000, 3_000, 4),
        worker(prefill, "d", 1, 60_000, 9_999),
        worker(decode, "b", 1, 3_000, 17),
    ];
    let second = observer.observe(&snapshot(later, 5), 13.0, None).unwrap();
    assert_eq!((second.at_s, second.window_s, second.arrivals_per_s), (13.0, 2.0, 20.0));
    assert_eq!((second.prefill.workers, second.prefill.done_per_s), (3, 7.0), "d was only silent for a while");
    assert_eq!((second.prompt_tokens_per_s, second.output_tokens_per_s), (7.0 * 75.0, 50.0));
    assert_eq!(second.prefill.busy, 0.7 / 6.0, "0.7 s of three workers in 2 s");
    assert_eq!((second.decode.busy, second.decode.done_per_s), (0.5, 5.0));
}

#[test]
fn who_changes_counts_to_what_it_becomes_and_who_leaves_to_nothing() {
    let mut observer = Observer::default();
    let leaving = Worker { draining: true, ..worker(Stage::Decode, "leaves", 1, 2_000, 0) };
    let workers = vec![worker(Stage::Prefill, "a", 1, 2_000, 0), worker(Stage::Decode, "b", 1, 2_000, 0), leaving];
    let seen = snapshot(workers, 2);
    observer.observe(&seen, 0.0, None);
    let counts = |seen: Statistics| (seen.prefill.workers, seen.decode.workers);
    assert_eq!(observer.observe(&seen, 1.0, None).map(counts), Some((1, 1)));
    assert_eq!(observer.observe(&seen, 2.0, Some(("a", Role::Decode))).map(counts), Some((0, 2)));
    // It is between its roles, and says nothing.
    let gone = snapshot(vec![worker(Stage::Decode, "b", 1, 2_000, 0)], 2);
    assert_eq!(observer.observe(&gone, 3.0, Some(("a", Role::Decode))).map(counts), Some((0, 2)));
}

#[test]
fn the_idlest_that_may_is_asked() {
    let busy = |name: &str, busy| Worker { busy, ..worker(Stage::Decode, name, 1, 2_000, 0) };
    let fixed = Worker { roles: vec![Stage::Decode], ..busy("fixed", 0) };
    let draining = Worker { draining: true, ..busy("draining", 0) };
    let seen = snapshot(vec![busy("a", 5), busy("c", 2), busy("b", 2), fixed, draining], 0);
    assert_eq!(candidate(&seen, Role::Prefill).map(|worker| worker.worker.as_str()), Some("b"));
    assert_eq!(candidate(&seen, Role::Decode).map(|worker| worker.worker.as_str()), None);
}
