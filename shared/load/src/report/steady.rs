//! The part of a run in which the load was what was asked for.

use std::time::Duration;

use serde::Serialize;

use crate::{Options, record::Record, timeline::Timeline};

/// The share of the time that is left out at the beginning, and where everything comes at once at the end too.
const MARGIN: f64 = 0.1;

/// Figures of a window: after a tenth of the sending time, until the last request was due. Where all came at once, the middle
/// eight tenths of the run. A closed loop's begins when as many have ended as are under way at a time, as in `baton plan`, if at
/// least twice as many have before the last was due, which is shortly before it ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Steady {
    /// Seconds since the run's start.
    pub from_s: f64,
    /// Its end, likewise.
    pub to_s: f64,
    /// Requests that completed in it, per second.
    pub request_throughput: f64,
    /// Live tokens in it, per second.
    pub output_throughput: f64,
    /// Requests under way, on average over time.
    pub concurrency: f64,
}

impl Steady {
    /// Of all records, those of the warm-up first: what still runs of them is part of the load. None where nothing lasted.
    pub(crate) fn of(options: &Options, records: &[Record], timeline: &Timeline) -> Option<Self> {
        let first = records.get(options.warmup)?.planned;
        let ended = records.iter().filter_map(Record::ended).max()?;
        let at_once = options.rate.is_some_and(|rate| rate.get().is_infinite());
        let last = if at_once { ended } else { records.last()?.planned };
        let margin = last.saturating_sub(first).mul_f64(MARGIN);
        let to = if at_once { last.saturating_sub(margin) } else { last };
        let from = options.concurrency.and_then(|most| full(most, records, to)).unwrap_or(first + margin);
        let seconds = to.saturating_sub(from).as_secs_f64();
        let (tokens, counted) = timeline.tokens(from, to);
        if seconds <= 0.0 || counted <= 0.0 {
            return None;
        }
        let within =
            |record: &&Record| record.e2el().is_some() && record.ended().is_some_and(|at| at >= from && at < to);
        let busy = |record: &Record| {
            let end = record.ended().unwrap_or(ended);
            end.min(to).saturating_sub(record.planned.max(from)).as_secs_f64()
        };
        Some(Self {
            from_s: from.as_secs_f64(),
            to_s: to.as_secs_f64(),
            request_throughput: records.iter().filter(within).count() as f64 / seconds,
            output_throughput: tokens as f64 / counted,
            concurrency: records.iter().map(busy).sum::<f64>() / seconds,
        })
    }
}

/// When so many requests had completed, if that was well before the end.
fn full(most: usize, records: &[Record], end: Duration) -> Option<Duration> {
    let completed = records.iter().filter(|record| record.e2el().is_some()).filter_map(Record::ended);
    let mut completed: Vec<Duration> = completed.filter(|at| *at <= end).collect();
    completed.sort_unstable();
    completed.get(2 * most - 1).and_then(|_| completed.get(most - 1)).copied()
}

/// Requests under way after each change, in the order of time. Lost ones never end.
pub(crate) fn concurrency(records: &[Record]) -> Vec<(Duration, usize)> {
    let begins = records.iter().map(|record| (record.planned, 1));
    let mut changes: Vec<(Duration, i64)> =
        begins.chain(records.iter().filter_map(|record| Some((record.ended()?, -1)))).collect();
    // An end makes room before the next begins.
    changes.sort_unstable();
    let mut count = 0;
    changes
        .into_iter()
        .map(|(at, change)| {
            count += change;
            (at, usize::try_from(count).unwrap_or(0))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::End;

    #[test]
    fn the_window_leaves_out_the_ramp_and_the_drain() {
        let ms = Duration::from_millis;
        let mut timeline = Timeline::default();
        // One request each 100 ms for 10 s, each 500 ms long with 10 tokens.
        let records: Vec<Record> = (0..=100)
            .map(|number| {
                let planned = 100 * number;
                let mut record = Record::new(ms(planned));
                for token in 0..10 {
                    record.token(token as u32, ms(planned + 50 * token));
                    timeline.token(ms(planned + 50 * token));
                }
                let at = ms(planned + 500);
                record.finish(End::Completed {
                    at,
                    prompt_tokens: 1,
                    output_tokens: 10,
                    cached_tokens: 0,
                    stages: None,
                });
                record
            })
            .collect();
        let closed = |concurrency| {
            let options = Options::closed_loop(concurrency, ms(10_000)).unwrap();
            Steady::of(&options, &records, &timeline).unwrap().from_s
        };
        // The twentieth is the last that ends after half a second and 1.9; of 48 twice as many don't end before the last is due.
        assert_eq!((closed(20), closed(48), closed(49)), (2.4, 5.2, 1.0));
        let steady = Steady::of(&Options::open_loop(10.0, 101).unwrap(), &records, &timeline).unwrap();
        assert_eq!((steady.from_s, steady.to_s), (1.0, 10.0));
        assert!((steady.request_throughput - 10.0).abs() < 1e-9, "{steady:?}");
        assert!((steady.output_throughput - 100.0).abs() < 1e-9, "{steady:?}");
        assert!((steady.concurrency - 5.0).abs() < 1e-9, "{steady:?}");
        assert_eq!(concurrency(&records).into_iter().map(|(_, count)| count).max(), Some(5));
        assert_eq!(Steady::of(&Options::open_loop(10.0, 1).unwrap(), &records[..1], &timeline), None);
    }
}
