//! What interfaces have received and sent, by the kernel's own count (`ip -s link`). Frames that the program forwarded are
//! among them: the driver counts before it runs the program, and where it sends.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};

use super::Net;
use crate::model::{LinkCounters, LinkTraffic};

impl Net {
    /// The counters of all interfaces, by name.
    ///
    /// # Errors
    /// The kernel's refusal to list them.
    pub async fn link_counters(&self) -> Result<BTreeMap<String, LinkCounters>> {
        let _turn = self.handle.turn_to_list().await;
        let messages: Vec<_> =
            self.handle.link().get().execute().try_collect().await.context("list interfaces")?;
        Ok(messages.iter().filter_map(counters).collect())
    }
}

fn counters(message: &LinkMessage) -> Option<(String, LinkCounters)> {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let stats = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(stats),
        _ => None,
    })?;
    let received = LinkTraffic {
        packets: stats.rx_packets,
        bytes: stats.rx_bytes,
        // What the card had no buffer for is counted apart (`rx_missed_errors`).
        dropped: stats.rx_dropped + stats.rx_missed_errors,
        errors: stats.rx_errors,
    };
    let sent = LinkTraffic {
        packets: stats.tx_packets,
        bytes: stats.tx_bytes,
        dropped: stats.tx_dropped,
        errors: stats.tx_errors,
    };
    Some((name, LinkCounters { received, sent }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::link::Stats64;

    #[test]
    fn an_interface_is_counted_both_ways_and_one_without_counters_is_left_out() {
        let mut stats = Stats64::default();
        (stats.rx_packets, stats.rx_bytes, stats.rx_dropped, stats.rx_missed_errors) = (7, 700, 1, 2);
        (stats.tx_packets, stats.tx_bytes, stats.tx_errors) = (5, 500, 3);
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName("eth0".into())];
        assert_eq!(counters(&message), None);
        message.attributes.push(LinkAttribute::Stats64(stats));
        let (name, counted) = counters(&message).expect("counters");
        assert_eq!(name, "eth0");
        assert_eq!(counted.received, LinkTraffic { packets: 7, bytes: 700, dropped: 3, errors: 0 });
        assert_eq!(counted.sent, LinkTraffic { packets: 5, bytes: 500, dropped: 0, errors: 3 });
    }
}
