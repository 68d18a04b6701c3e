//! What `up` did, kept in the state directory so that `check` knows what to look for and `down` undoes this
//! and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::dataplane::toa_reader::cgroup_root;

use super::cli::{Method, Tunnel, Wanted};
use super::sysctl::Change;

/// The record as it lies in `real-server.json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub interface: String,
    pub methods: BTreeSet<Method>,
    pub tunnel: Tunnel,
    pub vips: BTreeSet<IpAddr>,
    pub directors: BTreeSet<IpNet>,
    /// UDP ports at which GUE is unpacked.
    #[serde(default)]
    pub gue_ports: BTreeSet<u16>,
    /// fullnat: whose option about the client is read, and for whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toa: Option<Toa>,
    /// Sysctls that were changed, oldest value first written.
    pub sysctls: Vec<Change>,
    /// Kernel tunnel devices that were made.
    pub devices: BTreeSet<String>,
}

/// The reader of TOA.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Toa {
    /// Prefixes of pool addresses that are believed.
    pub from: BTreeSet<IpNet>,
    /// Whose programs see it; None: all that are in some cgroup of version 2.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
}

impl Toa {
    /// The directory of the cgroup.
    ///
    /// # Errors
    /// None was named, and none is mounted.
    pub fn place(&self) -> Result<PathBuf> {
        self.cgroup.clone().map_or_else(cgroup_root, Ok)
    }
}

impl Record {
    /// The record that `up` or `check` works with: what was set up before and what is wanted now. VIPs add up;
    /// directors, when given, replace the list.
    ///
    /// # Errors
    /// What cannot go together, in a sentence with the way out.
    pub fn merge(before: Option<Record>, wanted: &Wanted, default_interface: Option<String>) -> Result<Self> {
        let tunnelling =
            matches!(wanted.tunnel, Some(Tunnel::Bpf | Tunnel::Kernel)) || !wanted.gue_port.is_empty();
        // Under dr nobody asks who the directors are.
        let only_tun = tunnelling || !wanted.from.is_empty();
        let method = match (wanted.method, &before) {
            (Some(method), _) => Some(method),
            (None, _) if !wanted.toa_from.is_empty() && !only_tun => Some(Method::Fullnat),
            (None, None) if only_tun => Some(Method::Tun),
            (None, Some(before)) if tunnelling || only_tun && before.methods == [Method::Dr].into() => {
                Some(Method::Tun)
            }
            (None, Some(_)) => None,
            (None, None) => Some(Method::Dr),
        };
        if let Some(method) = method
            && method != Method::Tun
            && tunnelling
        {
            bail!(
                "--tunnel and --gue-port are for --method tun; under {} nothing is tunnelled",
                method.name()
            );
        }
        let tunnel_of = |method| match (wanted.tunnel, method) {
            (Some(tunnel), _) => tunnel,
            (None, Some(Method::Tun)) => Tunnel::Bpf,
            (None, _) => Tunnel::None,
        };
        let mut record = match before {
            None => {
                let Some(interface) = wanted.interface.clone().or(default_interface) else {
                    bail!(
                        "no default route tells the interface towards the director: name it with --interface"
                    );
                };
                Record {
                    interface,
                    methods: BTreeSet::new(),
                    tunnel: tunnel_of(method),
                    vips: BTreeSet::new(),
                    directors: BTreeSet::new(),
                    gue_ports: BTreeSet::new(),
                    toa: None,
                    sysctls: Vec::new(),
                    devices: BTreeSet::new(),
                }
            }
            Some(before) => {
                if let Some(interface) = &wanted.interface
                    && *interface != before.interface
                {
                    bail!(
                        "already set up on {}: run `lb-agent real-server down` before using {interface}",
                        before.interface
                    );
                }
                let had = before.methods.contains(&Method::Tun);
                let tunnel =
                    if method == Some(Method::Tun) && !had { tunnel_of(method) } else { before.tunnel };
                if let Some(asked) = wanted.tunnel
                    && had
                    && asked != before.tunnel
                {
                    bail!(
                        "tunnelled packets are already unpacked another way: run `lb-agent real-server down` first"
                    );
                }
                Record { tunnel, ..before }
            }
        };
        record.methods.extend(method);
        record.vips.extend(&wanted.vip);
        record.gue_ports.extend(&wanted.gue_port);
        if !wanted.from.is_empty() {
            record.directors = wanted.from.iter().copied().collect();
        }
        if !wanted.toa_from.is_empty() {
            let cgroup = wanted.cgroup.clone();
            if let Some(before) = &record.toa
                && before.cgroup != cgroup
            {
                bail!("TOA is already read for another cgroup: run `lb-agent real-server down` first");
            }
            record.toa = Some(Toa { from: wanted.toa_from.iter().copied().collect(), cgroup });
        }
        record.check()?;
        Ok(record)
    }

    /// VIPs that must be addresses of this host.
    pub fn vips_on_lo(&self) -> impl Iterator<Item = IpAddr> {
        let keep = self.methods.iter().any(|method| method.keeps_vip());
        self.vips.iter().copied().filter(move |_| keep)
    }

    /// The ARP sysctls matter: an IPv4 VIP is on lo.
    pub fn needs_arp_sysctls(&self) -> bool {
        self.vips_on_lo().any(|vip| vip.is_ipv4())
    }

    fn check(&self) -> Result<()> {
        let Some(first) = self.methods.first() else { bail!("no forwarding method: name it with --method") };
        let keep = self.methods.iter().any(|method| method.keeps_vip());
        if keep && self.vips.is_empty() {
            bail!("--vip is missing: under {} packets arrive addressed to the VIP", first.name());
        }
        if let Some(vip) =
            self.vips.iter().find(|vip| vip.is_unspecified() || vip.is_multicast() || vip.is_loopback())
        {
            bail!("{vip} cannot be a VIP");
        }
        if self.tunnel != Tunnel::None && self.directors.is_empty() {
            bail!(
                "--from is missing: the directors' addresses that tunnelled packets are accepted from (from \
                 anyone: --from 0.0.0.0/0,::/0)"
            );
        }
        if self.tunnel != Tunnel::Bpf && !self.gue_ports.is_empty() {
            bail!(
                "--gue-port is for --tunnel bpf; the kernel unpacks GUE after `ip fou add port {} gue`",
                self.gue_ports.first().copied().unwrap_or_default()
            );
        }
        if self.tunnel == Tunnel::Kernel
            && let Some(prefix) =
                self.directors.iter().find(|prefix| prefix.prefix_len() != prefix.max_prefix_len())
        {
            bail!(
                "{prefix}: a kernel tunnel device has one remote address; list the directors, or use --tunnel bpf"
            );
        }
        Ok(())
    }
}

/// The record's file in a state directory.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("real-server.json")
}

/// Reads the record; `None` where nothing is set up.
///
/// # Errors
/// A file that cannot be read or is no record.
pub fn load(state_dir: &Path) -> Result<Option<Record>> {
    let path = path(state_dir);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{} is no record of `real-server up`", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Writes the record in one step, so that a crash leaves the old or the new one.
///
/// # Errors
/// A state directory that cannot be made or written.
pub fn save(state_dir: &Path, record: &Record) -> Result<()> {
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(state_dir)?;
        let temporary = state_dir.join("real-server.json.new");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        file.sync_all()?;
        fs::rename(temporary, path(state_dir))
    };
    write().with_context(|| format!("write {}", path(state_dir).display()))
}

/// Forgets the record.
///
/// # Errors
/// A file that cannot be removed.
pub fn forget(state_dir: &Path) -> Result<()> {
    match fs::remove_file(path(state_dir)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path(state_dir).display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(vips: &[&str], method: Option<Method>, tunnel: Option<Tunnel>, from: &[&str]) -> Wanted {
        Wanted {
            vip: vips.iter().map(|vip| vip.parse().unwrap()).collect(),
            interface: None,
            from: from.iter().map(|from| from.parse().unwrap()).collect(),
            gue_port: Vec::new(),
            toa_from: Vec::new(),
            cgroup: None,
            tunnel,
            method,
        }
    }

    fn fresh(wanted: &Wanted) -> Result<Record> {
        Record::merge(None, wanted, Some("eth0".into()))
    }

    #[test]
    fn defaults_follow_the_method() {
        let dr = fresh(&wanted(&["203.0.113.10"], None, None, &[])).unwrap();
        assert_eq!((dr.methods, dr.tunnel), ([Method::Dr].into(), Tunnel::None));
        let tun = fresh(&wanted(&["203.0.113.10"], Some(Method::Tun), None, &["10.0.0.1/32"])).unwrap();
        assert_eq!(tun.tunnel, Tunnel::Bpf);
        let listed = fresh(&wanted(&["203.0.113.10"], None, None, &["10.0.0.1/32"])).unwrap();
        assert_eq!((listed.methods, listed.tunnel), ([Method::Tun].into(), Tunnel::Bpf));
        let kernel = fresh(&wanted(&["203.0.113.10"], None, Some(Tunnel::Kernel), &["10.0.0.1/32"])).unwrap();
        assert_eq!(kernel.methods, [Method::Tun].into());
        let nat = fresh(&wanted(&[], Some(Method::Nat), None, &["10.0.0.1/32"])).unwrap();
        assert_eq!(nat.vips_on_lo().count(), 0);
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_way_out() {
        let vip = &["203.0.113.10"];
        for (wanted, says) in [
            (wanted(&[], None, None, &[]), "--vip is missing"),
            (wanted(vip, Some(Method::Tun), None, &[]), "--from is missing"),
            (
                wanted(vip, Some(Method::Dr), Some(Tunnel::Bpf), &["10.0.0.1/32"]),
                "--tunnel and --gue-port are for --method tun",
            ),
            (wanted(&["127.0.0.1"], None, None, &[]), "cannot be a VIP"),
            (wanted(vip, None, Some(Tunnel::Kernel), &["10.0.0.0/24"]), "one remote address"),
        ] {
            let error = fresh(&wanted).unwrap_err().to_string();
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        }
        let error = Record::merge(None, &wanted(vip, None, None, &[]), None).unwrap_err().to_string();
        assert!(error.contains("--interface"), "{error}");
    }

    #[test]
    fn a_second_up_adds_vips_and_methods_and_replaces_directors() {
        let dr = fresh(&wanted(&["203.0.113.10"], None, None, &[])).unwrap();
        let both = Record::merge(
            Some(dr),
            &wanted(&["2001:db8::10"], Some(Method::Tun), None, &["10.0.0.1/32"]),
            None,
        )
        .unwrap();
        assert_eq!((both.vips.len(), both.methods.len(), both.tunnel), (2, 2, Tunnel::Bpf));
        let moved =
            Record::merge(Some(both.clone()), &wanted(&[], None, None, &["10.0.0.2/32"]), None).unwrap();
        assert_eq!(moved.directors, ["10.0.0.2/32".parse().unwrap()].into());
        assert_eq!(moved.methods, both.methods);
        let error =
            Record::merge(Some(both), &wanted(&[], None, Some(Tunnel::Kernel), &[]), None).unwrap_err();
        assert!(error.to_string().contains("down"), "{error}");
    }

    #[test]
    fn whose_toa_is_believed_is_replaced_and_for_whom_is_not() {
        let of = |from: &[&str], cgroup: Option<&str>| Wanted {
            toa_from: from.iter().map(|from| from.parse().unwrap()).collect(),
            cgroup: cgroup.map(PathBuf::from),
            ..wanted(&[], None, None, &[])
        };
        let first = fresh(&of(&["10.0.0.208/28"], None)).unwrap();
        assert_eq!((first.methods.clone(), first.tunnel), ([Method::Fullnat].into(), Tunnel::None));
        let again = Record::merge(Some(first.clone()), &wanted(&[], None, None, &[]), None).unwrap();
        assert_eq!(again, first, "not named: as it was");
        let moved = Record::merge(Some(first.clone()), &of(&["2001:db8::/64"], None), None).unwrap();
        assert_eq!(moved.toa.unwrap().from, ["2001:db8::/64".parse().unwrap()].into());
        let error = Record::merge(Some(first), &of(&["10.0.0.208/28"], Some("/x")), None).unwrap_err();
        assert!(error.to_string().contains("real-server down"), "{error}");
    }

    #[test]
    fn ports_of_gue_add_up_and_are_for_the_program_alone() {
        let of = |ports: &[u16], tunnel| Wanted {
            gue_port: ports.to_vec(),
            ..wanted(&["203.0.113.10"], None, tunnel, &["10.0.0.1/32"])
        };
        let first = fresh(&of(&[6080], None)).unwrap();
        assert_eq!((first.tunnel, first.gue_ports.clone()), (Tunnel::Bpf, [6080].into()));
        let both = Record::merge(Some(first), &of(&[6081], None), None).unwrap();
        assert_eq!(both.gue_ports, [6080, 6081].into());
        let error = fresh(&of(&[6080], Some(Tunnel::Kernel))).unwrap_err().to_string();
        assert!(error.contains("ip fou add port 6080 gue"), "{error}");
    }

    #[test]
    fn a_record_survives_the_way_through_its_file() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(load(directory.path()).unwrap(), None);
        let mut record = fresh(&wanted(&["203.0.113.10", "2001:db8::10"], None, None, &[])).unwrap();
        record.sysctls.push(Change {
            interface: "all".into(),
            name: "rp_filter".into(),
            before: 1,
            after: 0,
        });
        save(directory.path(), &record).unwrap();
        assert_eq!(load(directory.path()).unwrap(), Some(record));
        fs::write(path(directory.path()), "{").unwrap();
        assert!(load(directory.path()).unwrap_err().to_string().contains("real-server.json"));
        forget(directory.path()).unwrap();
        forget(directory.path()).unwrap();
        assert_eq!(load(directory.path()).unwrap(), None);
    }
}
