//! The ways back to clients, for NAT and FULLNAT.

use super::{super::Error, Tables};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_common::{connection::HOP_ON_LINK, maps::ON_LINK};
use std::collections::BTreeMap;

/// How clients in a prefix are reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientVia {
    /// They are on a directly attached segment: the data plane learns their MACs from their frames.
    OnLink,
    /// Through the next hop with this index, of a key `for_clients`.
    NextHop(u32),
}

impl Tables {
    /// Makes the client routes these and no others; host bits of a prefix are ignored. New ones come before old
    /// ones go.
    pub fn set_client_routes(&mut self, routes: &[(IpNet, ClientVia)]) -> Result<(), Error> {
        let mut wanted = BTreeMap::new();
        for (prefix, via) in routes {
            let value = match *via {
                ClientVia::OnLink => ON_LINK,
                ClientVia::NextHop(index) if (1..HOP_ON_LINK as u32).contains(&index) => index,
                ClientVia::NextHop(index) => {
                    return Err(Error::Refused(format!(
                        "client route {prefix}: next hop {index} is not one for clients (1 to 254)"
                    )));
                }
            };
            wanted.insert(prefix.trunc(), value);
        }
        for (prefix, value) in &wanted {
            if self.routes.get(prefix) != Some(value) {
                match prefix {
                    IpNet::V4(net) => self.stores.routes4.insert(key4(net), *value)?,
                    IpNet::V6(net) => self.stores.routes6.insert(key6(net), *value)?,
                }
                self.routes.insert(*prefix, *value);
                self.writes += 1;
            }
        }
        let old: Vec<_> = self.routes.keys().filter(|prefix| !wanted.contains_key(prefix)).copied().collect();
        for prefix in old {
            match &prefix {
                IpNet::V4(net) => self.stores.routes4.remove(&key4(net))?,
                IpNet::V6(net) => self.stores.routes6.remove(&key6(net))?,
            }
            self.routes.remove(&prefix);
            self.writes += 1;
        }
        Ok(())
    }

    pub(super) fn recover_routes(&mut self) -> Result<(), Error> {
        for ((len, octets), value) in self.stores.routes4.entries()? {
            if let Ok(net) = Ipv4Net::new(octets.into(), len as u8) {
                self.routes.insert(net.into(), value);
            }
        }
        for ((len, octets), value) in self.stores.routes6.entries()? {
            if let Ok(net) = Ipv6Net::new(octets.into(), len as u8) {
                self.routes.insert(net.into(), value);
            }
        }
        Ok(())
    }
}

fn key4(net: &Ipv4Net) -> (u32, [u8; 4]) {
    (net.prefix_len() as u32, net.network().octets())
}

fn key6(net: &Ipv6Net) -> (u32, [u8; 16]) {
    (net.prefix_len() as u32, net.network().octets())
}
