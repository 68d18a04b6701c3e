//! What health makes of a service's servers, as the layout needs it.

use crate::health::Judgement;
use crate::model::VirtualService;
use crate::model::health::Flows;

/// The servers of a service, in the order of its manifest.
pub struct Verdicts {
    pub servers: Vec<Verdict>,
    /// The sorry server takes all new connections.
    pub sorry: bool,
}

/// One server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    pub takes_new: bool,
    /// Its share of the table. That of a server which is out is its place, which others fill.
    pub weight: u16,
    pub flows: Flows,
}

/// By the last judgement. A server on which there is none is in if nothing checks it.
pub fn verdicts(judgement: Option<&Judgement>, service: &VirtualService) -> Verdicts {
    let weights = judgement.map(Judgement::weights).unwrap_or_default();
    let of = |(at, server): (usize, &crate::model::RealServer)| {
        let key = service.key_of(server);
        let judged = judgement.map_or(&[][..], |judgement| &judgement.servers);
        // In the same order, unless the judgement is on the manifest of a moment ago.
        let here = judged.get(at).is_some_and(|verdict| verdict.key == key);
        let at = if here { Some(at) } else { judged.iter().position(|verdict| verdict.key == key) };
        match at {
            Some(at) => Verdict {
                takes_new: judged[at].standing.takes_new(),
                weight: weights[at],
                flows: judged[at].flows,
            },
            None => Verdict {
                takes_new: service.health.checks_of(server).is_empty(),
                weight: server.weight,
                flows: Flows::Stay,
            },
        }
    };
    Verdicts {
        servers: service.real_servers.iter().enumerate().map(of).collect(),
        sorry: service.health.sorry_server.is_some() && judgement.is_some_and(|judgement| judgement.sorry),
    }
}
