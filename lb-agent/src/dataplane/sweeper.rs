//! Walks the connection table: frees what has expired, counts what lives, and notes which destinations and
//! hops are still named, so that an index is given out again only when nothing can mean its former owner.
//! Has a thread of its own: nothing slow may delay it.

use super::ages::{Age, Ages};
use super::{Clock, Error, Views};
use lb_common::{
    connection::{Kind, Value, WAYS},
    destination::{Destination, flags},
    load::{ACTIVE, Load, counted},
};
use std::{
    mem::offset_of,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::Ordering::{AcqRel, Acquire, Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// States that a count tells apart: by number, of the flow's protocol.
pub const STATES: usize = 15;

/// Live flows of one destination.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Count {
    pub active: u32,
    pub inactive: u32,
    /// By the state's number.
    pub states: [u32; STATES],
}

/// What one walk found.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Counts walks; 0 is none yet.
    pub number: u64,
    pub began: Instant,
    pub took: Duration,
    /// Entries in the table after the walk, replies and templates included.
    pub entries: u64,
    /// How many the table has room for.
    pub capacity: u64,
    /// Entries that were freed because their time was over.
    pub expired: u64,
    /// Leases that were.
    pub expired_leases: u64,
    /// Entries of FULLNAT flows whose lease is gone.
    pub without_lease: u64,
    /// By destination.
    pub counts: Vec<Count>,
    /// Live leases by pool address.
    pub leases: Vec<u32>,
    /// Live persistence templates by destination.
    pub templates: Vec<u32>,
    /// The sweeper's age when the walk began, in seconds; that of its first walk is 0.
    second: u32,
    /// By destination: the second in which the sweeper met the oldest flow, plus one; 0 is none.
    oldest: Vec<u32>,
    /// By destination: ticks until its last flow expires, if no packet comes.
    silent_in: Vec<u16>,
    /// Loads that were put right, for their counts had drifted away from the flows.
    pub healed: u64,
    /// By load: what the flows add up to, the counts when the walk began, and by how much they differed after the
    /// walk before this one.
    loads: Vec<u64>,
    loads_before: Vec<u64>,
    drift: Vec<u64>,
    destinations_seen: Vec<u64>,
    hops_seen: Vec<u64>,
}

impl Scan {
    fn empty(views: &Views) -> Self {
        let bits = |len: u32| vec![0; len.div_ceil(64) as usize];
        Self {
            number: 0,
            began: Instant::now(),
            took: Duration::ZERO,
            entries: 0,
            capacity: views.connections.len() as u64 * WAYS as u64,
            expired: 0,
            expired_leases: 0,
            without_lease: 0,
            counts: vec![Count::default(); views.destinations.len() as usize],
            leases: vec![0; (views.leases.len() >> 16) as usize],
            templates: vec![0; views.destinations.len() as usize],
            second: 0,
            oldest: vec![0; views.destinations.len() as usize],
            silent_in: vec![0; views.destinations.len() as usize],
            healed: 0,
            loads: vec![0; views.loads.len() as usize],
            loads_before: vec![0; views.loads.len() as usize],
            drift: vec![0; views.loads.len() as usize],
            destinations_seen: bits(views.destinations.len()),
            hops_seen: bits(views.next_hops.len()),
        }
    }

    fn clear(&mut self) {
        (self.entries, self.expired, self.expired_leases, self.without_lease) = (0, 0, 0, 0);
        self.healed = 0;
        self.templates.fill(0);
        self.oldest.fill(0);
        self.silent_in.fill(0);
        self.loads.fill(0);
        self.counts.fill(Count::default());
        self.leases.fill(0);
        self.destinations_seen.fill(0);
        self.hops_seen.fill(0);
    }

    /// Whether an entry or a lease named the destination.
    pub fn saw_destination(&self, index: u32) -> bool {
        bit(&self.destinations_seen, index)
    }

    /// Whether an entry or a lease named the next hop as the way to its client.
    pub fn saw_hop(&self, index: u32) -> bool {
        bit(&self.hops_seen, index)
    }

    /// Live flows of a destination.
    pub fn count(&self, destination: u32) -> Count {
        self.counts.get(destination as usize).copied().unwrap_or_default()
    }

    /// How long the oldest flow of a destination has been there; None when it has none.
    pub fn oldest(&self, destination: u32) -> Option<Age> {
        let met = self.oldest.get(destination as usize)?.checked_sub(1)?;
        Some(Age { seconds: self.second.saturating_sub(met), at_least: met == 0 })
    }

    /// Ticks until the last flow of a destination expires if no packet comes any more.
    pub fn silent_in(&self, destination: u32) -> u16 {
        self.silent_in.get(destination as usize).copied().unwrap_or_default()
    }

    /// One walk, at tick `now` and in that second of the sweeper's life. Allocates nothing. An entry that changes
    /// meanwhile is judged by one of its two words, and freed only if it did not change (compare and exchange).
    pub fn walk(&mut self, views: &Views, now: u16, second: u32, ages: &mut Ages) {
        self.clear();
        self.began = Instant::now();
        self.second = second;
        for (load, before) in (0..).zip(&mut self.loads_before) {
            *before = views.counts(load).load(Acquire);
        }
        for bucket in 0..views.connections.len() {
            for way in 0..WAYS as u32 {
                let word = views.value(bucket, way);
                let value = Value(word.load(Acquire));
                if value.is_empty() || value.is_busy() {
                    continue;
                }
                if value.is_expired(now)
                    && word.compare_exchange(value.0, Value::EMPTY.0, AcqRel, Relaxed).is_ok()
                {
                    self.expired += 1;
                    if value.kind() == Kind::Flow {
                        unbind(views, value);
                    }
                    continue;
                }
                if let Some(destination) = self.note(views, value) {
                    let slot = bucket as usize * WAYS + way as usize;
                    let identity = views.identity(bucket, way).load(Relaxed);
                    let met = ages.meet(slot, identity, value.state(), second);
                    self.note_age(destination, met, value.deadline().wrapping_sub(now));
                }
            }
        }
        self.walk_leases(views, now);
        self.heal(views);
        self.took = self.began.elapsed();
        self.number += 1;
    }

    /// Notes a live entry; returns the destination of a flow.
    fn note(&mut self, views: &Views, value: Value) -> Option<u32> {
        self.entries += 1;
        let destination = match value.kind() {
            Kind::FullNat => {
                let lease = views.lease_word(value.lease());
                if lease.is_empty() {
                    self.without_lease += 1;
                    return None;
                }
                lease.destination()
            }
            Kind::Flow | Kind::NatReply | Kind::Template => value.destination(),
        };
        set(&mut self.destinations_seen, destination);
        match value.kind() {
            // The flow's own entry is counted, not its twin's; a FULLNAT flow by its lease.
            Kind::NatReply => set(&mut self.hops_seen, value.hop() as u32),
            Kind::Template => {
                if let Some(templates) = self.templates.get_mut(destination as usize) {
                    *templates += 1;
                }
            }
            Kind::FullNat => return Some(destination),
            Kind::Flow => {
                self.count_flow(views, value);
                return Some(destination);
            }
        }
        None
    }

    fn note_age(&mut self, destination: u32, met: u32, ticks_left: u16) {
        let at = destination as usize;
        let (Some(oldest), Some(silent_in)) = (self.oldest.get_mut(at), self.silent_in.get_mut(at)) else {
            return;
        };
        if *oldest == 0 || met < *oldest - 1 {
            *oldest = met + 1;
        }
        *silent_in = (*silent_in).max(ticks_left);
    }

    fn count_flow(&mut self, views: &Views, value: Value) {
        let (destination, state) = (value.destination(), value.state());
        if let Some((load, udp_inactive, _)) = load_of(views, destination)
            && let Some(sum) = self.loads.get_mut(load as usize)
        {
            *sum = sum.wrapping_add(counted(value, udp_inactive));
        }
        if let Some(count) = self.counts.get_mut(destination as usize)
            && let Some(of_state) = count.states.get_mut(state as usize)
        {
            *of_state += 1;
            match counted(value, false) {
                ACTIVE => count.active += 1,
                _ => count.inactive += 1,
            }
        }
    }

    fn walk_leases(&mut self, views: &Views, now: u16) {
        let end = (views.pool_end.load(Relaxed) << 16).min(views.leases.len() & !0xffff);
        for lease in 0..end {
            let word = views.leases.word(lease, 8);
            let value = Value(word.load(Acquire));
            if value.is_empty() {
                continue;
            }
            if !value.is_busy()
                && value.is_expired(now)
                && word.compare_exchange(value.0, Value::EMPTY.0, AcqRel, Relaxed).is_ok()
            {
                self.expired_leases += 1;
                unbind(views, value);
                continue;
            }
            self.leases[(lease >> 16) as usize] += 1;
            if !value.is_busy() {
                set(&mut self.destinations_seen, value.destination());
                self.count_flow(views, value);
            }
            // `hop` is beside `ports`: offset 36 of the line.
            set(&mut self.hops_seen, views.leases.half(lease, HOP).load(Relaxed));
        }
    }

    /// Puts counts right that differ from the flows: where nobody counted during the walk, and by the difference that
    /// the walk before found too. A flow that was seen before its CPU had counted it makes one walk differ, not two.
    /// Overload is judged again as well: two CPUs that bind and unbind at once may have left it wrong.
    fn heal(&mut self, views: &Views) {
        for load in 0..views.loads.len() {
            let at = load as usize;
            let word = views.counts(load);
            let now = word.load(Acquire);
            let difference = self.loads[at].wrapping_sub(now);
            if now != self.loads_before[at] || difference == 0 {
                self.drift[at] = 0;
            } else if self.drift[at] == difference {
                // An addition, not a store: what is counted meanwhile stays counted.
                word.fetch_add(difference, AcqRel);
                self.drift[at] = 0;
                self.healed += 1;
            } else {
                self.drift[at] = difference;
            }
            let upper = views.loads.half(load, offset_of!(Load, upper)).load(Relaxed);
            let overloaded = views.loads.half(load, offset_of!(Load, overloaded));
            let was = overloaded.load(Relaxed);
            if upper != 0 || was != 0 {
                let lower = views.loads.half(load, offset_of!(Load, lower)).load(Relaxed);
                let is = judge(was, word.load(Acquire), upper, lower);
                if is != was {
                    let _ = overloaded.compare_exchange(was, is, AcqRel, Relaxed);
                }
            }
        }
    }
}

/// Whether a server is overloaded, whoever bound or unbound last.
fn judge(was: u32, counts: u64, upper: u32, lower: u32) -> u32 {
    let (active, inactive) = Load::counts_of(counts);
    let total = u64::from(active) + u64::from(inactive);
    let added = total >= u64::from(upper);
    u32::from(Load::is_overloaded(was != 0, added, total, upper, lower))
}

/// (load, whether UDP flows are inactive, whether flows are counted) of a destination.
fn load_of(views: &Views, destination: u32) -> Option<(u32, bool, bool)> {
    if destination >= views.destinations.len() {
        return None;
    }
    let flags = Destination::flags_of(views.destinations.word(destination, 0).load(Relaxed));
    let load = views.destinations.half(destination, offset_of!(Destination, load)).load(Relaxed);
    let has = |flag| flags & flag != 0;
    (load < views.loads.len()).then_some((load, has(flags::UDP_INACTIVE), has(flags::COUNTED)))
}

/// A flow's time was over: its server has one less.
fn unbind(views: &Views, value: Value) {
    let Some((load, udp_inactive, true)) = load_of(views, value.destination()) else { return };
    let counts = counted(value, udp_inactive).wrapping_neg();
    let after = views.counts(load).fetch_add(counts, AcqRel).wrapping_add(counts);
    let overloaded = views.loads.half(load, offset_of!(Load, overloaded));
    if overloaded.load(Relaxed) == 0 {
        return;
    }
    let upper = views.loads.half(load, offset_of!(Load, upper)).load(Relaxed);
    let lower = views.loads.half(load, offset_of!(Load, lower)).load(Relaxed);
    if judge(1, after, upper, lower) == 0 {
        overloaded.store(0, Relaxed);
    }
}

const HOP: usize = std::mem::offset_of!(lb_common::lease::Lease, hop);

fn bit(bits: &[u64], index: u32) -> bool {
    bits.get(index as usize / 64).is_some_and(|word| word & 1 << (index % 64) != 0)
}

fn set(bits: &mut [u64], index: u32) {
    if let Some(word) = bits.get_mut(index as usize / 64) {
        *word |= 1 << (index % 64);
    }
}

/// Where the last finished walk hangs for others to read.
#[derive(Debug, Default)]
pub struct Board {
    state: Mutex<Posted>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Posted {
    scan: Option<Arc<Scan>>,
    wanted: bool,
    stop: bool,
}

impl Board {
    /// The last finished walk.
    pub fn latest(&self) -> Option<Arc<Scan>> {
        self.lock().scan.clone()
    }

    /// Asks for a walk now and waits until one that began after this call is finished. None after `timeout`.
    pub fn sweep_now(&self, timeout: Duration) -> Option<Arc<Scan>> {
        let asked = Instant::now();
        let mut posted = self.lock();
        posted.wanted = true;
        self.changed.notify_all();
        loop {
            if let Some(scan) = posted.scan.as_ref().filter(|scan| scan.began >= asked) {
                return Some(scan.clone());
            }
            let left = timeout.checked_sub(asked.elapsed())?;
            posted = self.changed.wait_timeout(posted, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Hangs up a walk, and gives back the one before if nobody holds it, for its memory.
    pub fn post(&self, scan: Scan) -> Option<Scan> {
        let before = self.lock().scan.replace(Arc::new(scan));
        self.changed.notify_all();
        before.and_then(|scan| Arc::try_unwrap(scan).ok())
    }

    /// Waits for the next walk's time. False when it is to end.
    fn wait(&self, interval: Duration) -> bool {
        let deadline = Instant::now() + interval;
        let mut posted = self.lock();
        while !posted.stop && !posted.wanted {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) else {
                break;
            };
            posted = self.changed.wait_timeout(posted, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        posted.wanted = false;
        !posted.stop
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Posted> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running sweeper; dropping it stops and joins the thread.
#[derive(Debug)]
pub struct Sweeper {
    board: Arc<Board>,
    thread: Option<JoinHandle<()>>,
}

impl Sweeper {
    /// Starts walking every `interval`.
    pub fn spawn(
        views: Arc<Views>,
        clock: Arc<Clock>,
        board: Arc<Board>,
        interval: Duration,
    ) -> Result<Self, Error> {
        board.lock().stop = false;
        let posted = board.clone();
        let thread = std::thread::Builder::new()
            .name("lb-sweeper".into())
            .spawn(move || sweep(&views, &clock, &posted, interval))
            .map_err(Error::os("start the sweeper"))?;
        Ok(Self { board, thread: Some(thread) })
    }

    /// What it saw last.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.board.lock().stop = true;
        self.board.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn sweep(views: &Views, clock: &Clock, board: &Board, interval: Duration) {
    let mut number = 0;
    let mut spare = None;
    let mut ages = Ages::new(views.connections.len() as usize * WAYS);
    let mut first = None;
    loop {
        let mut scan = spare.take().unwrap_or_else(|| Scan::empty(views));
        scan.number = number;
        match clock.tick() {
            Ok(now) => {
                let second = first.get_or_insert_with(Instant::now).elapsed().as_secs();
                scan.walk(views, now, u32::try_from(second).unwrap_or(u32::MAX), &mut ages);
                number = scan.number;
                spare = board.post(scan);
            }
            // Without the time nothing may be freed. Said each round: flows pile up until it is repaired.
            Err(error) => tracing::error!(%error, "the sweeper does not know the time"),
        }
        if !board.wait(interval) {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
