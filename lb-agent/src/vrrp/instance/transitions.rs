//! The transition table, by input. The order of a promotion is keepalived's: advertisement, addresses,
//! announcements; the order of a demotion begins with the data plane.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{ADDRESS_FAULT, Backup, GROUP_FAULT, Instance, Leaving, Master, State, TakeOver};
use crate::model::{OWNER_PRIORITY, Preempt};
use crate::vrrp::events::{Action, Config, Order, Role, Why};
use crate::vrrp::timers::{adopt, interval_for_pause, master_down, patience, skew};
use crate::vrrp::tracking::Change;
use crate::vrrp::wire::{Heard, Outgoing};

impl Instance {
    pub(super) fn start(&mut self, now: Instant, lease: Option<Instant>) -> Vec<Action> {
        if self.state != State::Initialize {
            return Vec::new();
        }
        if self.address.is_none() {
            self.tracking.apply(Change::Fault { what: ADDRESS_FAULT.to_owned(), present: true });
        }
        if self.tracking.in_fault() {
            return self.become_fault();
        }
        if lease.is_some_and(|until| now < until) {
            return self.promote(now, Why::Resumed);
        }
        if self.config.priority == OWNER_PRIORITY && self.ready && !self.config.grouped {
            return self.promote(now, Why::Owner);
        }
        self.become_backup(now, Why::Started, None)
    }

    pub(super) fn stop(&mut self) -> Vec<Action> {
        if self.state == State::Initialize {
            return Vec::new();
        }
        let mut actions = self.say_goodbye();
        actions.extend(self.leave_for(State::Initialize, Why::Stopped));
        self.yielded = false;
        actions
    }

    pub(super) fn suspend(&mut self, now: Instant, pause: Duration) -> Vec<Action> {
        let State::Master(Master { leaving: None, .. }) = &self.state else { return self.stop() };
        let config = &self.config;
        let longer = interval_for_pause(config.version, config.interval, pause);
        let last = self.advertise(now, longer.unwrap_or(config.interval));
        self.state = State::Initialize;
        // Three times: nothing more is said for a while, and one may be lost or overtaken.
        [&last[..1], &last[..1], &last[..]].concat()
    }

    pub(super) fn advert(&mut self, now: Instant, heard: Heard) -> Vec<Action> {
        if Some(heard.source) == self.address {
            return vec![Action::Count("own_address")];
        }
        let mut actions = self.peers.heard(now, &heard);
        actions.extend(match &self.state {
            State::Initialize | State::Fault => Vec::new(),
            State::Backup(_) => self.advert_as_backup(now, heard),
            State::Master(_) => self.advert_as_master(now, heard),
        });
        actions
    }

    fn advert_as_backup(&mut self, now: Instant, heard: Heard) -> Vec<Action> {
        let own = self.priority();
        let (preempts, delay) = (self.may_preempt(own, heard.priority), self.preempt_delay());
        let (version, hold) = (self.config.version, self.hold());
        let interval = adopt(version, self.config.interval, heard.interval);
        let State::Backup(backup) = &mut self.state else { return Vec::new() };
        if heard.priority == 0 {
            // The master's interval stays: a goodbye says nothing about the next master's.
            backup.down_at = now + skew(version, own, backup.interval) + hold * interval;
            backup.why = TakeOver::MasterLeft(heard.source);
            backup.preempt_at = None;
            backup.listened_again = true;
            backup.since = now;
            return Vec::new();
        }
        let was = backup.master.replace(heard.clone());
        if preempts && backup.wants_master {
            // Its delay is over; it waits for its group only.
            return Vec::new();
        }
        if preempts && delay.is_zero() {
            // Discarded: the timer runs on (RFC 9568, 6.4.2 (435)). A master that lowers its priority below ours
            // means us to take over, so there is no need to wait for the end of its patience.
            let fell = was.is_some_and(|was| was.source == heard.source && was.priority >= own);
            if backup.why != TakeOver::Preempt {
                backup.why = TakeOver::Preempt;
                backup.listened_again = false;
            }
            if fell {
                return self.preempt_soon(now);
            }
            return Vec::new();
        }
        backup.preempt_at = if preempts { Some(backup.preempt_at.unwrap_or(now + delay)) } else { None };
        backup.interval = interval;
        backup.down_at = now + master_down(version, own, interval) + hold * interval;
        backup.why = TakeOver::Silence;
        backup.since = now;
        backup.listened_again = false;
        backup.wants_master = false;
        Vec::new()
    }

    fn advert_as_master(&mut self, now: Instant, heard: Heard) -> Vec<Action> {
        let own = self.priority();
        let State::Master(master) = &self.state else { return Vec::new() };
        let stalled = now.duration_since(master.last_sent) >= patience(master.announced);
        let leaving = master.leaving.is_some();
        if heard.priority == 0 {
            if leaving {
                return Vec::new();
            }
            // Others that heard it too are about to take over: tell them that we are here (RFC 9568, 6.4.3
            // (705)). Who stops being master was one, so its announcements are out there.
            let mut actions = self.advertise(now, self.config.interval);
            actions.extend(self.announce_again(now));
            return actions;
        }
        if leaving {
            self.yielded = true;
            let to = heard.source;
            return self.become_backup(now, Why::HandedOver { to }, Some(heard));
        }
        let outranked = heard.priority > own
            || heard.priority == own && self.address.is_some_and(|address| heard.source > address);
        let why = Why::Outranked { master: heard.source, priority: heard.priority };
        if outranked && !stalled {
            // Said once more before going, so that the other learns of us and announces the addresses again:
            // hosts that we told otherwise would keep to us.
            let mut actions = vec![self.outgoing(own, self.config.interval)];
            actions.extend(self.become_backup(now, why, Some(heard)));
            return actions;
        }
        if outranked || stalled {
            return self.become_backup(now, why, Some(heard));
        }
        if own == OWNER_PRIORITY && heard.priority == OWNER_PRIORITY {
            let mut actions = vec![Action::Count("second_owner")];
            actions.extend(self.answer_lower(now));
            return actions;
        }
        self.answer_lower(now)
    }

    /// Another master has no right to be one: it hears of us at once, and so do those that it told otherwise.
    fn answer_lower(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = self.advertise(now, self.config.interval);
        actions.extend(self.announce_again(now));
        actions.push(Action::Count("lower_priority_master"));
        actions
    }

    pub(super) fn timer(&mut self, now: Instant) -> Vec<Action> {
        match &self.state {
            State::Initialize | State::Fault => Vec::new(),
            State::Backup(_) => self.timer_as_backup(now),
            State::Master(Master { leaving: Some(leaving), .. }) => {
                let leaving = leaving.clone();
                self.timer_as_leaving(now, leaving)
            }
            State::Master(_) => self.timer_as_master(now),
        }
    }

    fn timer_as_backup(&mut self, now: Instant) -> Vec<Action> {
        let own = self.priority();
        let State::Backup(backup) = &mut self.state else { return Vec::new() };
        if backup.preempt_at.is_some_and(|at| now >= at) && now < backup.down_at {
            let live = backup.master.clone();
            backup.preempt_at = None;
            return match live {
                Some(Heard { source: master, priority, .. }) => {
                    self.promote_or_ask(now, Why::Preempted { master, priority })
                }
                None => Vec::new(),
            };
        }
        if now < backup.down_at {
            return Vec::new();
        }
        // It was us who were away, and perhaps the master with us, on the same machine or under the same hypervisor: one
        // that wakes later than we do should be heard. Not for less than half an interval, which busy hosts are late by,
        // so that a dead master is replaced in time.
        if (now - backup.down_at) * 2 > backup.interval && !backup.listened_again {
            // We were away, not the master: whoever is master is heard within an interval.
            backup.listened_again = true;
            backup.preempt_at = None;
            backup.down_at = now + backup.interval + skew(self.config.version, own, backup.interval);
            return vec![Action::Count("late_timer")];
        }
        let why = match (&backup.why, &backup.master) {
            (TakeOver::MasterLeft(master), _) => Why::MasterLeft(*master),
            (TakeOver::Preempt, Some(heard)) => {
                Why::Preempted { master: heard.source, priority: heard.priority }
            }
            (TakeOver::Preempt | TakeOver::Silence, _) => Why::Silence(now.duration_since(backup.since)),
        };
        self.promote_or_ask(now, why)
    }

    fn timer_as_master(&mut self, now: Instant) -> Vec<Action> {
        let interval = self.config.interval;
        let State::Master(master) = &mut self.state else { return Vec::new() };
        let silence = now.duration_since(master.last_sent);
        if silence >= patience(master.announced) {
            return self.listen_first(now, silence);
        }
        let mut actions = Vec::new();
        if now >= master.next_advert {
            let on_time = master.next_advert + interval;
            actions.extend(self.advertise(now, interval));
            // The beat is kept: lateness must not add up.
            if let State::Master(master) = &mut self.state
                && on_time > now
            {
                master.next_advert = on_time;
            }
        }
        let gratuitous = self.config.gratuitous;
        let State::Master(master) = &mut self.state else { return actions };
        if master.next_burst.is_some_and(|at| now >= at) {
            master.next_burst = None;
            master.last_burst = Some(now);
            actions.push(Action::Announce { count: gratuitous.repeat });
        }
        if let Some(refresh) = gratuitous.refresh
            && master.next_refresh.is_some_and(|at| now >= at)
        {
            master.next_refresh = Some(now + refresh);
            actions.push(Action::Announce { count: 1 });
        }
        actions
    }

    /// A master whose word no longer holds does not renew it before it has listened for one interval: another
    /// may have taken over, rightly.
    fn listen_first(&mut self, now: Instant, silence: Duration) -> Vec<Action> {
        let mut actions = self.become_backup(now, Why::Stalled(silence), None);
        let (version, own, interval) = (self.config.version, self.priority(), self.config.interval);
        if let State::Backup(backup) = &mut self.state {
            backup.down_at = now + interval + skew(version, own, interval);
            backup.listened_again = true;
        }
        actions.push(Action::Count("stalled"));
        actions
    }

    fn timer_as_leaving(&mut self, now: Instant, leaving: Leaving) -> Vec<Action> {
        let interval = self.config.interval;
        let late = now.saturating_duration_since(leaving.renew);
        if late + interval >= patience(interval) {
            return self.listen_first(now, late + interval);
        }
        if now >= leaving.until { self.not_taken(now, leaving) } else { self.renew_lease(now) }
    }

    /// Nobody took over from a master that said goodbye.
    fn not_taken(&mut self, now: Instant, leaving: Leaving) -> Vec<Action> {
        if leaving.go_all_the_same {
            return self.become_backup(now, Why::Group, None);
        }
        let State::Master(master) = &mut self.state else { return Vec::new() };
        master.leaving = None;
        let mut actions = self.advertise(now, self.config.interval);
        actions.push(Action::Stayed { after: now.duration_since(leaving.since) });
        // Announcements that fell due meanwhile.
        actions.extend(self.timer_as_master(now));
        actions
    }

    pub(super) fn track(&mut self, now: Instant, change: Change) -> Vec<Action> {
        let (was_fault, was) = (self.tracking.in_fault(), self.priority());
        self.tracking.apply(change);
        match (was_fault, self.tracking.in_fault()) {
            (false, true) => self.fault(),
            (true, false) => self.recover(now),
            (true, true) => Vec::new(),
            (false, false) => self.priority_changed(now, was),
        }
    }

    fn fault(&mut self) -> Vec<Action> {
        if self.state == State::Initialize {
            return Vec::new();
        }
        let mut actions = self.say_goodbye();
        actions.extend(self.become_fault());
        actions
    }

    fn recover(&mut self, now: Instant) -> Vec<Action> {
        if self.state != State::Fault {
            return Vec::new();
        }
        if self.config.priority == OWNER_PRIORITY && self.ready && !self.config.grouped {
            return self.promote(now, Why::Owner);
        }
        self.become_backup(now, Why::Recovered, None)
    }

    pub(super) fn set_ready(&mut self, now: Instant, ready: bool) -> Vec<Action> {
        let became = ready && !self.ready;
        self.ready = ready;
        if !became || !matches!(self.state, State::Backup(_)) {
            return Vec::new();
        }
        if self.config.priority == OWNER_PRIORITY && !self.config.grouped {
            return self.promote(now, Why::Owner);
        }
        self.preempt_soon(now)
    }

    pub(super) fn configure(&mut self, now: Instant, config: Config) -> Vec<Action> {
        let was = self.priority();
        let old = std::mem::replace(&mut self.config, config);
        let new = &self.config;
        let interval_changed = old.interval != new.interval;
        let addresses_changed = old.addresses != new.addresses;
        let count = new.gratuitous.count;
        let refresh = new.gratuitous.refresh;
        if old.preempt != new.preempt || old.priority != new.priority {
            self.yielded = false;
        }
        let mut actions = Vec::new();
        match &mut self.state {
            State::Initialize | State::Fault => {}
            State::Backup(backup) => {
                if backup.master.is_none() {
                    backup.interval = self.config.interval;
                }
                if self.config.preempt == Preempt::Never {
                    backup.preempt_at = None;
                }
                if !self.config.grouped {
                    backup.wants_master = false;
                }
            }
            State::Master(master) => {
                if old.gratuitous.refresh != refresh {
                    master.next_refresh = refresh.map(|refresh| now + refresh);
                }
                let leaving = master.leaving.is_some();
                if addresses_changed {
                    actions.push(Action::TakeAddresses);
                    if !leaving {
                        actions.push(Action::Announce { count });
                    }
                }
                if interval_changed && !leaving {
                    let interval = self.config.interval;
                    actions.extend(self.advertise(now, interval));
                }
            }
        }
        actions.extend(self.priority_changed(now, was));
        if old.preempt != self.config.preempt {
            actions.extend(self.preempt_soon(now));
        }
        actions
    }

    /// After the effective priority may have moved from `was`.
    fn priority_changed(&mut self, now: Instant, was: u8) -> Vec<Action> {
        let own = self.priority();
        match &self.state {
            State::Backup(_) if own > was => self.preempt_soon(now),
            State::Master(Master { leaving: None, .. }) if own != was => {
                // A peer known to rank higher gets its turn now; one that is not known hears the new priority
                // and takes its turn by itself.
                let mut actions = self.advertise(now, self.config.interval);
                if own < was && self.peers.highest_priority().is_some_and(|peer| peer > own) {
                    actions.extend(self.hand_over(now, false));
                }
                actions
            }
            _ => Vec::new(),
        }
    }

    /// Says goodbye and serves on until another master is heard: nobody misses a packet. If none is heard
    /// within the time that the slowest backup takes, it stays, or goes if the sync group must.
    pub(super) fn hand_over(&mut self, now: Instant, go_all_the_same: bool) -> Vec<Action> {
        let interval = self.config.interval;
        let State::Master(master) = &mut self.state else { return Vec::new() };
        if let Some(leaving) = &mut master.leaving {
            leaving.go_all_the_same |= go_all_the_same;
            return Vec::new();
        }
        // The slowest skew is an interval (v2: a second); one interval more for a backup that is not ready.
        let until = now + interval.max(Duration::from_secs(1)) + interval + HAND_OVER_MARGIN;
        master.leaving = Some(Leaving { since: now, until, renew: now, go_all_the_same });
        let mut actions = vec![self.outgoing(0, interval)];
        actions.extend(self.renew_lease(now));
        actions
    }

    /// While another is asked to take over, the data plane's word is renewed without an advertisement: should
    /// this process die meanwhile, it ends as soon as it always would.
    fn renew_lease(&mut self, now: Instant) -> Vec<Action> {
        let interval = self.config.interval;
        let State::Master(Master { leaving: Some(leaving), .. }) = &mut self.state else { return Vec::new() };
        if now < leaving.renew {
            return Vec::new();
        }
        leaving.renew = now + interval;
        vec![Action::SetLease { role: Role::Master, until: Some(now + patience(interval)) }]
    }

    pub(super) fn order(&mut self, now: Instant, order: Order) -> Vec<Action> {
        match (order, &mut self.state) {
            (Order::Promote, State::Backup(_)) => self.promote(now, Why::Group),
            (Order::Promote, _) => Vec::new(),
            (Order::HandOver, _) => self.hand_over(now, false),
            (Order::Demote, State::Backup(backup)) => {
                backup.wants_master = false;
                Vec::new()
            }
            (Order::Demote, State::Master(_)) => self.hand_over(now, true),
            (Order::Demote, _) => Vec::new(),
            (Order::Fault(present), _) => {
                self.track(now, Change::Fault { what: GROUP_FAULT.to_owned(), present })
            }
        }
    }

    pub(super) fn primary_address(&mut self, now: Instant, address: Option<IpAddr>) -> Vec<Action> {
        let speaks = matches!(self.state, State::Master(Master { leaving: None, .. }));
        let changed = self.address != address;
        self.address = address;
        let what = ADDRESS_FAULT.to_owned();
        let started = self.state != State::Initialize;
        let mut actions = self.track(now, Change::Fault { what, present: address.is_none() && started });
        if changed && speaks && self.role() == Role::Master {
            actions.extend(self.advertise(now, self.config.interval));
        }
        actions
    }

    /// Takes over from a live master of lower priority without waiting for the end of its patience: after our
    /// skew, so that of several backups the highest goes first. For when it is known that this is wanted, not
    /// for one who just came.
    fn preempt_soon(&mut self, now: Instant) -> Vec<Action> {
        let (own, delay) = (self.priority(), self.preempt_delay());
        let (version, hold) = (self.config.version, self.hold());
        let State::Backup(backup) = &self.state else { return Vec::new() };
        let Some(live) = &backup.master else { return Vec::new() };
        if !self.may_preempt(own, live.priority) || matches!(backup.why, TakeOver::MasterLeft(_)) {
            return Vec::new();
        }
        let State::Backup(backup) = &mut self.state else { return Vec::new() };
        if delay.is_zero() {
            let soon = now + skew(version, own, backup.interval) + hold * backup.interval;
            backup.down_at = backup.down_at.min(soon);
            backup.why = TakeOver::Preempt;
        } else {
            backup.preempt_at = Some(backup.preempt_at.unwrap_or(now + delay));
        }
        Vec::new()
    }

    /// Whether a live master of priority `theirs` (not 0) is to be replaced. Not before this director could
    /// serve, and not after it handed over.
    fn may_preempt(&self, own: u8, theirs: u8) -> bool {
        let configured = own == OWNER_PRIORITY || self.config.preempt != Preempt::Never;
        theirs < own && configured && self.ready && !self.yielded
    }

    fn preempt_delay(&self) -> Duration {
        match self.config.preempt {
            Preempt::After(delay) if self.config.priority != OWNER_PRIORITY => delay,
            _ => Duration::ZERO,
        }
    }

    /// How many intervals more a director waits that could not serve yet: any that could goes first.
    fn hold(&self) -> u32 {
        u32::from(!self.ready)
    }

    fn promote_or_ask(&mut self, now: Instant, why: Why) -> Vec<Action> {
        if !self.config.grouped {
            return self.promote(now, why);
        }
        let own = self.priority();
        if let State::Backup(backup) = &mut self.state {
            backup.wants_master = true;
            backup.preempt_at = None;
            backup.listened_again = true;
            backup.down_at = now + master_down(self.config.version, own, backup.interval);
        }
        Vec::new()
    }

    fn promote(&mut self, now: Instant, why: Why) -> Vec<Action> {
        let from = self.role();
        let Config { interval, gratuitous, .. } = self.config;
        let resumed = why == Why::Resumed;
        self.yielded = false;
        self.state = State::Master(Master {
            next_advert: now,
            last_sent: now,
            announced: interval,
            next_burst: (!gratuitous.delay.is_zero()).then_some(now + gratuitous.delay),
            next_refresh: gratuitous.refresh.map(|refresh| now + refresh),
            last_burst: Some(now),
            leaving: None,
        });
        let mut actions = self.advertise(now, interval);
        actions.push(Action::TakeAddresses);
        if !resumed {
            actions.push(Action::Announce { count: gratuitous.count });
        }
        actions.push(Action::RoleChanged { from, to: Role::Master, why });
        actions
    }

    fn become_backup(&mut self, now: Instant, why: Why, master: Option<Heard>) -> Vec<Action> {
        let (version, own) = (self.config.version, self.priority());
        let heard = master.as_ref().map(|heard| heard.interval);
        let interval = adopt(version, self.config.interval, heard.unwrap_or(self.config.interval));
        let backup = Backup {
            down_at: now + master_down(version, own, interval) + self.hold() * interval,
            why: TakeOver::Silence,
            preempt_at: None,
            master,
            interval,
            since: now,
            listened_again: false,
            wants_master: false,
        };
        self.leave_for(State::Backup(backup), why)
    }

    fn become_fault(&mut self) -> Vec<Action> {
        let reason = self.tracking.faults().collect::<Vec<_>>().join(", ");
        self.leave_for(State::Fault, Why::Fault(reason))
    }

    /// To a state in which nothing is served. What an earlier run left goes too, so this is done from any state.
    fn leave_for(&mut self, state: State, why: Why) -> Vec<Action> {
        let from = self.role();
        self.state = state;
        let to = self.role();
        vec![
            Action::SetLease { role: to, until: None },
            Action::ReleaseAddresses,
            Action::RoleChanged { from, to, why },
        ]
    }

    /// Priority 0 from a master that did not say so yet.
    fn say_goodbye(&self) -> Vec<Action> {
        match &self.state {
            State::Master(Master { leaving: None, .. }) => {
                vec![self.outgoing(0, self.config.interval)]
            }
            _ => Vec::new(),
        }
    }

    /// One advertisement, and the lease that it gives.
    fn advertise(&mut self, now: Instant, announced: Duration) -> Vec<Action> {
        let own = self.priority();
        if let State::Master(master) = &mut self.state {
            master.last_sent = now;
            master.next_advert = now + announced;
            master.announced = announced;
        }
        let until = Some(now + patience(announced));
        vec![self.outgoing(own, announced), Action::SetLease { role: Role::Master, until }]
    }

    fn outgoing(&self, priority: u8, interval: Duration) -> Action {
        Action::SendAdvert(Outgoing { priority, interval })
    }

    /// After another master was heard: now, or if that was done just now, a little later.
    fn announce_again(&mut self, now: Instant) -> Vec<Action> {
        let gratuitous = self.config.gratuitous;
        let State::Master(master) = &mut self.state else { return Vec::new() };
        if let Some(later) = master.last_burst.map(|last| last + BURSTS_APART)
            && now < later
        {
            master.next_burst = Some(master.next_burst.map_or(later, |at| at.min(later)));
            return Vec::new();
        }
        master.last_burst = Some(now);
        if !gratuitous.delay.is_zero() {
            master.next_burst = Some(now + gratuitous.delay);
        }
        vec![Action::Announce { count: gratuitous.repeat.max(1) }]
    }
}

/// What a hand-over allows for the network and the peer's scheduler.
const HAND_OVER_MARGIN: Duration = Duration::from_millis(500);
/// Two masters that cannot hear each other must not flood the segment with announcements.
const BURSTS_APART: Duration = Duration::from_secs(1);
