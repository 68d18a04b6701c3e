//! The agent itself.

use std::fmt;

use super::AgentFacts;
use super::families::Families;

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
        interfaces.map(|(name, mode)| ([("interface", name.as_str()), ("mode", mode.as_str())], 1_u32)),
    )
}
