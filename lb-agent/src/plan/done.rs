//! What was done so far, step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use super::{Layout, Step};
use crate::model::{Name, PortRange, Ports, Protocol};

/// A layout that takes note of steps.
#[derive(Debug, Clone, Default)]
pub struct Done {
    layout: Layout,
    /// The services of each virtual address and protocol, once they are asked for: who gets a port takes it from one
    /// of them, and with ten thousand services nobody can look at all the others each time.
    neighbours: Option<BTreeMap<Key, BTreeSet<Name>>>,
}

type Key = (IpAddr, Protocol);

impl Done {
    /// Takes note that a step was done.
    pub fn done(&mut self, step: &Step) {
        if let (Step::SetService { name, .. } | Step::RemoveService { name }, Some(neighbours)) =
            (step, &mut self.neighbours)
            && let Some(service) = self.layout.services.get(name)
            && let Some(names) = neighbours.get_mut(&service.key())
        {
            names.remove(name);
        }
        self.layout.done(step);
        match (step, &mut self.neighbours) {
            (Step::SetService { name, .. }, Some(neighbours)) => {
                if let Some(service) = self.layout.services.get(name) {
                    neighbours.entry(service.key()).or_default().insert(name.clone());
                }
            }
            (Step::SetPorts { service, ports: Ports::List(ports) }, _) => self.hand_over(service, ports),
            _ => {}
        }
    }

    /// The agent has taken its addresses from all interfaces.
    pub fn forget_placed(&mut self) {
        self.layout.placed.clear();
    }

    /// Ports that `service` has got are no other's any more.
    fn hand_over(&mut self, service: &Name, ports: &[PortRange]) {
        let Some(key) = self.layout.services.get(service).map(|owner| owner.key()) else { return };
        let services = &mut self.layout.services;
        let neighbours = self.neighbours.get_or_insert_with(|| {
            let mut neighbours: BTreeMap<Key, BTreeSet<Name>> = BTreeMap::new();
            for (name, service) in &*services {
                neighbours.entry(service.key()).or_default().insert(name.clone());
            }
            neighbours
        });
        for name in neighbours.get(&key).into_iter().flatten().filter(|name| *name != service) {
            let Some(other) = services.get_mut(name) else { continue };
            let Ports::List(ranges) = &other.ports else { continue };
            if ranges.iter().any(|range| ports.contains(range)) {
                let left = ranges.iter().filter(|range| !ports.contains(range)).copied().collect();
                Arc::make_mut(other).ports = Ports::List(left);
            }
        }
    }
}

impl From<Layout> for Done {
    fn from(layout: Layout) -> Done {
        Done { layout, neighbours: None }
    }
}

impl Deref for Done {
    type Target = Layout;

    fn deref(&self) -> &Layout {
        &self.layout
    }
}
