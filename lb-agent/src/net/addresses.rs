//! Addresses that the agent puts on interfaces and takes away again. Each carries the agent's `IFA_PROTO`, and what
//! does not carry it is never touched.

use std::net::IpAddr;

use anyhow::{Context, Result, anyhow};
use futures_util::StreamExt;
use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;

use super::{HostAddress, Net, messages};

/// What [`Net::add_address`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddOutcome {
    Added,
    /// The interface has it, with this or another prefix length; `ours`: an earlier run of the agent added it.
    AlreadyThere {
        ours: bool,
    },
}

/// What [`Net::remove_address`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveOutcome {
    Removed,
    /// Somebody else's: left where it is.
    NotOurs,
    NotThere,
}

/// An address that the agent added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnAddress {
    pub interface: String,
    pub address: IpNet,
}

impl Net {
    /// Puts an address on an interface, without duplicate address detection. A VIP is given with /32 or /128, so
    /// that it is nobody's primary address and brings no route.
    ///
    /// # Errors
    /// An interface that does not exist; the kernel's refusal.
    pub async fn add_address(&self, interface: &str, address: IpNet) -> Result<AddOutcome> {
        let what = || format!("add {address} to {interface}");
        let index = self.link(interface).await.with_context(what)?.index;
        if let Some(there) = self.address_on(index, address.addr()).await.with_context(what)? {
            return Ok(AddOutcome::AlreadyThere { ours: there.ours });
        }
        let message = RouteNetlinkMessage::NewAddress(messages::own_address(
            index,
            address,
            messages::ADDRESS_PROTOCOL,
        ));
        match self.request(message, NLM_F_CREATE | NLM_F_EXCL).await {
            Ok(()) => Ok(AddOutcome::Added),
            Err(libc::EEXIST) => Ok(AddOutcome::AlreadyThere { ours: false }),
            Err(errno) => Err(anyhow!(std::io::Error::from_raw_os_error(errno)).context(what())),
        }
    }

    /// Takes an address of ours away from an interface, whatever its prefix length. An address without our
    /// `IFA_PROTO` stays.
    ///
    /// # Errors
    /// An interface that does not exist; the kernel's refusal.
    pub async fn remove_address(&self, interface: &str, address: IpAddr) -> Result<RemoveOutcome> {
        let what = || format!("remove {address} from {interface}");
        let index = self.link(interface).await.with_context(what)?.index;
        let there = match self.address_on(index, address).await.with_context(what)? {
            None => return Ok(RemoveOutcome::NotThere),
            Some(there) if !there.ours || there.vrrp => return Ok(RemoveOutcome::NotOurs),
            Some(there) => there,
        };
        let message = RouteNetlinkMessage::DelAddress(messages::own_address(
            index,
            there.address,
            messages::ADDRESS_PROTOCOL,
        ));
        match self.request(message, 0).await {
            Ok(()) => Ok(RemoveOutcome::Removed),
            Err(libc::EADDRNOTAVAIL) => Ok(RemoveOutcome::NotThere),
            Err(errno) => Err(anyhow!(std::io::Error::from_raw_os_error(errno)).context(what())),
        }
    }

    /// All addresses that carry our `IFA_PROTO`, also those of earlier runs; not those of VRRP instances.
    ///
    /// # Errors
    /// The kernel's refusal to list interfaces or addresses.
    pub async fn list_own_addresses(&self) -> Result<Vec<OwnAddress>> {
        let links = self.links().await?;
        let name = |index| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
        let addresses = self.addresses().await?.into_iter().filter(|address| address.ours && !address.vrrp);
        let own = addresses.filter_map(|address| {
            Some(OwnAddress { interface: name(address.ifindex)?, address: address.address })
        });
        Ok(own.collect())
    }

    /// The entry of an address on an interface; ours first, should there be two with different prefixes.
    async fn address_on(&self, ifindex: u32, address: IpAddr) -> Result<Option<HostAddress>> {
        let addresses = self.addresses().await?.into_iter();
        let there = addresses.filter(|there| there.ifindex == ifindex && there.address.addr() == address);
        Ok(there.max_by_key(|there| there.ours))
    }

    /// Sends one request; an error is the kernel's number.
    pub(super) async fn request(&self, message: RouteNetlinkMessage, flags: u16) -> Result<(), i32> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = Handle::clone(&self.handle).request(request).map_err(|_| libc::EPIPE)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(error.raw_code().abs());
            }
        }
        Ok(())
    }
}
