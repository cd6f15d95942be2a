use proptest::{collection::vec, prelude::*};

use super::*;

const MS: Duration = Duration::from_millis(1);

/// A worker whose broker answers at once.
struct Worker {
    turns: Turns,
    lanes: Vec<usize>,
    backlog: Vec<usize>,
    slots: usize,
    /// Messages that are worked on.
    running: usize,
    /// Turns that wait, with what came of them, and when they end.
    waiting: Vec<(Turn, usize, Instant)>,
    now: Instant,
    /// The lanes of the messages, as they were taken.
    taken: Vec<usize>,
    /// For each lane, the messages of others that were taken since one of its own was, or since it was found empty.
    passed: Vec<usize>,
}

impl Worker {
    fn new(lanes: usize, models: usize, slots: usize, backlog: usize) -> Self {
        let queues: Vec<usize> = (0..lanes * models).map(|index| index % lanes).collect();
        Self {
            turns: Turns::new(&queues, slots),
            backlog: vec![backlog; queues.len()],
            lanes: queues,
            slots,
            running: 0,
            waiting: Vec::new(),
            now: Instant::now(),
            taken: Vec::new(),
            passed: vec![0; lanes],
        }
    }

    fn free(&self) -> usize {
        self.slots - self.running - self.waiting.iter().map(|(turn, came, _)| turn.count - came).sum::<usize>()
    }

    fn has_messages(&self, lane: usize) -> bool {
        self.lanes.iter().zip(&self.backlog).any(|(&other, &messages)| other == lane && messages > 0)
    }

    fn deliver(&mut self, queue: usize, most: usize) -> usize {
        let (count, lane) = (most.min(self.backlog[queue]), self.lanes[queue]);
        self.backlog[queue] -= count;
        self.running += count;
        self.taken.extend(vec![lane; count]);
        for passed in &mut self.passed {
            *passed += count;
        }
        if count > 0 || !self.has_messages(lane) {
            self.passed[lane] = 0;
        }
        count
    }

    /// Uses the free slots; `strictly` checks that no look passes a more urgent lane but for its share.
    fn settle(&mut self, strictly: bool) {
        for (turn, mut came, until) in std::mem::take(&mut self.waiting) {
            came += self.deliver(turn.queue, turn.count - came);
            if came == turn.count || self.now >= until {
                self.turns.ended(turn, came, self.now);
            } else {
                self.waiting.push((turn, came, until));
            }
        }
        while self.free() > 0
            && let Some(turn) = self.turns.next(self.free(), self.now)
        {
            assert!((1..=self.free()).contains(&turn.count), "{turn:?}");
            let lane = self.lanes[turn.queue];
            let urgent = (0..lane).any(|other| self.has_messages(other));
            let due = self.passed[lane] + self.passed.len() > SHARE;
            let came = self.deliver(turn.queue, turn.count);
            let looks = turn.wait.is_none();
            assert!(
                !(strictly && looks && came > 0 && urgent) || due,
                "lane {lane} passed a more urgent one: {:?}",
                self.taken
            );
            match turn.wait {
                Some(wait) if came < turn.count => self.waiting.push((turn, came, self.now + wait)),
                _ => self.turns.ended(turn, came, self.now),
            }
        }
    }
}

proptest! {
    #[test]
    fn every_lane_has_its_share_and_the_most_urgent_the_rest(
        lanes in 1..=8usize,
        models in 1..4usize,
        slots in 1..50usize,
        steps in vec((0..40u32, 1..6usize), 50),
    ) {
        let mut worker = Worker::new(lanes, models, slots, usize::MAX / 2);
        for &(pause, ended) in steps.iter().cycle().take(1000) {
            worker.now += pause * MS;
            worker.settle(false);
            prop_assert_eq!(worker.running, slots, "a slot is free while there are messages");
            worker.running -= ended.min(slots);
        }
        let count = |lane| worker.taken.iter().filter(|&&other| other == lane).count();
        let (share, begin) = (worker.taken.len() / SHARE, slots + SHARE * lanes);
        for lane in 1..lanes {
            prop_assert!(count(lane) + begin >= share, "lane {} of {} had {} of {}", lane, lanes, count(lane), share);
            prop_assert!(count(lane) <= share + begin, "lane {} of {} had {} of {}", lane, lanes, count(lane), share);
        }
        for window in worker.taken[slots..].windows(SHARE * lanes * models + slots) {
            prop_assert!((0..lanes).all(|lane| window.contains(&lane)), "{:?}", window);
        }
    }

    #[test]
    fn a_free_slot_goes_to_the_most_urgent_and_waits_only_where_all_are_empty(
        lanes in 1..5usize,
        models in 1..3usize,
        arrivals in vec((0..10usize, 0..12usize, 40..300u32), 1..80),
    ) {
        let mut worker = Worker::new(lanes, models, 1, 0);
        let queues = worker.lanes.len();
        let look_again = LOOK_AGAIN * queues as u32;
        for (queue, messages, pause) in arrivals {
            worker.backlog[queue % queues] += messages;
            worker.now += pause * MS;
            worker.settle(true);
            worker.running = 0;
        }
        // From here on a slot is wasted on empty queues once at most: where the last message left it.
        let begin = worker.now;
        let jobs: usize = worker.backlog.iter().sum();
        for _ in 0..jobs {
            let mut looks = 0;
            while worker.running == 0 {
                looks += 1;
                worker.now += if looks == 1 { look_again } else { SHORT_WAIT };
                worker.settle(true);
                prop_assert!(looks <= queues + 1, "a full queue is not found");
            }
            worker.running = 0;
        }
        prop_assert_eq!(worker.backlog.iter().sum::<usize>(), 0);
        prop_assert!(worker.now - begin <= look_again * jobs as u32 + SHORT_WAIT * queues as u32);
    }

    #[test]
    fn where_slots_are_many_messages_of_any_lane_never_wait_for_a_free_one(
        lanes in 1..5usize,
        extra in 0..40usize,
        arrivals in vec((0..10usize, 0..12usize, 0..3000u32), 1..80),
    ) {
        let mut worker = Worker::new(lanes, 1, 2 * lanes + extra, 0);
        for (queue, messages, pause) in arrivals {
            worker.backlog[queue % lanes] += messages;
            worker.now += pause * MS;
            worker.settle(false);
            let waiting = worker.backlog.iter().sum::<usize>();
            prop_assert!(waiting == 0 || worker.free() == 0);
            prop_assert!(waiting == 0 || worker.running >= worker.slots / 2, "idle queues keep too many slots");
            worker.running /= 2;
        }
    }

    #[test]
    fn whatever_becomes_of_the_slots_a_message_never_waits_for_a_free_one(
        lanes in 1..5usize,
        steps in vec((1..40usize, 0..10usize, 0..12usize, 0..300u32), 1..80),
    ) {
        let mut worker = Worker::new(lanes, 1, 8, 0);
        for (slots, queue, messages, pause) in steps {
            // What is out comes back before the number falls.
            worker.slots = slots.max(worker.slots - worker.free());
            worker.turns.share(worker.slots);
            worker.backlog[queue % lanes] += messages;
            // Looks in vain and short waits are over.
            for _ in 0..4 {
                worker.now += SHORT_WAIT;
                worker.settle(false);
            }
            worker.now += WAIT;
            worker.settle(false);
            prop_assert!(worker.backlog.iter().sum::<usize>() == 0 || worker.free() == 0);
            worker.now += pause * MS;
            worker.running /= 2;
        }
    }

    #[test]
    fn idle_queues_keep_no_slot_from_a_busy_one(queues in 1..5usize, extra in 0..40usize, busy in 0..5usize) {
        let slots = 2 * queues + extra;
        let mut worker = Worker::new(queues, 1, slots, 0);
        worker.slots += worker.turns.waiting_slots();
        // All wait, and then one has more than it is asked for, again and again.
        for _ in 0..20 {
            worker.settle(false);
            worker.now += 10 * MS;
        }
        for _ in 0..50 {
            worker.backlog[busy % queues] = 100;
            worker.settle(false);
            worker.now += 10 * MS;
            prop_assert!(worker.running >= slots, "{} of {slots} slots work", worker.running);
            worker.running /= 2;
        }
    }
}

#[test]
fn an_urgent_queue_answers_before_another_is_asked() {
    let (mut turns, now) = (Turns::new(&[0, 1], 2), Instant::now());
    let look = |queue, count| Turn { queue, count, wait: None };
    assert_eq!(turns.next(1, now), Some(look(0, 1)));
    assert!(!turns.wanted(now), "the other slot, free by now, goes to whatever else it has");
    turns.ended(look(0, 1), 1, now);
    assert_eq!(turns.next(1, now), Some(look(0, 1)));
    turns.ended(look(0, 1), 0, now);
    assert_eq!(turns.next(2, now), Some(look(1, 2)));
    turns.ended(look(1, 2), 1, now);
    assert_eq!(turns.next(1, now), Some(Turn { queue: 0, count: 1, wait: Some(SHORT_WAIT) }), "both were found empty");
    // The rest is settled once the urgent queue may have something again.
    let later = now + 2 * LOOK_AGAIN;
    turns.ended(Turn { queue: 0, count: 1, wait: Some(SHORT_WAIT) }, 1, later);
    assert_eq!(turns.next(1, later), Some(look(0, 1)));
    turns.failed(0);
    assert_eq!(turns.next(1, later), Some(look(1, 1)), "others don't wait for a queue that can't be asked");
    turns.rested(0);
    assert_eq!(turns.next(1, later), Some(look(0, 1)));
}
