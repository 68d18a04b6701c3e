//! What a plan means for flows and clients that are in the connection table already: flows of clients that a
//! service's sources no longer admit end, and persistence that has become shorter is so for the clients it keeps. New
//! ones are the data plane's; the table is walked here, beside the agent's task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Agent;
use crate::dataplane::dump;
use crate::model::{Admission, Name, Sources};
use crate::plan::{Layout, Step};

/// The services of a plan whose sources are not those that were done, with the new ones.
pub(super) fn newly_denied(steps: &[Step], done: &Layout) -> Vec<(Name, Arc<Sources>)> {
    let changed = steps.iter().filter_map(|step| match step {
        Step::SetService { name, service, .. } => {
            let sources = &service.rules.sources;
            let before = done.services.get(name).map(|layout| &layout.service.rules.sources);
            (!sources.is_empty() && before != Some(sources)).then(|| (name.clone(), Arc::clone(sources)))
        }
        _ => None,
    });
    changed.collect()
}

/// The services of a plan whose persistence is not what was done, with the new timeout.
pub(super) fn newly_kept(steps: &[Step], done: &Layout) -> Vec<(Name, Duration)> {
    let changed = steps.iter().filter_map(|step| match step {
        Step::SetService { name, service, .. } if service.rules.leader.is_none() => {
            let timeout = service.rules.persistence?.timeout;
            let before = done.services.get(name).and_then(|layout| layout.service.rules.persistence);
            before.is_none_or(|before| before.timeout > timeout).then(|| (name.clone(), timeout))
        }
        _ => None,
    });
    changed.collect()
}

impl Agent {
    /// Clients that are kept already are kept no longer than new ones.
    pub(super) fn shorten_persistence(&self, changed: Vec<(Name, Duration)>) {
        let tables = self.applier.tables();
        let by_index: BTreeMap<u32, u16> = changed
            .into_iter()
            .filter_map(|(name, timeout)| Some((tables.service(&name)?, self.applier.ticks(timeout))))
            .collect();
        if by_index.is_empty() {
            return;
        }
        let (views, clock) = (self.dataplane.views(), self.dataplane.clock());
        // Ends by itself; what it misses because the agent is stopped is done at the next start.
        tokio::task::spawn_blocking(move || match dump::shorten(&views, &clock, &by_index) {
            Ok(0) => {}
            Ok(clients) => tracing::info!("{clients} clients are kept no longer than the new timeout"),
            Err(error) => tracing::error!("shorten the persistence of clients: {error}"),
        });
    }

    /// Ends the flows of clients that are not admitted. Those to other services go on.
    pub(super) fn end_denied(&self, changed: Vec<(Name, Arc<Sources>)>) {
        let tables = self.applier.tables();
        let by_index: BTreeMap<u32, Admission> = changed
            .into_iter()
            .filter_map(|(name, sources)| Some((tables.service(&name)?, sources.admission())))
            .collect();
        if by_index.is_empty() {
            return;
        }
        let (views, clock) = (self.dataplane.views(), self.dataplane.clock());
        // Ends by itself; a flow that it misses because the agent is stopped ends at the next start.
        tokio::task::spawn_blocking(move || {
            let denied = |connection: &dump::Connection| {
                let sources = by_index.get(&connection.service);
                sources.is_some_and(|sources| !sources.admits(connection.client.ip()))
            };
            match dump::end(&views, &clock, denied) {
                Ok(0) => {}
                Ok(ended) => {
                    tracing::info!("{ended} connections of clients that are not admitted have ended")
                }
                Err(error) => tracing::error!("end the connections of denied clients: {error}"),
            }
        });
    }
}
