//! The agent itself.

use std::fmt;

use super::AgentFacts;
use super::families::Families;
use crate::model::LinkTraffic;

pub fn write(to: &mut Families<'_>, agent: &AgentFacts) -> Result<(), fmt::Error> {
    let AgentFacts { version, director, kernel, .. } = agent;
    let labels = [("version", version.as_str()), ("director", director), ("kernel", kernel)];
    to.info("build", "The agent's version, the Director's name and the kernel.", labels)?;
    to.seconds("start_time", "When the agent started, since 1970.", agent.started)?;
    to.gauge(
        "generation",
        "How often this run of the agent has taken up other objects, by orders or files.",
        agent.generation,
    )?;
    to.gauge(
        "plan_unfinished",
        "1: the last plan did not come to its end and is tried again each second.",
        u32::from(agent.unfinished),
    )?;
    to.gauge(
        "problems",
        "Sentences in `get status` about what is not as it should be.",
        agent.problems as u64,
    )?;
    to.counter("events", "Events so far, over restarts of the agent.", agent.events)?;
    let interfaces = agent.interfaces.iter();
    to.gauges(
        "interface_xdp",
        "How the program is attached to an interface: native, generic or none.",
        interfaces.map(|each| ([("interface", each.name.as_str()), ("mode", each.mode.as_str())], 1_u32)),
    )?;
    for (name, help, of) in COUNTED {
        let known = agent.interfaces.iter().filter_map(|each| Some((each.name.as_str(), each.frames?)));
        let samples = known.flat_map(|(interface, frames)| {
            [("received", frames.received), ("sent", frames.sent)].map(|(direction, counted)| {
                ([("interface", interface), ("direction", direction)], of(&counted))
            })
        });
        to.counters(name, help, None, samples)?;
    }
    Ok(())
}

/// What is counted of an interface, by the kernel.
type Counted = (&'static str, &'static str, fn(&LinkTraffic) -> u64);
const COUNTED: [Counted; 4] = [
    ("interface_packets", "Frames of an interface by the kernel's count, forwarded ones among them.", |d| {
        d.packets
    }),
    ("interface_bytes", "Bytes of an interface by the kernel's count.", |d| d.bytes),
    ("interface_dropped", "Frames that an interface had no room for.", |d| d.dropped),
    ("interface_errors", "Frames that an interface could not receive or send.", |d| d.errors),
];
