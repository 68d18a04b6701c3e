//! How many flows a real server has, and whether it may take more: docs/datapath.md, "Counts". Everything that writes a
//! word of a flow tells so here, with what stood there before.

use crate::Model;
use lb_common::{connection::Value, destination::flags, state::State};

/// What a real server has to do in its service, or its group of services.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Load {
    pub active: u32,
    pub inactive: u32,
    /// The upper threshold was reached, and the lower one not since.
    pub overloaded: bool,
}

/// What a flow counts as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    Active,
    Inactive,
}

fn class(word: Value, udp_inactive: bool) -> Option<Class> {
    if word.is_empty() {
        return None;
    }
    let active = match State::from_number(word.state()) {
        Some(State::Established | State::SynSent | State::SynReceived | State::SynAck) => true,
        Some(State::Udp) => !udp_inactive,
        _ => false,
    };
    Some(if active { Class::Active } else { Class::Inactive })
}

impl Model {
    /// A flow's word was exchanged; one of them may be empty. Under FULLNAT that of the lease.
    pub(crate) fn recount(&mut self, old: Value, new: Value) {
        let named = if new.is_empty() { old } else { new };
        if named.is_empty() {
            return;
        }
        let stands = self.flags(named.destination());
        if stands & flags::COUNTED == 0 {
            return;
        }
        let index = self.config.destinations[named.destination() as usize].load as usize;
        let limits = self.config.loads[index];
        let load = &mut self.loads[index];
        let udp_inactive = stands & flags::UDP_INACTIVE != 0;
        let (was, is) = (class(old, udp_inactive), class(new, udp_inactive));
        match was {
            Some(Class::Active) => load.active -= 1,
            Some(Class::Inactive) => load.inactive -= 1,
            None => {}
        }
        match is {
            Some(Class::Active) => load.active += 1,
            Some(Class::Inactive) => load.inactive += 1,
            None => {}
        }
        let total = u64::from(load.active) + u64::from(load.inactive);
        let upper = u64::from(limits.upper);
        match (was, is) {
            _ if upper == 0 => {}
            // Bound.
            (None, Some(_)) if total >= upper => load.overloaded = true,
            // Unbound: fewer than the lower threshold, or than three quarters of the upper one.
            (Some(_), None) => {
                let relieved = match limits.lower {
                    0 => total * 4 < upper * 3,
                    lower => total < u64::from(lower),
                };
                if relieved {
                    load.overloaded = false;
                }
            }
            _ => {}
        }
    }

    /// A real server's (active, inactive) flows and weight.
    pub(crate) fn load_of(&self, destination: u32) -> (u64, u64, u64) {
        let index = self.config.destinations[destination as usize].load as usize;
        let load = self.loads[index];
        (load.active.into(), load.inactive.into(), self.config.loads[index].weight.into())
    }

    /// Of some weight, and not overloaded.
    pub(crate) fn has_room(&self, destination: u32) -> bool {
        let index = self.config.destinations[destination as usize].load as usize;
        self.config.loads[index].weight != 0 && !self.loads[index].overloaded
    }
}
