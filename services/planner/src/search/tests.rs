use std::convert::Infallible;

use baton_workload::{Arrivals, Draw, Named, arrivals::Rate};

use super::*;
use crate::simulate::tests::sim;

fn search(named: Named, goal: Goal, slo: Slo, prefill: f64) -> (Vec<Candidate>, Recommendation) {
    let flow = if goal == Goal::ClosedLoop { Flow::Concurrency(64) } else { Flow::Planned };
    let options = simulate::Options { slo, flow, ..sim(1, 1) };
    let requests = |rate: Option<f64>| {
        let arrivals = Arrivals::poisson(Rate::new(rate.unwrap_or(5.0)).unwrap());
        Ok::<_, Infallible>(Draw::new(arrivals, named.shape(), 1).take(2000).map(Ok))
    };
    let prices = Prices { prefill, decode: 1.0 };
    let search = Search { options: &options, goal, prices, requests };
    let candidates = search.run(&Split::of(6), || {}).unwrap();
    let recommendation = recommend(&candidates, goal).unwrap();
    (candidates, recommendation)
}

#[test]
fn the_more_is_generated_the_more_decode_is_recommended() {
    let splits = Named::ALL.map(|named| {
        let (candidates, best) = search(named, Goal::Saturated, Slo::default(), 1.0);
        // Throughput rises up to the best split and falls after it, but for what the run's ends add.
        let throughput: Vec<f64> = candidates.iter().map(|it| it.report.request_throughput).collect();
        assert!(throughput[best.split.prefill - 1] >= throughput.iter().fold(0.0, |a: f64, b| a.max(*b)) * 0.99);
        best.split.prefill
    });
    assert!(splits.is_sorted() && splits[0] < splits[2], "{splits:?}");
}

#[test]
fn with_an_slo_the_highest_rate_is_found_and_kept_to() {
    let slo = Slo { ttft_s: Some(1.0), itl_s: Some(0.2) };
    let (candidates, best) = search(Named::Mixed, Goal::HighestRate, slo, 1.0);
    let (saturated, _) = search(Named::Mixed, Goal::Saturated, slo, 1.0);
    for (found, most) in candidates.iter().zip(&saturated) {
        assert!(found.rate.unwrap() <= most.report.request_throughput);
        assert!(!found.meets_slo || (found.report.ttft.p99 <= 1000.0 && found.report.itl.p99 <= 200.0));
    }
    assert!(candidates.iter().any(|it| it.split == best.split && it.meets_slo), "{}", best.why);
}

#[test]
fn at_a_rate_the_cheapest_that_meets_the_slo_is_recommended() {
    let slo = Slo { ttft_s: Some(20.0), itl_s: Some(1.0) };
    let (candidates, best) = search(Named::Mixed, Goal::Given, slo, 2.0);
    let meeting: Vec<_> = candidates.iter().filter(|it| it.meets_slo).collect();
    assert!(!meeting.is_empty());
    let cheapest = meeting.iter().map(|it| it.cost_per_hour).fold(f64::INFINITY, f64::min);
    let taken = candidates.iter().find(|it| it.split == best.split).unwrap();
    assert!(taken.meets_slo && taken.cost_per_hour == cheapest, "{}", best.why);
    let (_, none) = search(Named::Mixed, Goal::Given, Slo { ttft_s: Some(1e-6), itl_s: None }, 2.0);
    assert!(none.why.starts_with("no split meets the SLO; "), "{}", none.why);
}

#[test]
fn in_a_closed_loop_the_split_that_does_most_is_recommended() {
    let slo = Slo { ttft_s: None, itl_s: Some(1.0) };
    let (candidates, best) = search(Named::Prompts, Goal::ClosedLoop, slo, 1.0);
    let most = candidates.iter().map(|it| it.report.request_throughput).fold(0.0, f64::max);
    let taken = candidates.iter().find(|it| it.split == best.split).unwrap();
    assert!(taken.meets_slo && taken.report.request_throughput >= most * (1.0 - TIE), "{}", best.why);
    let (_, none) = search(Named::Prompts, Goal::ClosedLoop, Slo { ttft_s: Some(1e-6), itl_s: None }, 1.0);
    assert!(none.why.starts_with("no split meets the SLO; "), "{}", none.why);
}
