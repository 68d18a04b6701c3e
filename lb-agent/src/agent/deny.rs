//! Flows of clients that a service's sources no longer admit end once the new list is in the tables. New flows are
//! asked by the data plane; the table is walked here, beside the agent's task.

use std::collections::BTreeMap;

use super::Agent;
use crate::dataplane::dump;
use crate::model::{Name, Sources};
use crate::plan::{Layout, Step};

/// The services of a plan whose sources are not those that were done, with the new ones.
pub(super) fn newly_denied(steps: &[Step], done: &Layout) -> Vec<(Name, Sources)> {
    let changed = steps.iter().filter_map(|step| match step {
        Step::SetService { name, service, .. } => {
            let sources = &service.rules.sources;
            let before = done.services.get(name).map(|layout| &layout.service.rules.sources);
            (!sources.is_empty() && before != Some(sources)).then(|| (name.clone(), Sources::clone(sources)))
        }
        _ => None,
    });
    changed.collect()
}

impl Agent {
    /// Ends the flows of clients that are not admitted. Those to other services go on.
    pub(super) fn end_denied(&self, changed: Vec<(Name, Sources)>) {
        let tables = self.applier.tables();
        let by_index: BTreeMap<u32, Sources> = changed
            .into_iter()
            .filter_map(|(name, sources)| Some((tables.service(&name)?, sources)))
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
