use std::{convert::Infallible, time::Duration};

use baton_workload::{Arrivals, Draw, Lengths, Named, Shape, arrivals::Rate};
use proptest::prelude::*;

use super::{machine::LOSS, *};
use crate::{
    decide::{Bounds, Switch},
    profile::{Bus, Host, Profile, Store, Transfer},
};

/// An engine of 4,000 prompt tokens a second and 10 ms a step, with a store and a bus on one machine.
fn profile() -> Profile {
    Profile::sim(0.00025, 0.01, 1000.0)
}

/// So many prefill and decode workers of it, as a pipeline has them that says nothing.
pub(crate) fn sim(prefill: usize, decode: usize) -> Options {
    let pool = |workers, slots| Pool { workers, profile: profile(), slots, kv_tokens: 1 << 20, threads: 1 };
    Options {
        prefill: pool(prefill, 8),
        decode: pool(decode, 16),
        ingest_workers: 1,
        batch_tokens: 512,
        chunk_tokens: 256,
        block_tokens: 512,
        store_bytes: None,
        decode_prefills: 0,
        flow: Flow::Planned,
        slo: Slo::default(),
        planner: None,
        cores: None,
    }
}

fn simulated(options: &Options, requests: impl IntoIterator<Item = Drawn>) -> Report {
    run(options, requests.into_iter().map(Ok::<_, Infallible>), |_| {}).unwrap()
}

fn one(at_ms: u64, prompt_tokens: u32, max_tokens: u32, blocks: Vec<u64>) -> Drawn {
    Drawn { at: Duration::from_millis(at_ms), prompt_tokens, max_tokens, blocks }
}

fn load(rate: f64, shape: Shape, count: usize) -> impl Iterator<Item = Drawn> {
    Draw::new(Arrivals::poisson(Rate::new(rate).unwrap()), shape, 5).take(count)
}

/// Within a thousandth, what histograms keep.
fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= expected.abs() * 0.001 + 0.002, "expected {expected}, found {found}");
}

#[test]
fn the_times_of_a_job_that_is_alone_are_the_sum_of_their_parts() {
    let mut options = sim(1, 1);
    for pool in [&mut options.prefill, &mut options.decode] {
        pool.profile.bus = Bus { hop_s: 0.002, ingest_s: 0.003 };
        pool.profile.store = Store { put_s: 0.004, put_s_per_byte: 1e-8, get_s: 0.005, get_s_per_byte: 2e-8 };
        pool.profile.transfer = Transfer { export_s_per_token: 1e-6, import_s_per_token: 2e-6 };
        pool.profile.decode.s_per_context_token = 1e-6;
    }
    let report = simulated(&options, [one(0, 600, 5, Vec::new())]);
    // Two passes of 512 and 88 tokens; the second, of one piece that is completed by it, is put after it: 256 + 88 tokens wait.
    let passes = 600.0 * (0.25 + 0.001);
    let put = 4.0 + 88_000.0 * 1e-5;
    near(report.prefill_latency.max, 2.0 + 3.0 + 2.0 + passes + put);
    let ttft = 2.0 + 3.0 + 2.0 + passes + put + 2.0;
    near(report.ttft.max, ttft);
    // Three chunks in one round of requests, all imported; then four steps over a context that grows.
    let get = 5.0 + 600_000.0 * 2e-5 + 600.0 * 0.002;
    let steps: f64 = (0..4).map(|step| 10.0 + f64::from(601 + step) * 0.001).sum();
    // The first chunk is imported while the others come, so only the rest is seen.
    assert!((report.e2el.max - (ttft + get + steps + 2.0)).abs() < 0.6, "{report:?}");
    near(report.itl.p50, 10.602);
    assert_eq!((report.completed, report.failed, report.decode_prefilled_tokens), (1, 0, 0));
}

#[test]
fn saturated_pools_do_what_their_slower_one_can() {
    let shape = Shape { prompt_tokens: Lengths::Fixed(1000), output_tokens: Lengths::Fixed(101) };
    for (prefill, decode) in [(1, 5), (2, 4), (3, 3), (5, 1)] {
        let options = Options { flow: Flow::Saturated, ..sim(prefill, decode) };
        let report = simulated(&options, load(1.0, shape, 2000));
        // 0.25 s of prefill a job; 16 answers in 1 s.
        let expected = f64::min(prefill as f64 / 0.25, decode as f64 * 16.0);
        assert!((report.request_throughput / expected - 1.0).abs() < 0.05, "{prefill}:{decode}: {report:?}");
        let busy = if prefill as f64 * 4.0 < decode as f64 * 16.0 { report.prefill.busy } else { report.decode.busy };
        assert!(busy > 0.95, "{prefill}:{decode}: {report:?}");
    }
}

#[test]
fn what_others_have_stored_or_compute_is_not_computed_again() {
    let blocks = |last: u64| vec![1, 2, 3, last];
    // The second and third come while the first is computed, on two workers; the last one when all is stored.
    let requests = [
        one(0, 2048, 2, blocks(4)),
        one(1, 2048, 2, blocks(5)),
        one(2, 2048, 2, blocks(6)),
        one(9000, 2048, 2, blocks(4)),
    ];
    let report = simulated(&sim(2, 1), requests.clone());
    // Three blocks twice; then all but the last token, which is wanted for its logits.
    assert_eq!((report.reused * 8192.0).round() as u32, 2 * 1536 + 2047);
    // A store of two blocks.
    let small = simulated(&Options { store_bytes: Some(1_024_000), ..sim(2, 1) }, requests.clone());
    assert!(small.reused < report.reused && small.completed == 4, "{small:?}");
    // The rest of the last is one token, which decode may compute itself.
    let decode = simulated(&Options { decode_prefills: 16, ..sim(2, 1) }, requests);
    assert_eq!(decode.decode_prefilled_tokens, 0, "the one token is part of the first step");
    assert!(decode.completed == 4 && decode.reused > 0.6);
}

#[test]
fn short_prompts_go_straight_to_decode_if_the_pipeline_says_so() {
    let requests = || (0..20).map(|at| one(at * 100, 101, 3, Vec::new()));
    let options = Options { decode_prefills: 128, ..sim(0, 1) };
    let report = simulated(&options, requests());
    assert_eq!((report.completed, report.decode_prefilled_tokens), (20, 2000));
    // Two messages: to ingest, and from there to decode.
    near(report.ttft.p50, 2.0 * 0.4 + 100.0 * 0.25 + 10.0);
}

#[test]
fn a_closed_loop_too_short_for_a_steady_state_is_measured_as_a_whole() {
    let requests = |count| (0..count).map(|_| one(0, 100, 11, Vec::new()));
    let closed = |count| simulated(&Options { flow: Flow::Concurrency(8), ..sim(1, 1) }, requests(count));
    let (short, long) = (closed(8), closed(400));
    // All eight at once: the last waits for the prompts of the others.
    assert!(short.ttft.p50 > 0.0 && short.ttft.max > 4.0 * short.ttft.p50.min(25.0), "{short:?}");
    // One prompt in 25 ms; what comes first and last does not count.
    assert!((long.request_throughput / 40.0 - 1.0).abs() < 0.01, "{long:?}");
}

#[test]
fn what_is_done_beside_the_engines_holds_them_up_where_they_fill_all_cores() {
    let host = Host { cpu_s_per_token: 0.001, ..Host::default() };
    let alone = |cores| {
        let mut options = Options { decode_prefills: 128, flow: Flow::Concurrency(16), cores, ..sim(0, 1) };
        options.decode.profile.host = Some(host);
        simulated(&options, (0..320).map(|_| one(0, 1, 101, Vec::new())))
    };
    // Sixteen tokens a step, each of which takes 1 ms of the only core, of two, or of others.
    assert!((alone(Some(1)).itl.mean - (10.0 + LOSS * 16.0)).abs() < 0.5, "{:?}", alone(Some(1)).itl);
    assert!((alone(Some(2)).itl.mean - 13.4).abs() < 0.5, "{:?}", alone(Some(2)).itl);
    near(alone(Some(3)).itl.p50, 10.0);
    assert_eq!(alone(Some(3)).e2el, alone(None).e2el);
    // Of two engines that compute all the time each loses a half.
    let host = Host { put_cpu_s_per_byte: 1e-7, ..Host::default() };
    let busy = |cores, host| {
        let mut options = Options { flow: Flow::Saturated, cores, ..sim(1, 1) };
        (options.prefill.profile.host, options.decode.profile.host) = (Some(host), Some(host));
        let prompts = (0..400).map(|_| one(0, 1000, 400, Vec::new()));
        simulated(&options, prompts).request_throughput
    };
    // A prompt is a megabyte: 100 ms beside 250 ms that it takes to compute.
    let expected = 250.0 / (250.0 + LOSS * 50.0);
    let lost = busy(Some(2), host) / busy(None, host);
    assert!((lost - expected).abs() < 0.02, "{lost}");
    // To get it takes as long as to put it.
    let host = Host { get_cpu_s_per_byte: host.put_cpu_s_per_byte, ..Host::default() };
    let lost = busy(Some(2), host) / busy(None, host);
    assert!((lost - expected).abs() < 0.02, "{lost}");
}

#[test]
fn a_pass_that_waits_for_its_core_ends_later_though_the_engine_rests_then() {
    let ttft = |cpu_s_per_job| {
        let mut options = Options { cores: Some(1), ..sim(1, 1) };
        options.decode.profile.host = Some(Host { cpu_s_per_job, ..Host::default() });
        simulated(&options, (0..3).map(|at| one(1000 * at, 100, 1, Vec::new()))).ttft
    };
    near(ttft(0.01).p50 - ttft(0.0).p50, LOSS * 10.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_request_ends_once_and_equal_runs_are_equal(
        (prefill, decode) in (1usize..4, 1usize..4),
        (slots, pages, ahead) in (1usize..20, 20usize..200, 0usize..300),
        rate in 1.0..200.0f64,
        (flow, concurrency) in (0usize..3, 1usize..30),
        import in 0.0..1e-4f64,
        (planner, beside, cores) in (any::<bool>(), any::<bool>(), 0usize..2),
    ) {
        let flow = [Flow::Planned, Flow::Saturated, Flow::Concurrency(concurrency)][flow];
        let pools = if planner { planned(prefill, decode) } else { sim(prefill, decode) };
        let cores = beside.then_some(prefill + decode + cores);
        let mut options = Options { flow, decode_prefills: ahead, cores, ..pools };
        let host = Host {
            cpu_s_per_job: 4e-3,
            cpu_s_per_step: 5e-4,
            cpu_s_per_token: 1e-4,
            put_cpu_s_per_byte: 4e-9,
            get_cpu_s_per_byte: 2e-9,
        };
        (options.prefill.profile.host, options.decode.profile.host) = (Some(host), Some(host));
        options.decode.slots = slots;
        (options.prefill.kv_tokens, options.decode.kv_tokens) = (pages * 64, pages * 64);
        options.decode.profile.transfer.import_s_per_token = import;
        options.prefill.profile.store.put_s = 0.01;
        let shape = Named::Mixed.shape();
        let report = simulated(&options, load(rate, shape, 300));
        prop_assert_eq!(report.completed + report.failed, 300, "{:?}", report);
        let longest = 1280 + 320;
        prop_assert!(report.failed == 0 || pages * 64 < longest, "{:?}", report);
        prop_assert_eq!(&report, &simulated(&options, load(rate, shape, 300)));
        if flow == Flow::Planned && report.failed == 0 {
            let tokens: u32 = load(rate, shape, 300).map(|request| request.max_tokens).sum();
            prop_assert!((report.output_throughput * report.duration_s / f64::from(tokens) - 1.0).abs() < 1e-6);
        }
        prop_assert!(report.prefill.busy <= 1.0001 && report.decode.busy <= 1.0001 && report.decode.slots <= 1.0001);
    }
}

fn planned(prefill: usize, decode: usize) -> Options {
    let bounds = Bounds { floor: 1, ceiling: 5 };
    let switch = Switch { drain_s: 1.0, lost_work_s: 0.5 };
    let planner = decide::Options { interval_s: 1.0, prefill: bounds, decode: bounds, switch, profile: None };
    Options { planner: Some(planner), ..sim(prefill, decode) }
}

#[test]
fn with_a_planner_a_load_that_shifts_is_followed_and_no_job_is_lost() {
    let saturated = |options| Options { flow: Flow::Saturated, ..options };
    let phases = || load(1.0, Named::Prompts.shape(), 600).chain(load(1.0, Named::Long.shape(), 8000));
    let report = simulated(&saturated(planned(5, 1)), phases());
    assert_eq!((report.completed, report.failed), (8600, 0));
    let second = |options: &Options| simulated(options, load(1.0, Named::Long.shape(), 8000)).duration_s;
    let first = |options: &Options| simulated(options, load(1.0, Named::Prompts.shape(), 600)).duration_s;
    let best = (1..6).map(|p| second(&saturated(sim(p, 6 - p)))).fold(f64::INFINITY, f64::min);
    let begins = (1..6).map(|p| first(&saturated(sim(p, 6 - p)))).fold(f64::INFINITY, f64::min);
    assert!(report.changes.iter().any(|change| change.to == Role::Decode), "{report:?}");
    // Whatever the shift costs, all of it is seldom more than half a minute of the best split.
    assert!(
        report.duration_s < begins * 1.2 + best + 30.0,
        "{} s, {begins} + {best}: {:?}",
        report.duration_s,
        report.changes
    );
}

#[test]
fn with_a_planner_a_steady_load_comes_to_rest_at_the_best_split() {
    for named in Named::ALL {
        let shape = named.shape();
        let options = Options { flow: Flow::Saturated, ..planned(3, 3) };
        let best = (1..6).max_by(|&a, &b| {
            let throughput = |p: usize| {
                let options = Options { flow: Flow::Saturated, ..sim(p, 6 - p) };
                simulated(&options, load(1.0, shape, 3000)).request_throughput
            };
            throughput(a).total_cmp(&throughput(b))
        });
        let report = simulated(&options, load(1.0, shape, 10_000));
        assert!(report.duration_s > 200.0, "{named}: {report:?}");
        // Near the end no prompts come any more, and decode may get their workers.
        let steady = report.changes.iter().take_while(|change| change.at_s < report.duration_s * 0.9);
        let steady: Vec<_> = steady.collect();
        assert!(steady.iter().all(|change| change.at_s < 60.0), "{named}: {:?}", report.changes);
        let end: usize =
            report.changes.iter().fold(3, |p, change| if change.to == Role::Prefill { p + 1 } else { p - 1 });
        assert!(end.abs_diff(best.unwrap()) <= 1, "{named}: {end} instead of {best:?}: {:?}", report.changes);
    }
}
