//! When each check is due. Pure: it is given `now` and says who runs. A check keeps its own grid of instants, so
//! it does not drift; checks that were made together do not stay together; and when not all of a lane can be run in
//! time, all intervals of that lane grow by the same factor.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use super::lane::{LANES, Lane};

/// One run of one check, or the check itself between runs. A ticket of a check that was removed means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    pub slot: u32,
    generation: u32,
}

impl Ticket {
    /// As one word, which a socket can carry through epoll.
    pub fn to_word(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    pub fn from_word(word: u64) -> Ticket {
        Ticket { slot: word as u32, generation: (word >> 32) as u32 }
    }
}

#[derive(Debug)]
pub struct Schedule {
    rows: Vec<Row>,
    free: Vec<u32>,
    seed: u64,
    /// Checks that have not been run yet.
    new: u32,
    queues: [Queue; LANES],
}

/// The checks of one lane.
#[derive(Debug)]
struct Queue {
    checks: u32,
    running: u32,
    stretch: f64,
    period: Period,
    /// One entry for each check that waits; one whose row says otherwise is skipped.
    waiting: BinaryHeap<Reverse<(Instant, Ticket)>>,
}

#[derive(Debug)]
struct Row {
    generation: u32,
    lane: Lane,
    phase: Phase,
    interval: Duration,
    /// Of the run that waits or runs.
    due: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Free,
    /// Waits for its first run.
    New,
    Waits,
    Runs {
        first: bool,
    },
}

/// What was seen since the last look at the load.
#[derive(Debug, Clone, Copy)]
struct Period {
    began: Instant,
    starts: u32,
    /// Of these, how many were late.
    late: u32,
}

impl Schedule {
    /// `seed` moves the phases of the checks.
    pub fn new(now: Instant, seed: u64) -> Schedule {
        Schedule {
            rows: Vec::new(),
            free: Vec::new(),
            seed,
            new: 0,
            queues: std::array::from_fn(|_| Queue {
                checks: 0,
                running: 0,
                stretch: 1.0,
                period: Period { began: now, starts: 0, late: 0 },
                waiting: BinaryHeap::new(),
            }),
        }
    }

    /// A check that is run soon (at once, when it is alone among new ones: a service that was just applied waits
    /// for it), and from then on every `interval`, in a phase of its own.
    pub fn insert(&mut self, now: Instant, lane: Lane, interval: Duration) -> Ticket {
        let due = now + (FIRST_GAP * self.new).min(interval);
        self.new += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.rows.push(Row { generation: 0, lane, phase: Phase::Free, interval, due });
            (self.rows.len() - 1) as u32
        });
        let row = &mut self.rows[slot as usize];
        let generation = row.generation.wrapping_add(1);
        *row = Row { generation, lane, phase: Phase::New, interval, due };
        let ticket = Ticket { slot, generation };
        self.queues[lane as usize].checks += 1;
        self.queues[lane as usize].waiting.push(Reverse((due, ticket)));
        ticket
    }

    /// Forgets a check. A run of it that is under way ends on its own and is ignored.
    pub fn remove(&mut self, ticket: Ticket) {
        let Some(&Row { lane, phase, .. }) = self.row(ticket) else { return };
        let queue = &mut self.queues[lane as usize];
        queue.checks -= 1;
        match phase {
            Phase::New => self.new -= 1,
            Phase::Runs { .. } => queue.running -= 1,
            Phase::Waits | Phase::Free => {}
        }
        self.rows[ticket.slot as usize].phase = Phase::Free;
        self.free.push(ticket.slot);
        self.drop_stale(lane);
    }

    /// The check of the lane that has waited longest among those that are due. It runs until [`Schedule::finish`].
    pub fn take(&mut self, now: Instant, lane: Lane) -> Option<Ticket> {
        let due = self.next_due(lane)?;
        if due > now {
            return None;
        }
        let queue = &mut self.queues[lane as usize];
        let Reverse((_, ticket)) = queue.waiting.pop()?;
        let row = &mut self.rows[ticket.slot as usize];
        let late = now.saturating_duration_since(row.due);
        queue.period.starts += 1;
        if late > SLACK {
            queue.period.late += 1;
            // What was missed is not made up for.
            row.due = now;
        }
        let first = row.phase == Phase::New;
        row.phase = Phase::Runs { first };
        self.new -= u32::from(first);
        queue.running += 1;
        Some(ticket)
    }

    /// The run is over; the next one comes `interval` after the one that ended was due, or at the first such
    /// instant that is still to come. Says false if the check is no more.
    pub fn finish(&mut self, now: Instant, ticket: Ticket, interval: Duration) -> bool {
        let Some(&Row { phase: Phase::Runs { first }, due, lane, .. }) = self.row(ticket) else {
            return false;
        };
        let mut step = interval.mul_f64(self.stretch(lane)).max(STEP_MIN);
        let mut next = due + step;
        if first {
            // From half to the whole of it: the phases of checks that began together come apart.
            next = due + step.mul_f64(0.5 + 0.5 * share(self.seed ^ ticket.to_word()));
        }
        if next <= now {
            step = step.max(STEP_MIN);
            let missed = now.saturating_duration_since(due).as_nanos() / step.as_nanos();
            next = due + step * u32::try_from(missed + 1).unwrap_or(u32::MAX);
        }
        self.wait(ticket, interval, next);
        self.queues[lane as usize].running -= 1;
        true
    }

    /// Another interval for a check that waits, counted from its last run.
    pub fn set_interval(&mut self, now: Instant, ticket: Ticket, interval: Duration) {
        let Some(row) = self.row(ticket) else { return };
        let (old, stretch) = (row.interval, self.stretch(row.lane));
        if row.phase != Phase::Waits || old == interval {
            return;
        }
        let next = (row.due + interval.mul_f64(stretch)).checked_sub(old.mul_f64(stretch)).unwrap_or(now);
        self.wait(ticket, interval, next.max(now));
    }

    /// Makes a check that waits due now.
    pub fn set_due(&mut self, now: Instant, ticket: Ticket) {
        let Some(row) = self.row(ticket) else { return };
        let interval = row.interval;
        if row.phase == Phase::Waits {
            self.wait(ticket, interval, now);
        }
    }

    /// Whether the check has not been removed.
    pub fn knows(&self, ticket: Ticket) -> bool {
        self.row(ticket).is_some()
    }

    /// The next instant at which `take` may have something.
    pub fn next_due(&mut self, lane: Lane) -> Option<Instant> {
        loop {
            let &Reverse((due, ticket)) = self.queues[lane as usize].waiting.peek()?;
            if self.waits(ticket, due) {
                return Some(due);
            }
            self.queues[lane as usize].waiting.pop();
        }
    }

    /// When a check that waits is due.
    pub fn due(&self, ticket: Ticket) -> Option<Instant> {
        let row = self.rows.get(ticket.slot as usize).filter(|row| row.generation == ticket.generation)?;
        matches!(row.phase, Phase::New | Phase::Waits).then_some(row.due)
    }

    /// Looks at how late runs began and moves the factor of each lane's intervals; call it often.
    pub fn look(&mut self, now: Instant) {
        for lane in Lane::ALL {
            let Queue { period: Period { began, starts, late }, stretch, .. } = self.queues[lane as usize];
            if now.saturating_duration_since(began) < PERIOD {
                continue;
            }
            let stretch = if late > 0 {
                // As much as was wanted goes into what was done; a little more, so that what has piled up is worked
                // off.
                let of_lane = self.rows.iter().filter(|row| row.lane == lane);
                let wanted: f64 = of_lane.filter_map(Row::rate).sum();
                let done = f64::from(starts) / now.saturating_duration_since(began).as_secs_f64();
                let needed = (1.1 * wanted / done).clamp(1.0, STRETCH_MAX);
                0.5 * (stretch + needed)
            } else {
                (stretch * 0.95).max(1.0)
            };
            let queue = &mut self.queues[lane as usize];
            queue.stretch = stretch;
            queue.period = Period { began: now, starts: 0, late: 0 };
        }
    }

    /// By how much every interval of the lane is longer than it was asked for; 1 when all is well.
    pub fn stretch(&self, lane: Lane) -> f64 {
        self.queues[lane as usize].stretch
    }

    /// How many runs of the lane are under way.
    pub fn running(&self, lane: Lane) -> u32 {
        self.queues[lane as usize].running
    }

    /// How many checks the lane has.
    pub fn checks(&self, lane: Lane) -> u32 {
        self.queues[lane as usize].checks
    }

    fn wait(&mut self, ticket: Ticket, interval: Duration, due: Instant) {
        let row = &mut self.rows[ticket.slot as usize];
        (row.phase, row.interval, row.due) = (Phase::Waits, interval, due);
        let lane = row.lane;
        self.queues[lane as usize].waiting.push(Reverse((due, ticket)));
        self.drop_stale(lane);
    }

    fn row(&self, ticket: Ticket) -> Option<&Row> {
        let row = self.rows.get(ticket.slot as usize)?;
        (row.generation == ticket.generation && row.phase != Phase::Free).then_some(row)
    }

    fn waits(&self, ticket: Ticket, due: Instant) -> bool {
        self.due(ticket) == Some(due)
    }

    /// Entries of checks that were removed or moved must not pile up.
    fn drop_stale(&mut self, lane: Lane) {
        if self.queues[lane as usize].waiting.len() <= 2 * self.rows.len() + 64 {
            return;
        }
        let waiting = std::mem::take(&mut self.queues[lane as usize].waiting);
        let real = waiting.into_iter().filter(|Reverse((due, ticket))| self.waits(*ticket, *due)).collect();
        self.queues[lane as usize].waiting = real;
    }
}

impl Row {
    /// Runs a second that are asked for.
    fn rate(&self) -> Option<f64> {
        (self.phase != Phase::Free).then(|| 1.0 / self.interval.max(STEP_MIN).as_secs_f64())
    }
}

/// A number in 0..1 from a word (splitmix64, Steele, Lea and Flood 2014).
fn share(word: u64) -> f64 {
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ z >> 31) as f64 / 2f64.powi(64)
}

/// First runs follow each other by this: ten thousand in a second.
const FIRST_GAP: Duration = Duration::from_micros(100);
/// Not late yet.
const SLACK: Duration = Duration::from_millis(100);
/// Between two looks at the load.
const PERIOD: Duration = Duration::from_secs(1);
/// No interval is shorter.
const STEP_MIN: Duration = Duration::from_millis(1);
/// Beyond it a check means nothing any more, and the numbers stay finite.
const STRETCH_MAX: f64 = 1000.0;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    /// Of all checks, where it does not matter.
    const LANE: Lane = Lane::Connect;

    fn schedule() -> (Schedule, Instant) {
        let now = Instant::now();
        (Schedule::new(now, 7), now)
    }

    /// Runs everything that is due, each run taking `takes`, up to `end`; `most` runs at a time. Returns starts.
    fn drive(
        s: &mut Schedule,
        mut now: Instant,
        end: Instant,
        takes: Duration,
        most: u32,
    ) -> Vec<(Instant, Ticket)> {
        let mut starts = Vec::new();
        let mut under_way: std::collections::VecDeque<(Instant, Ticket)> = Default::default();
        while now < end {
            while under_way.front().is_some_and(|(over, _)| *over <= now) {
                let (over, ticket) = under_way.pop_front().unwrap();
                s.finish(over.max(now), ticket, SECOND);
            }
            while s.running(LANE) < most
                && let Some(ticket) = s.take(now, LANE)
            {
                starts.push((now, ticket));
                under_way.push_back((now + takes, ticket));
            }
            s.look(now);
            now += Duration::from_millis(1);
        }
        starts
    }

    #[test]
    fn a_check_alone_runs_at_once_and_then_on_its_grid() {
        let (mut s, now) = schedule();
        let check = s.insert(now, LANE, SECOND);
        assert_eq!(s.take(now, LANE), Some(check));
        assert!(s.finish(now + Duration::from_millis(30), check, SECOND));
        let second = s.next_due(LANE).unwrap();
        assert!(second >= now + SECOND / 2 && second <= now + SECOND, "{:?}", second - now);
        for round in 1..100 {
            let due = s.next_due(LANE).unwrap();
            assert_eq!(
                due,
                second + SECOND * (round - 1),
                "no drift, though every run begins late and lasts"
            );
            assert_eq!(s.take(due - Duration::from_nanos(1), LANE), None);
            let late = due + Duration::from_millis(20);
            assert_eq!(s.take(late, LANE), Some(check));
            s.finish(late + Duration::from_millis(u64::from(round)), check, SECOND);
        }
    }

    #[test]
    fn phases_of_checks_made_together_come_apart() {
        let (mut s, now) = schedule();
        for _ in 0..1000 {
            s.insert(now, LANE, SECOND);
        }
        let starts = drive(&mut s, now, now + 10 * SECOND, Duration::from_millis(1), 5000);
        let in_second = |second: u32| {
            let from = now + SECOND * second;
            starts.iter().filter(|(at, _)| (from..from + SECOND).contains(at)).map(|(at, _)| *at).collect()
        };
        let last: Vec<Instant> = in_second(9);
        assert!((990..=1010).contains(&last.len()), "{} starts in a second", last.len());
        let busiest = last.chunk_by(|a, b| a == b).map(<[_]>::len).max().unwrap();
        assert!(busiest < 40, "{busiest} start in the same millisecond");
    }

    #[test]
    fn new_checks_are_spread_over_a_second_at_ten_thousand() {
        let (mut s, now) = schedule();
        let tickets: Vec<Ticket> = (0..10_000).map(|_| s.insert(now, LANE, 5 * SECOND)).collect();
        let last = s.due(*tickets.last().unwrap()).unwrap();
        assert!(last > now + SECOND * 9 / 10 && last <= now + SECOND);
    }

    #[test]
    fn a_run_longer_than_its_interval_skips_what_it_missed() {
        let (mut s, now) = schedule();
        let check = s.insert(now, LANE, SECOND);
        s.take(now, LANE).unwrap();
        s.finish(now, check, SECOND);
        let grid = s.next_due(LANE).unwrap();
        assert_eq!(s.take(grid, LANE), Some(check));
        s.finish(grid + Duration::from_millis(2500), check, SECOND);
        assert_eq!(s.next_due(LANE), Some(grid + 3 * SECOND));
    }

    #[test]
    fn a_faster_interval_counts_from_the_run_that_was_due() {
        let (mut s, now) = schedule();
        let check = s.insert(now, LANE, SECOND);
        s.take(now, LANE);
        s.finish(now, check, SECOND);
        let grid = s.next_due(LANE).unwrap();
        s.take(grid, LANE);
        s.finish(grid + Duration::from_millis(5), check, Duration::from_millis(200));
        assert_eq!(s.next_due(LANE), Some(grid + Duration::from_millis(200)));
    }

    #[test]
    fn another_interval_reaches_a_check_that_waits() {
        let (mut s, now) = schedule();
        let check = s.insert(now, LANE, 100 * SECOND);
        s.take(now, LANE);
        s.finish(now, check, 100 * SECOND);
        s.set_interval(now, check, SECOND);
        assert!(s.next_due(LANE).unwrap() <= now + SECOND);
        s.set_interval(now, check, 50 * SECOND);
        assert!(s.next_due(LANE).unwrap() >= now + 49 * SECOND);
    }

    #[test]
    fn past_capacity_all_intervals_grow_alike_and_come_back() {
        let (mut s, now) = schedule();
        for _ in 0..1000 {
            s.insert(now, LANE, SECOND);
        }
        // 100 at a time, 200 ms each: 500 a second where 1000 are wanted.
        let end = now + 60 * SECOND;
        let starts = drive(&mut s, now, end, Duration::from_millis(200), 100);
        assert!(s.stretch(LANE) > 1.8 && s.stretch(LANE) < 2.4, "stretched by {}", s.stretch(LANE));
        let mut each = vec![0u32; 1000];
        starts.iter().filter(|(at, _)| *at > now + 30 * SECOND).for_each(|(_, t)| each[t.slot as usize] += 1);
        let (least, most) = (each.iter().min().unwrap(), each.iter().max().unwrap());
        assert!(*least >= 10 && most - least <= 3, "from {least} to {most} runs in half a minute");
        // And then they are quick again.
        drive(&mut s, end + SECOND, end + 60 * SECOND, Duration::from_millis(1), 100);
        assert_eq!(s.stretch(LANE), 1.0);
    }

    #[test]
    fn a_lane_that_is_past_its_capacity_delays_no_other() {
        let (mut s, now) = schedule();
        for _ in 0..1000 {
            s.insert(now, Lane::Tls, SECOND);
        }
        let quick = s.insert(now, Lane::Connect, SECOND);
        // Ten of the thousand begin in a second; the other one is due among those that wait.
        let (mut at, mut starts) = (now, Vec::new());
        for step in 0..20_000 {
            at += Duration::from_millis(1);
            if step % 100 == 0
                && let Some(ticket) = s.take(at, Lane::Tls)
            {
                s.finish(at, ticket, SECOND);
            }
            if let Some(ticket) = s.take(at, Lane::Connect) {
                assert_eq!(ticket, quick);
                starts.push(at);
                s.finish(at, ticket, SECOND);
            }
            s.look(at);
        }
        assert!(s.stretch(Lane::Tls) > 50.0, "stretched by {}", s.stretch(Lane::Tls));
        assert_eq!(s.stretch(Lane::Connect), 1.0);
        assert!((20..=21).contains(&starts.len()), "{} starts in 20 s", starts.len());
        let gaps = starts.windows(2).skip(1).map(|pair| pair[1] - pair[0]);
        let (least, most) = (gaps.clone().min().unwrap(), gaps.max().unwrap());
        assert!(least >= SECOND - SLACK && most <= SECOND + SLACK, "from {least:?} to {most:?}");
    }

    #[test]
    fn a_removed_check_never_runs_and_its_ticket_means_nothing() {
        let (mut s, now) = schedule();
        let (gone, stays) = (s.insert(now, LANE, SECOND), s.insert(now, LANE, SECOND));
        s.remove(gone);
        let next = s.insert(now, LANE, SECOND);
        assert_eq!(next.slot, gone.slot, "the place is used again");
        let later = now + SECOND;
        let taken: std::collections::BTreeSet<_> = std::iter::from_fn(|| s.take(later, LANE)).collect();
        assert_eq!(taken, [stays, next].into());
        assert!(!s.finish(later, gone, SECOND));
        s.remove(next);
        assert!(!s.finish(later, next, SECOND), "removed while it ran");
        assert_eq!(s.running(LANE), 1);
    }

    #[test]
    fn the_queue_stays_small_whatever_comes_and_goes() {
        let (mut s, now) = schedule();
        for round in 0..10_000u64 {
            let check = s.insert(now, LANE, SECOND);
            s.take(now, LANE);
            s.finish(now, check, SECOND);
            s.set_interval(now, check, Duration::from_millis(500 + round));
            s.remove(check);
        }
        assert!(s.queues[LANE as usize].waiting.len() < 100 && s.rows.len() == 1);
    }
}
