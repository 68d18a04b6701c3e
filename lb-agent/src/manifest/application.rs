//! `application` of a virtual service: the protocol inside its connections that the data plane reads, and what it asks
//! of the rest of the service.

use super::reader::{Faults, Map};
use super::{FORWARDING, word_of};
use crate::model::{Application, Forwarding, Protocol, RealServer, Timeouts, VirtualService};

pub const APPLICATIONS: [(&str, Application); 1] = [("ftp", Application::Ftp)];

pub fn decode(spec: &mut Map<'_>, faults: &mut Faults) -> Option<Application> {
    spec.get("application").and_then(|field| field.one_of(&APPLICATIONS, faults))
}

/// The timeouts of a service that does not say others. A control channel is silent while a file is on its way.
pub fn timeouts(application: Option<Application>) -> Timeouts {
    match application {
        Some(Application::Ftp) => Timeouts { established: Timeouts::MAX, ..Timeouts::default() },
        None => Timeouts::default(),
    }
}

pub fn check(service: &VirtualService, servers: &[(String, RealServer)], faults: &mut Faults) {
    let Some(Application::Ftp) = service.application else { return };
    const AT: &str = "spec.application";
    if service.speaks(Protocol::Udp) || service.speaks(Protocol::Sctp) {
        faults.add(AT, "ftp speaks tcp only");
    }
    if let Some(method) = [Forwarding::Dr, Forwarding::Tun].into_iter().find(|method| service.uses(*method)) {
        let method = word_of(&FORWARDING, method);
        let fault = faults.add(AT, format!("under {method} the replies of ftp do not pass the director"));
        fault.help("leave it out and let persistence on `ports: any` keep a client's connections together");
    }
    if service.scheduling.proxy_protocol {
        faults.add(AT, "ftp is not read behind a PROXY header").help("leave `proxyProtocol` out");
    }
    let singles = service.singles();
    if singles.iter().any(|single| single.ports.single().is_none()) {
        let fault = faults.add(AT, "ftp wants exactly one port at each address, that of the control channel");
        fault.help("data connections are expected on other ports without being listed");
        return;
    }
    for (path, server) in servers {
        let other =
            singles.iter().find(|single| server.port.is_some() && server.port != single.ports.single());
        if other.is_some() {
            let fault = faults.add(format!("{path}.port"), "ftp keeps the ports");
            fault.at_key(0).help("let the real server listen on the port of the service");
        }
    }
}
