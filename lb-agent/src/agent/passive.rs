//! Passive detection at work: once a second, what the data plane counted of first answers to new connections goes to
//! the roster. Reads one line of mapped memory for each watched server; only what has changed goes further.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use lb_common::witness::answer;

use super::Agent;
use crate::apply::destination_key;
use crate::dataplane::Views;
use crate::director::binding_of;
use crate::health::passive::Tally;
use crate::model::{Name, ServerKey};

/// What was read last.
#[derive(Default)]
pub struct Watched {
    servers: BTreeMap<(Name, ServerKey), Server>,
    /// The places are those of the tables.
    placed: bool,
}

#[derive(Default)]
struct Server {
    /// Indices of its destinations, one for each endpoint of the service, each with its counters when read last.
    places: BTreeMap<u32, Tally>,
}

impl Watched {
    /// The tables changed.
    pub fn forget_places(&mut self) {
        self.placed = false;
    }
}

impl Agent {
    /// Reads the counters of watched servers. Those that come on probation are judged with the next judgement.
    pub(super) fn witness(&mut self) {
        if !self.watched.placed {
            self.place_watched();
        }
        let now = Instant::now();
        let views = self.dataplane.views();
        for ((service, key), server) in &mut self.watched.servers {
            let mut new = Tally::default();
            for (index, last) in &mut server.places {
                let counted = counted(&views, *index);
                new = new.plus(counted.since(std::mem::replace(last, counted)));
            }
            if new == Tally::default() || !self.health.roster.witness(now, service, *key, new) {
                continue;
            }
            let objects = self.director.objects();
            let doubt = objects.services().find(|(of, _)| of.name == *service).and_then(|(of, _)| {
                let server = of.real_servers.iter().find(|server| of.key_of(server) == *key)?;
                self.health.roster.watcher_of(of, server)?.probation().cloned()
            });
            // One that is out is told of when that is judged.
            if let Some(doubt) = doubt.filter(|doubt| !doubt.out) {
                let cause = format!("{} within {} s: it is probed", doubt.tally, doubt.window.as_secs());
                self.events.emit(format!("RealServer/{service}/{key}"), "suspected", cause, []);
            }
        }
    }

    /// Finds the destinations of watched servers. Of one that was not watched before counting begins now.
    fn place_watched(&mut self) {
        let mut before = std::mem::take(&mut self.watched.servers);
        let views = self.dataplane.views();
        for (service, _) in self.director.objects().services() {
            if service.health.passive.is_none() {
                continue;
            }
            let names = service.table_names();
            for server in service.real_servers.iter().filter(|server| service.health.watches(server)) {
                let of = (service.name.clone(), service.key_of(server));
                let known = before.remove(&of).unwrap_or_default();
                let binding = binding_of(service, server);
                let indices = names
                    .iter()
                    .filter_map(|name| self.applier.tables().destination(&destination_key(name, &binding)))
                    .filter(|index| *index < views.witnesses.len());
                let last =
                    |index: u32| known.places.get(&index).copied().unwrap_or_else(|| counted(&views, index));
                let places = indices.map(|index| (index, last(index))).collect();
                self.watched.servers.insert(of, Server { places });
            }
        }
        self.watched.placed = true;
    }

    /// Tells the monitor what probations ask of it.
    pub(super) fn run_errands(&mut self) {
        let errands = self.health.roster.errands();
        if errands.set {
            self.health.monitor.set(self.probed());
        }
        for (id, pace) in errands.paces {
            self.health.monitor.pace(id, pace);
        }
        for id in errands.now {
            self.health.monitor.probe_now(id);
        }
    }
}

/// The counters of a destination.
fn counted(views: &Views, index: u32) -> Tally {
    let word = |offset: u32| views.witnesses.word(index, offset as usize).load(Relaxed);
    Tally {
        answered: word(answer::ANSWERED),
        refused: word(answer::REFUSED),
        silent: word(answer::SILENT),
        unreachable: word(answer::UNREACHABLE),
    }
}
