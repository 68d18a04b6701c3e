//! `cargo xtask differential`: the data plane beside its reference model for as many packets as one likes, and the proof
//! that the comparison would notice: bugs are seeded into copies of the source, each must be found.
//!
//! A seeded bug is a replacement of one piece of text in a copy of `lb-ebpf` and `lb-common` below the target directory.
//! Nothing of it is in the repository's data plane, so it cannot be switched on in what is shipped; a text that is
//! no longer there exactly once is an error that names the bug.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{cargo, need_root, run as run_command, step};
use crate::setup;

#[derive(clap::Args)]
pub struct Args {
    /// How many packets
    #[arg(long, default_value_t = 100_000_000, value_name = "NUMBER")]
    packets: u64,
    /// The seed [default: the time]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Seed bugs into the data plane, one after the other, and require that each is found
    #[arg(long)]
    seeded_bugs: bool,
    /// With --seeded-bugs: only those whose name contains it
    #[arg(long, value_name = "PART", requires = "seeded_bugs")]
    only: Option<String>,
}

/// Packets from which on a run is long.
const LONG: u64 = 10_000_000;

/// Packets within which a seeded bug has to be found.
const WITHIN: u64 = 1_000_000;

/// A bug: its name, the file, what stands there once, and what is put in its place.
type Bug = (&'static str, &'static str, &'static str, &'static str);

/// Of every part of the way: parsing, states, times, the table, schedulers, rewriting, answers.
const BUGS: &[Bug] = &[
    (
        "a SYN sent again takes another turn of the scheduler",
        "lb-ebpf/src/new_flow.rs",
        "if syn && flow::starts_anew(hit.value.state(), direction, packet.protocol()) {",
        "if syn && (hit.value.state() == State::SynReceived as u8 || flow::starts_anew(hit.value.state(), direction, packet.protocol())) {",
    ),
    (
        "a SYN sent again leaves a draining server",
        "lb-ebpf/src/new_flow.rs",
        "syn && !flow::is_beginning(state, packet.protocol())",
        "syn",
    ),
    (
        "the lease of a flow that begins anew is not given back",
        "lb-ebpf/src/new_flow.rs",
        "&& let Some(lease) = leased",
        "&& let Some(lease) = leased.filter(|_| false)",
    ),
    (
        "a SYN in TIME_WAIT does not begin anew",
        "lb-common/src/state.rs",
        "state == TW || state == CL || state == LA ||",
        "state == CL || state == LA ||",
    ),
    (
        "an entry outlives its deadline by a tick",
        "lb-common/src/connection.rs",
        "(now.wrapping_sub(self.deadline()) as i16) >= 0",
        "(now.wrapping_sub(self.deadline()) as i16) > 0",
    ),
    (
        "the twin of a NAT flow is not stepped by a reply",
        "lb-ebpf/src/forward/nat.rs",
        "write_twin::<V6>(&flow, new, now, target.index);",
        "write_twin::<V6>(&flow, new, now, !target.index);",
    ),
    (
        "a confirmed UDP flow may be evicted",
        "lb-common/src/connection.rs",
        "if self.is_sctp() { 0 } else { 1 << State::Udp as u32 };",
        "if self.is_sctp() { 0 } else { 0 };",
    ),
    (
        "the last free slot of a bucket is not left to others",
        "lb-ebpf/src/connection.rs",
        "if room <= 1 {",
        "if room == 0 {",
    ),
    (
        "a packet of exactly the MTU does not fit",
        "lb-ebpf/src/forward/mod.rs",
        "if packet.ip_len() > mtu {",
        "if packet.ip_len() >= mtu {",
    ),
    (
        "a TTL of 1 is forwarded",
        "lb-ebpf/src/forward/mod.rs",
        "if packet.ttl() <= 1 && !target.is_local() {",
        "if packet.ttl() < 1 && !target.is_local() {",
    ),
    (
        "the hash takes the port where it must not",
        "lb-ebpf/src/schedule.rs",
        "let port = if pick == Pick::HashAddressPort as u8 {",
        "let port = if pick != Pick::HashAddressPort as u8 {",
    ),
    (
        "a UDP packet without checksum gets one",
        "lb-ebpf/src/packet.rs",
        "checksum::update_udp(load16(self.transport, 6), delta)",
        "checksum::update(load16(self.transport, 6), delta)",
    ),
    (
        "an MSS option at an odd byte is summed straight",
        "lb-ebpf/src/mss.rs",
        "(old.swap_bytes(), new.swap_bytes())",
        "(old, new)",
    ),
    (
        "a packet of the other protocol passes through a lease",
        "lb-ebpf/src/forward/fullnat.rs",
        " || !same {",
        " {",
    ),
    (
        "the tunnel forgets DF",
        "lb-ebpf/src/forward/tun.rs",
        "load16(packet.ip, 6) & u16::to_be(0x4000)",
        "load16(packet.ip, 6) & u16::to_be(0x2000)",
    ),
    (
        "a RST does not acknowledge a FIN",
        "lb-ebpf/src/reset.rs",
        " + (flags & FIN != 0) as u32",
        " + (flags & FIN > 1) as u32",
    ),
    (
        "an answer carries the sender's VLAN priority",
        "lb-ebpf/src/nexthop.rs",
        "load16(p, 14) & 0x0fff_u16.to_be()",
        "load16(p, 14) & 0xffff_u16.to_be()",
    ),
    (
        "a later fragment may begin inside the first",
        "lb-ebpf/src/fragment.rs",
        "if piece.offset < first.end as u32 &&",
        "if piece.offset + 8 < first.end as u32 &&",
    ),
    (
        "a piece in the middle may end anywhere",
        "lb-ebpf/src/fragment.rs",
        "piece.more && carried & 7 != 0",
        "piece.more && carried & 3 != 0",
    ),
    (
        "a first fragment may be without its whole TCP header",
        "lb-ebpf/src/fragment.rs",
        "if carried < need as u32 {",
        "if carried < 8 {",
    ),
    (
        "first fragments are remembered for ever",
        "lb-ebpf/src/fragment.rs",
        "now.wrapping_sub(first.since) > HOLDS",
        "now.wrapping_sub(first.since) > 1000 * HOLDS",
    ),
    (
        "later fragments tell of their hops",
        "lb-ebpf/src/fragment.rs",
        "return Err(Reason::IcmpTtlExpired);",
        "return Err(answer::time_exceeded(packet, target.vip::<V6>()));",
    ),
    (
        "an ICMPv6 checksum forgets that it covers the addresses",
        "lb-ebpf/src/quote.rs",
        "let total = if V6 { total + delta } else { total };",
        "let total = total + delta * 0;",
    ),
    (
        "a quoted TCP checksum that is cut is taken for whole",
        "lb-ebpf/src/quote.rs",
        "quote.l4 + 18 <= quote.end",
        "quote.l4 + 16 <= quote.end",
    ),
    (
        "a quoted UDP packet without checksum gets one",
        "lb-ebpf/src/quote.rs",
        "checksum::update_udp(load16(transport, 6), delta)",
        "checksum::update(load16(transport, 6), delta)",
    ),
    (
        "an error to a client says who is behind the VIP",
        "lb-ebpf/src/related.rs",
        "translate(packet, quote, inner, (vip, client))",
        "translate(packet, quote, inner, (packet.source(), client))",
    ),
    ("seven quoted bytes are enough", "lb-ebpf/src/quote.rs", "if at + 8 > end {", "if at + 7 > end {"),
    (
        "a client of a tunnel is told its outer MTU",
        "lb-ebpf/src/tunnel_mtu.rs",
        "let mtu = mtu - tunnel_overhead(V6) as u32 - between as u32;",
        "let mtu = mtu - between as u32;",
    ),
    (
        "a router may say any MTU",
        "lb-ebpf/src/tunnel_mtu.rs",
        "let mtu = if said < least { least } else { said };",
        "let mtu = if said < 68 { least } else { said };",
    ),
    (
        "an announcement is taken for a question",
        "lb-ebpf/src/arp.rs",
        "if sender == target {",
        "if sender == !target {",
    ),
    (
        "an advertisement is taken for a solicitation",
        "lb-ebpf/src/nd.rs",
        "if kind != nd::NEIGHBOUR_SOLICITATION {",
        "if kind != nd::NEIGHBOUR_SOLICITATION && kind != nd::NEIGHBOUR_ADVERTISEMENT {",
    ),
    (
        "who is on no list of who may come comes",
        "lb-ebpf/src/limits.rs",
        "access == ACL_DENY || (access != ACL_ALLOW && features",
        "access == ACL_DENY || (access > ACL_DENY && features",
    ),
    (
        "the last new flow of a second is refused",
        "lb-ebpf/src/limits.rs",
        "(atomic::fetch_add(word, 1) as u32) < limit",
        "(atomic::fetch_add(word, 1) as u32) + 1 < limit",
    ),
    (
        "a template that is used again gets more time",
        "lb-ebpf/src/persistence.rs",
        "State::Established as u8, hit.value.deadline())",
        "State::Established as u8, hit.value.deadline() + 1)",
    ),
    (
        "a template leads to a server of weight 0",
        "lb-ebpf/src/persistence.rs",
        "if weight == 0 && features & features::STICKY_QUIESCED == 0 {",
        "if weight > 9 && features & features::STICKY_QUIESCED == 0 {",
    ),
    (
        "sed forgets the flow that it places",
        "lb-ebpf/src/walk.rs",
        "SED => (active + 1, weight),",
        "SED => (active, weight),",
    ),
    (
        "a full server is relieved too early",
        "lb-common/src/load.rs",
        "total * 4 < upper as u64 * 3",
        "total * 4 <= upper as u64 * 3",
    ),
    (
        "what is over and makes room is still counted",
        "lb-ebpf/src/connection.rs",
        "if !victim.is_empty() && matches!(victim.kind(), Kind::Flow) {",
        "if !victim.is_expired(now) && !victim.is_empty() && matches!(victim.kind(), Kind::Flow) {",
    ),
    (
        "a RST moves a flow to another server",
        "lb-ebpf/src/new_flow.rs",
        "// A RST opens nothing: it ends the flow where it is.\n            !packet.resets()",
        "// A RST opens nothing: it ends the flow where it is.\n            true",
    ),
    (
        "later fragments go another path of a tunnel",
        "lb-ebpf/src/fragment.rs",
        "tun::encapsulate(packet, &target, ports, event)",
        "tun::encapsulate(packet, &target, 0, event)",
    ),
    (
        "a client is told no room for GUE and GRE",
        "lb-ebpf/src/tunnel_mtu.rs",
        "tunnel_overhead(V6) as u32 - between as u32;",
        "tunnel_overhead(V6) as u32;",
    ),
    (
        "GUE comes from any port",
        "lb-ebpf/src/tunnel.rs",
        "let port = gue::FIRST_SOURCE_PORT | entropy as u16",
        "let port = gue::FIRST_SOURCE_PORT / 2 | entropy as u16",
    ),
    (
        "a datagram passes through the lease of a shifted flow",
        "lb-ebpf/src/forward/fullnat.rs",
        "if !SHIFTED && !packet.udp && !packet.sctp && shifted::is_extended(lease.word) {",
        "if !SHIFTED && shifted::is_extended(lease.word) {",
    ),
    (
        "a PROXY header rides on the client's second segment too",
        "lb-ebpf/src/proxy.rs",
        "&& sequence == shifts.client_first.wrapping_add(1)",
        "&& sequence.wrapping_sub(shifts.client_first) < 3",
    ),
    (
        "an edge of a selective acknowledgement loses a bit",
        "lb-ebpf/src/options.rs",
        "shift.back(base, u32::from_be(load32(option, 0))).to_be()",
        "shift.back(base, u32::from_be(load32(option, 0))).to_be() & 0xfeffffff",
    ),
    (
        "an acknowledgement inside the header is taken for all of it",
        "lb-common/src/extension.rs",
        "if is_after(all, number) { self }",
        "if is_after(all, number.wrapping_add(20)) { self }",
    ),
    (
        "a backup answers an echo",
        "lb-ebpf/src/echo.rs",
        "    may_serve(to.vrrp)?;\n    // An answer",
        "    // An answer",
    ),
    (
        "what the kernel is to fragment has the real server's MAC",
        "lb-ebpf/src/tunnel.rs",
        "hop = nexthop::here(&frame, l3).ok_or(Reason::Internal)?;",
        "hop = Hop { ifindex: nexthop::here(&frame, l3).ok_or(Reason::Internal)?.ifindex, ..hop };",
    ),
    (
        "a quoted number is left as the server counts",
        "lb-ebpf/src/renumber.rs",
        "(shifts.client.back(shifts.client_base, sequence), acknowledged)",
        "(sequence, acknowledged)",
    ),
];

pub fn run(args: &Args) -> Result<()> {
    need_root("the differential test")?;
    setup::ensure(setup::TOOLCHAIN)?;
    let seed = match args.seed {
        Some(seed) => seed,
        None => std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos() as u64,
    };
    let test = |packets: u64| {
        let mut command = cargo();
        command
            .args(["test", "--package", "lb-tests", "--test", "packet"])
            // A long run is worth a slower build: a third of the time.
            .args(if packets > LONG {
                &["--config", "profile.dev.package.lb-tests.opt-level=3"][..]
            } else {
                &[]
            })
            .arg("--")
            .args(["--exact", "differential::the_data_plane_does_what_the_model_says", "--nocapture"])
            .env("LB_DIFFERENTIAL_PACKETS", packets.to_string())
            .env("LB_DIFFERENTIAL_SEED", seed.to_string());
        command
    };
    if !args.seeded_bugs {
        step(format!("{} packets beside the model, seed {seed}", args.packets));
        return run_command(&mut test(args.packets));
    }
    let bugs: Vec<&Bug> = BUGS
        .iter()
        .filter(|bug| args.only.as_ref().is_none_or(|part| bug.0.contains(part.as_str())))
        .collect();
    ensure!(!bugs.is_empty(), "no seeded bug has that in its name");
    step("building the packet tests");
    run_command(cargo().args(["test", "--package", "lb-tests", "--test", "packet", "--no-run"]))?;
    let mut missed = Vec::new();
    for bug in &bugs {
        let object = object_with(bug).with_context(|| format!("seed: {}", bug.0))?;
        let began = Instant::now();
        let ended = test(WITHIN)
            .env("LB_DIFFERENTIAL_OBJECT", &object)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .output()
            .context("start cargo")?;
        let said = [ended.stdout, ended.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let found = said.lines().find_map(|line| {
            line.split_once("MISMATCH within ").and_then(|(_, rest)| rest.split_once(" packets"))
        });
        match found {
            Some((packets, _)) => {
                println!("{packets:>8} packets, {:>3} s: {}", began.elapsed().as_secs(), bug.0);
            }
            None if ended.status.success() => {
                println!("  MISSED in {WITHIN} packets: {}", bug.0);
                missed.push(bug.0);
            }
            None => bail!("{}: the test failed for another reason:\n{said}", bug.0),
        }
    }
    ensure!(missed.is_empty(), "{} of {} seeded bugs were not found: {missed:?}", missed.len(), bugs.len());
    step(format!("each of {} seeded bugs was found", bugs.len()));
    Ok(())
}

/// Builds the data plane from a copy of its source with a bug in it.
fn object_with(bug: &Bug) -> Result<PathBuf> {
    let (name, file, from, to) = bug;
    let tree = xtask::target_dir().join("differential");
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("empty {}", tree.display()))?;
    }
    for directory in ["lb-ebpf", "lb-common"] {
        copy(&xtask::root().join(directory), &tree.join(directory))?;
    }
    // What lb-common inherits from the workspace, which is not copied with it.
    let manifest = fs::read_to_string(xtask::root().join("Cargo.toml")).context("read Cargo.toml")?;
    let members =
        manifest.lines().find(|line| line.starts_with("members")).context("members in Cargo.toml")?;
    let defaults = manifest.lines().find(|line| line.starts_with("default-members"));
    let manifest =
        manifest.replace(defaults.unwrap_or("\0"), "").replace(members, "members = [\"lb-common\"]");
    fs::write(tree.join("Cargo.toml"), manifest).context("write Cargo.toml")?;
    let path = tree.join(file);
    let source = fs::read_to_string(&path).with_context(|| format!("read {file}"))?;
    let times = source.matches(from).count();
    ensure!(
        times == 1,
        "{file} has {times} times: {from}\nadapt the seeded bug in xtask/src/differential.rs"
    );
    fs::write(&path, source.replace(from, to)).with_context(|| format!("write {}", path.display()))?;
    step(name);
    Ok(xtask::ebpf::build_from(&tree, &[], &tree.join("objects"))?.path("lb")?.to_owned())
}

/// Copies a directory, but for what a build left there.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let (path, copied) = (entry.path(), to.join(entry.file_name()));
        if entry.file_name() == "target" {
            continue;
        }
        if path.is_dir() {
            copy(&path, &copied)?;
        } else {
            fs::copy(&path, &copied).with_context(|| format!("copy {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seeded_bug_still_fits_the_source() {
        for (name, file, from, to) in BUGS {
            let source = fs::read_to_string(xtask::root().join(file)).unwrap();
            assert_eq!(source.matches(from).count(), 1, "{name}: adapt it in xtask/src/differential.rs");
            assert_ne!(from, to, "{name}");
        }
        assert!(BUGS.len() >= 10);
    }
}
