//! The clsact qdisc, which the agent makes where the kernel has no tcx links.

use anyhow::{Context, Result, anyhow};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle};

use super::Net;

impl Net {
    /// Removes an interface's clsact qdisc, unless somebody has a filter on it. True: there is none any more, or it is
    /// of another kind; nobody has to come again.
    ///
    /// # Errors
    /// The kernel's refusal to list filters, or to remove the qdisc.
    pub async fn remove_idle_clsact(&self, ifindex: u32) -> Result<bool> {
        let _turn = self.handle.turn_to_list().await;
        for egress in [false, true] {
            let question = self.handle.traffic_filter(ifindex as i32).get();
            let question = if egress { question.egress() } else { question.ingress() };
            let filters: Result<Vec<_>, _> = question.execute().try_collect().await;
            match filters {
                Ok(filters) if filters.is_empty() => {}
                Ok(_) => return Ok(false),
                // The qdisc is gone, or its interface.
                Err(error) if is(&error, &[libc::EINVAL, libc::ENODEV, libc::ENOENT]) => return Ok(true),
                Err(error) => return Err(anyhow!(error).context("list the filters of an interface")),
            }
        }
        let mut request = self.handle.qdisc().del(ifindex as i32);
        let message = request.message_mut();
        message.header.parent = CLSACT;
        // One of another kind in its place is refused (EINVAL).
        message.attributes.push(TcAttribute::Kind("clsact".into()));
        match request.execute().await {
            Err(error) if !is(&error, &[libc::EINVAL, libc::ENODEV, libc::ENOENT]) => {
                Err(error).context("remove a clsact qdisc")
            }
            _ => Ok(true),
        }
    }
}

fn is(error: &rtnetlink::Error, numbers: &[i32]) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if numbers.contains(&message.raw_code().abs()))
}

/// `TC_H_CLSACT`.
const CLSACT: TcHandle = TcHandle { major: 0xffff, minor: 0xfff1 };
