use std::collections::VecDeque;

use proptest::{collection::vec, prelude::*};

use super::*;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(10);
const EACH: Duration = Duration::from_millis(500);

/// An engine with so many places, and more clients than it has.
struct Engine {
    limit: Limit,
    now: Duration,
    places: usize,
    /// How long an answer takes, in milliseconds.
    takes: (u64, u64),
    /// Until the first token, from the time when the engine begins with it.
    first_token: Duration,
    clients: usize,
    metrics: bool,
    queue: VecDeque<u64>,
    /// With the time of the first token, if it is to come, and of the end.
    working: Vec<(u64, Option<Duration>, Duration)>,
    random: u64,
    /// Places that were busy, in all steps together.
    busy: usize,
    seen: Vec<usize>,
}

impl Engine {
    fn new(places: usize, takes: (u64, u64), metrics: bool) -> Self {
        Self {
            limit: Limit::new(None, 7),
            now: Duration::ZERO,
            places,
            takes,
            first_token: 40 * MS,
            clients: 2 * MOST,
            metrics,
            queue: VecDeque::new(),
            working: Vec::new(),
            random: 1,
            busy: 0,
            seen: Vec::new(),
        }
    }

    fn length(&mut self) -> Duration {
        self.random = crate::replicas::mixed(self.random);
        Duration::from_millis(self.takes.0 + self.random % (self.takes.1 - self.takes.0 + 1))
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        for (id, first, _) in &mut self.working {
            if first.take_if(|first| *first <= now).is_some() {
                self.limit.first_token(*id, now);
            }
        }
        let (ended, working) = mem::take(&mut self.working).into_iter().partition(|(_, _, end)| *end <= now);
        self.working = working;
        for (id, ..) in ended {
            self.limit.end(id, Ended::Answered, now);
        }
        self.busy += self.working.len();
        while self.limit.is_open(now) && self.limit.running() < self.clients {
            self.queue.push_back(self.limit.start(now));
        }
        // A tenth of a second for all of its places.
        for _ in 0..self.places.div_ceil(10) {
            if self.working.len() < self.places
                && let Some(id) = self.queue.pop_front()
            {
                let end = now + self.length();
                self.working.push((id, Some(now + self.first_token), end));
            }
        }
        if now.as_millis().is_multiple_of(EACH.as_millis()) {
            let figures = Figures { running: Some(self.working.len()), waiting: self.queue.len() };
            self.limit.look(self.metrics.then_some(figures), now);
            self.seen.push(self.limit.limit());
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.step();
        }
    }

    /// Share of the places that were busy.
    fn use_of(&mut self, time: Duration) -> f64 {
        self.busy = 0;
        self.run(time);
        self.busy as f64 * STEP.as_secs_f64() / time.as_secs_f64() / self.places as f64
    }
}

/// What may wait inside an engine with so many places.
fn bearable(places: usize, metrics: bool) -> usize {
    if metrics { (2 + places / 4).min(16) } else { 2 + places / 3 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_engine_is_filled_and_stays_so_without_many_that_wait(
        places in 1..256usize,
        shortest in 300..2_000u64,
        spread in 300..2_000u64,
        metrics: bool,
    ) {
        let mut engine = Engine::new(places, (shortest, shortest + spread), metrics);
        engine.run(30 * S);
        engine.seen.clear();
        let used = engine.use_of(60 * S);
        let (least, most) = (*engine.seen.iter().min().unwrap(), *engine.seen.iter().max().unwrap());
        prop_assert!(least >= places, "{} of {places}", least);
        // Who waits only as long as a first token may take is not seen to wait.
        let unseen = if metrics { 0 } else { places * 150 / shortest as usize };
        prop_assert!(most <= places + bearable(places, metrics) + unseen + 1, "{} of {places}", most);
        // The rest goes by between an answer and the next request.
        prop_assert!(used > 0.97, "{used} of {places} places, limit {least} to {most}");
    }

    #[test]
    fn whatever_happens_the_limit_stays_in_its_bounds_and_comes_back(
        fixed in proptest::option::of(1..2_000usize),
        events in vec((0..8u8, 0..64usize, 0..4_000u64), 1..120),
    ) {
        let mut limit = Limit::new(fixed, 3);
        let (mut now, mut running) = (Duration::ZERO, Vec::new());
        for (event, which, ms) in events {
            now += Duration::from_millis(ms);
            while limit.is_open(now) {
                running.push(limit.start(now));
            }
            let long = Figures { running: Some(4), waiting: 100 + which };
            let before = limit.limit();
            match event {
                0 => limit.look(Some(Figures { running: Some(running.len()), waiting: which }), now),
                1 => limit.look(None, now),
                2 => {
                    limit.look(Some(long), now);
                    prop_assert!(limit.limit() <= before, "it grew though the queue is long");
                }
                3 => limit.check(which % 2 == 0, now),
                _ if running.is_empty() => {}
                4 => limit.first_token(running[which % running.len()], now),
                _ => {
                    let id = running.swap_remove(which % running.len());
                    let pause = (which % 3 == 0).then(|| Duration::from_millis(ms * 100));
                    let put_off = Ended::PutOff(pause);
                    let ended =
                        [Ended::Answered, Ended::Refused, put_off, Ended::Failed, Ended::Gone, Ended::Left];
                    limit.end(id, ended[(which + event as usize) % ended.len()], now);
                }
            }
            prop_assert!((1..=MOST).contains(&limit.limit()));
            prop_assert!(fixed.is_none() || [1, fixed.unwrap().min(MOST)].contains(&limit.limit()));
            prop_assert_eq!(limit.running(), running.len());
            // Somebody who waits learns when to ask again, unless a request's end tells him.
            prop_assert!(limit.is_open(now) || !running.is_empty() || limit.opens_at().is_some_and(|at| at > now));
        }
        // All is well again: what it has is answered, and then it takes as much as before.
        for id in running {
            limit.end(id, Ended::Answered, now);
        }
        now += 61 * S;
        limit.check(true, now);
        prop_assert!(limit.is_open(now));
        let id = limit.start(now);
        limit.end(id, Ended::Answered, now + S);
        prop_assert!(limit.is_up() && limit.is_open(now + S));
        prop_assert!(fixed.is_none_or(|fixed| limit.limit() == fixed.min(MOST)));
    }
}

#[test]
fn answers_that_all_end_together_are_followed_at_once() {
    for (places, metrics) in [(4, true), (4, false), (16, true), (16, false), (86, true), (86, false)] {
        let mut engine = Engine::new(places, (974, 990), metrics);
        engine.run(30 * S);
        engine.seen.clear();
        let used = engine.use_of(60 * S);
        assert!(used > 0.97, "{used} of {places} places");
        // Half of the looks find what began a moment ago.
        let most = places + 2 * bearable(places, metrics) + 2;
        assert!(engine.seen.iter().all(|&limit| (places..=most).contains(&limit)), "{places}: {:?}", engine.seen);
    }
}

#[test]
fn the_plateau_is_reached_within_seconds_and_few_clients_do_not_widen_it() {
    for metrics in [true, false] {
        let mut engine = Engine::new(200, (1_000, 2_000), metrics);
        engine.run(6 * S);
        assert!(engine.limit.limit() >= 200, "{:?}", engine.seen);
        let mut few = Engine::new(200, (1_000, 2_000), metrics);
        few.clients = 20;
        few.run(60 * S);
        assert!(few.limit.limit() <= 32, "{:?}", few.seen);
    }
}

#[test]
fn first_tokens_that_take_long_do_not_let_it_run_ahead() {
    for metrics in [true, false] {
        let mut engine = Engine::new(16, (12_000, 20_000), metrics);
        engine.first_token = 5 * S;
        engine.run(60 * S);
        assert!(engine.seen.iter().all(|&limit| limit <= 40), "{:?}", engine.seen);
    }
}

#[test]
fn what_others_put_there_counts_and_each_gives_its_share() {
    let mut limit = Limit::new(None, 1);
    let ids: Vec<_> = (0..8).map(|_| limit.start(S)).collect();
    ids.iter().for_each(|&id| limit.first_token(id, 2 * S));
    let crowded = Figures { running: Some(16), waiting: 16 };
    limit.look(Some(crowded), 2 * S);
    assert_eq!(limit.limit(), 8, "once may be a burst");
    limit.look(Some(crowded), 3 * S);
    // 12 wait too many, of which a fourth are ours.
    assert_eq!(limit.limit(), 5);
    limit.look(Some(crowded), 3 * S);
    limit.look(Some(crowded), 3 * S);
    assert_eq!(limit.limit(), 5, "it has 8, until they are answered");
}

#[test]
fn an_engine_without_room_has_its_pause_and_loses_a_part_once() {
    let mut limit = Limit::new(None, 1);
    let ids: Vec<_> = (0..8).map(|_| limit.start(S)).collect();
    for &id in &ids[..4] {
        limit.end(id, Ended::PutOff(Some(3 * S)), 2 * S);
    }
    assert_eq!(limit.limit(), 5, "8 less 30 %");
    assert!(!limit.is_open(2 * S) && !limit.is_open(5 * S - MS) && limit.is_open(5 * S));
    assert_eq!((limit.opens_at(), limit.room(3 * S), limit.room(5 * S)), (Some(5 * S), 4, 5));
    let id = limit.start(5 * S);
    limit.end(id, Ended::PutOff(None), 6 * S);
    assert_eq!(limit.limit(), 3);
    // It holds requests back, but does not grow soon.
    ids[4..].iter().for_each(|&id| limit.end(id, Ended::Answered, 6 * S));
    assert!(!limit.is_open(6 * S) && limit.is_open(7 * S), "a pause of its own where none is named");
    let mut looks = 0;
    while limit.limit() == 3 {
        looks += 1;
        let now = 7 * S + looks * EACH;
        let id = limit.is_open(now).then(|| limit.start(now));
        limit.look(Some(Figures { running: Some(3), waiting: 0 }), now);
        id.filter(|_| limit.running() > 2).into_iter().for_each(|id| limit.end(id, Ended::Answered, now));
    }
    assert!((8..12).contains(&looks), "{looks}");
}

#[test]
fn an_outage_costs_one_try_at_a_time_and_ends_with_a_sign_of_life() {
    let mut limit = Limit::new(Some(32), 1);
    let mut now = S;
    let ids: Vec<_> = (0..32).map(|_| limit.start(now)).collect();
    ids.iter().for_each(|&id| limit.end(id, Ended::Gone, now));
    assert!(!limit.is_up() && limit.limit() == 1 && !limit.is_open(now));
    let mut tries = 0;
    while now < 61 * S {
        now += 10 * MS;
        if limit.is_open(now) {
            let id = limit.start(now);
            assert!(!limit.is_open(now), "one at a time");
            limit.end(id, Ended::Gone, now);
            tries += 1;
        }
    }
    assert!((30..66).contains(&tries), "{tries} in a minute, at most 2 s apart");
    while !limit.is_open(now) {
        now += 10 * MS;
    }
    assert!(now <= 63 * S + 10 * MS);
    let id = limit.start(now);
    limit.first_token(id, now + S);
    assert!(limit.is_up() && limit.limit() == 32 && limit.is_open(now + S), "all of it is back at once");
}

#[test]
fn where_checks_can_be_believed_no_request_is_tried_in_vain() {
    let mut limit = Limit::new(None, 1);
    limit.check(true, S);
    let id = limit.start(S);
    limit.end(id, Ended::Gone, 2 * S);
    limit.check(false, 2 * S);
    assert!(!limit.is_open(20 * S) && limit.is_open(32 * S), "nearly none");
    limit.check(true, 20 * S);
    assert!(limit.is_up() && limit.is_open(20 * S), "it is tried as soon as it is well");
    let id = limit.start(20 * S);
    limit.end(id, Ended::Gone, 20 * S);
    assert!(!limit.is_up() && !limit.is_open(20 * S), "well, but it answers nothing");
    limit.check(true, 20 * S);
    assert!(!limit.is_open(20 * S), "only a change says something new");

    let mut idle = Limit::new(None, 1);
    idle.check(false, S);
    assert!(!idle.is_up(), "nothing is lost by believing it while it is idle");
    let mut busy = Limit::new(None, 1);
    busy.start(S);
    busy.check(false, S);
    assert!(busy.is_up(), "one that works may be too busy to say that it is well");
}

#[test]
fn an_instance_that_breaks_down_again_and_again_gets_less() {
    let mut limit = Limit::new(None, 1);
    for (at, left) in [(S, 8), (10 * S, 4), (20 * S, 2), (100 * S, 2)] {
        let id = limit.start(at);
        limit.end(id, Ended::Gone, at);
        limit.check(false, at);
        let id = limit.start(at + S);
        limit.end(id, Ended::Answered, at + 2 * S);
        assert_eq!(limit.limit(), left);
    }
    // What passes with the next sign of life is no outage.
    let ids = [0, 1].map(|_| limit.start(110 * S));
    limit.end(ids[0], Ended::Gone, 110 * S);
    limit.first_token(ids[1], 110 * S + MS);
    assert!(!limit.is_up(), "that was on its way");
    limit.end(ids[1], Ended::Answered, 111 * S);
    assert!(limit.is_up());
    assert_eq!(limit.limit(), 2);
}

#[test]
fn requests_that_fail_are_an_outage_only_when_none_succeeds_between() {
    let mut limit = Limit::new(Some(8), 1);
    let fail = |limit: &mut Limit, times: u32| {
        for _ in 0..times {
            let id = limit.start(S);
            limit.end(id, Ended::Failed, S);
        }
    };
    fail(&mut limit, FAILURES - 1);
    let id = limit.start(S);
    limit.end(id, Ended::Refused, S);
    fail(&mut limit, FAILURES - 1);
    assert!(limit.is_up() && limit.limit() == 8, "poisonous requests cost the others nothing");
    fail(&mut limit, 1);
    assert!(!limit.is_up() && limit.limit() == 1);
}
