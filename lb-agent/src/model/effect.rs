//! Which changes a running agent takes up, and which wait for its next start.

use super::Kind;

/// When a changed field counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// At once.
    Live,
    /// When the agent is started again (which loses no packet).
    Restart,
}

impl Effect {
    pub fn as_str(self) -> &'static str {
        match self {
            Effect::Live => "live",
            Effect::Restart => "restart",
        }
    }
}

/// The effect of changing the field at `path` (as in a diagnostic: `spec.connections.max`, or any field
/// below one: `spec.interfaces[0].xdp`) of an object of `kind`.
pub fn field_effect(kind: Kind, path: &str) -> Effect {
    let below = |field: &str| {
        path.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    if kind == Kind::Director && RESTART.iter().any(|field| below(field)) {
        Effect::Restart
    } else {
        Effect::Live
    }
}

/// The director's fields that decide what is attached, how large the tables are, where probes begin and what the
/// program is loaded with.
const RESTART: [&str; 7] = [
    "metadata.name",
    "spec.interfaces",
    "spec.connections",
    "spec.capacity",
    "spec.realPath",
    "spec.tunnelSources",
    "spec.packets",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_sizes_tables_or_attaches_needs_a_restart() {
        for (kind, path, effect) in [
            (Kind::Director, "spec.connections.max", Effect::Restart),
            (Kind::Director, "spec.interfaces[0].xdp", Effect::Restart),
            (Kind::Director, "spec.interfaces", Effect::Restart),
            (Kind::Director, "spec.capacity.services", Effect::Restart),
            (Kind::Director, "spec.shutdown.wait", Effect::Live),
            (Kind::Director, "spec.metrics.listen", Effect::Live),
            (Kind::Director, "spec.interfacesX", Effect::Live),
            (Kind::VirtualService, "spec.realServers[0].weight", Effect::Live),
            (Kind::LocalAddressPool, "spec.addresses", Effect::Live),
        ] {
            assert_eq!(field_effect(kind, path), effect, "{path}");
        }
    }
}
