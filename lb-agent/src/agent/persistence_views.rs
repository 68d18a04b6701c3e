//! Clients that keep their real servers, for the operator.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::Agent;
use crate::control::Refusal;
use crate::control::views::PersistenceView;
use crate::dataplane::dump::{self, StickyClient, Template};
use crate::model::Kind;

impl Agent {
    pub(super) fn persistence(
        &self,
        limit: usize,
        service: Option<String>,
        reply: oneshot::Sender<Result<Vec<PersistenceView>, Refusal>>,
    ) {
        let tables = self.applier.tables();
        if let Some(name) = &service
            && tables.service(name).is_none()
        {
            let _ = reply.send(Err(Refusal::Missing { object: format!("{}/{name}", Kind::VirtualService) }));
            return;
        }
        // An endpoint is shown as its service.
        let names: BTreeMap<u32, String> = tables
            .service_names()
            .filter_map(|name| {
                let service = name.split_once('/').map_or(name, |(service, _)| service);
                Some((tables.service(name)?, service.to_owned()))
            })
            .collect();
        let (views, clock) = (self.dataplane.views(), self.dataplane.clock());
        // Ends by itself; nobody waits for it but the receiver of the reply.
        tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            let result = dump::templates(&views, &clock, |template| {
                let name = names.get(&template.group).cloned().unwrap_or_default();
                if service.as_ref().is_none_or(|service| *service == name) {
                    let record = views.services.get(template.group);
                    found.push(view(&template, name, (record.persist_v4, record.persist_v6)));
                }
                found.len() < limit
            });
            let failed = |error: crate::dataplane::Error| Refusal::Failed {
                step: "read the connection table".into(),
                cause: error.to_string(),
            };
            let _ = reply.send(result.map(|()| found).map_err(failed));
        });
    }
}

fn view(template: &Template, service: String, prefixes: (u8, u8)) -> PersistenceView {
    let client = match template.client {
        StickyClient::Prefix(client) => {
            let prefix = if client.is_ipv4() { prefixes.0 } else { prefixes.1 };
            format!("{client}/{prefix}")
        }
        StickyClient::Call => String::new(),
    };
    PersistenceView {
        service,
        client,
        real_server: template.real_server,
        expires_in: template.expires_in.as_secs(),
    }
}
