//! Loads the data plane: opens or makes the pinned tables, loads a program version with tails of its own, and
//! switches every interface to it through its pinned link. Whatever happens to the agent in between, the
//! interfaces keep a whole program: the old one until the switch, the new one after it.
//!
//! ```text
//! <bpffs dir>/v<layout>-<generation>/<TABLE>   pinned tables; the highest generation counts
//! <bpffs dir>/TAILS-<n>                        tails of a program version: an unpinned array is emptied
//!                                              when its last user goes
//! <bpffs dir>/link-<ifindex>-<mode>            XDP links
//! <bpffs dir>/egress-<ifindex>-<mode>          the egress program, where VRRP wants it
//! ```

use super::{
    Attached, Clock, Counters, EgressMode, Error, Interface, Mapped, Packets, Sizes, Sweeper, Tables, Views,
    VrrpRoles, attach, bpf, egress, layout::Spec, store, sweeper::Board,
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, DevMapHash, Map, MapData, ProgramArray},
    programs::{SchedClassifier, Xdp},
};
use lb_common::{
    hash::Secrets,
    maps::{LAYOUT, own, pinned, programs, rodata},
    scratch::Config,
};
use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

/// What to load and where.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// A directory on a bpffs, of this agent alone; made when it is not there.
    pub bpffs_dir: PathBuf,
    pub interfaces: Vec<Interface>,
    pub sizes: Sizes,
    /// The eBPF object (ELF).
    pub object: &'a [u8],
    /// ICMP errors and resets per second and CPU.
    pub answers_per_second: u32,
    pub packets: Packets,
    /// Where pinned tables have other sizes, make new ones and forget every connection. Tables of the right
    /// sizes are kept all the same.
    pub recreate: bool,
}

/// A loaded program version and its tables.
pub struct Dataplane {
    pub(super) ebpf: Ebpf,
    /// The version's prog array: emptied by the kernel when its last user goes.
    tails: Map,
    views: Arc<Views>,
    clock: Arc<Clock>,
    board: Arc<Board>,
    /// None in tests: nothing is pinned.
    pub(super) dir: Option<PathBuf>,
    attached: Vec<Attached>,
    /// How the egress program is on each interface; none: it is on no interface.
    pub(super) egress: Option<BTreeMap<u32, EgressMode>>,
}

impl Dataplane {
    /// Loads the program and gives it to the interfaces. Links of interfaces that are not listed are detached.
    pub fn open(options: &Options<'_>) -> Result<Self, Error> {
        let dir = &options.bpffs_dir;
        fs::create_dir_all(dir).map_err(Error::os(format!("make {}", dir.display())))?;
        check_bpffs(dir)?;
        let tables = tables_dir(dir, &options.sizes, options.recreate)?;
        fs::create_dir_all(&tables).map_err(Error::os(format!("make {}", tables.display())))?;
        let mut this = Self::load(
            options.object,
            &options.sizes,
            (options.answers_per_second, options.packets),
            Some(&tables),
            None,
        )?;
        this.dir = Some(dir.clone());
        let number = numbers(dir, "TAILS-")?.into_iter().max().unwrap_or(0) + 1;
        let path = dir.join(format!("TAILS-{number}"));
        let data = store::data_of(&this.tails).ok_or(Error::Missing(own::TAILS))?;
        bpf::pin(data.fd().as_fd(), &path).map_err(Error::os(format!("pin {}", path.display())))?;
        for interface in &options.interfaces {
            this.attach(interface)?;
        }
        let mut keep: Vec<_> = options.interfaces.iter().map(|interface| interface.ifindex).collect();
        attach::detach_except(dir, &keep)?;
        egress::detach_except(dir, &keep)?;
        keep.extend(options.interfaces.iter().flat_map(|interface| &interface.members));
        this.forget_outputs(&keep)?;
        for old in numbers(dir, "TAILS-")?.into_iter().filter(|n| *n != number) {
            let path = dir.join(format!("TAILS-{old}"));
            fs::remove_file(&path).map_err(Error::os(format!("remove {}", path.display())))?;
        }
        remove_tables_except(dir, Some(&tables))?;
        Ok(this)
    }

    /// The program with tables of its own and on no interface: for tests that run it on frames.
    pub fn open_for_test(object: &[u8], sizes: &Sizes) -> Result<Self, Error> {
        Self::load(object, sizes, (1_000_000, Packets::default()), None, None)
    }

    /// As [`Dataplane::open_for_test_as`] with these secrets: flows share buckets in the same way in every run.
    pub fn open_for_test_with(
        object: &[u8],
        sizes: &Sizes,
        packets: Packets,
        secrets: Secrets,
    ) -> Result<Self, Error> {
        Self::load(object, sizes, (1_000_000, packets), None, Some(secrets))
    }

    /// As [`Dataplane::open_for_test`] with these policies.
    pub fn open_for_test_as(object: &[u8], sizes: &Sizes, packets: Packets) -> Result<Self, Error> {
        Self::load(object, sizes, (1_000_000, packets), None, None)
    }

    fn load(
        object: &[u8],
        sizes: &Sizes,
        (answers, packets): (u32, Packets),
        tables: Option<&Path>,
        secrets: Option<Secrets>,
    ) -> Result<Self, Error> {
        sizes.check().map_err(Error::Refused)?;
        raise_memlock();
        let clock = Clock::new()?;
        let config = packets.into(sizes.config(clock.hz(), answers));
        let secrets = match (tables, secrets) {
            (Some(dir), _) => pinned_secrets(dir)?.map_or_else(new_secrets, Ok)?,
            (None, Some(secrets)) => secrets,
            (None, None) => new_secrets()?,
        };
        let mut ebpf = load_object(object, &sizes.specs(), &config, &secrets, tables)?;
        let map = ebpf.map_mut(pinned::SECRETS).ok_or(Error::Missing(pinned::SECRETS))?;
        let mut array = Array::<_, Secrets>::try_from(map).map_err(Error::map(pinned::SECRETS))?;
        if array.get(&0, 0).map_err(Error::map(pinned::SECRETS))? != secrets {
            array.set(0, secrets, 0).map_err(Error::map(pinned::SECRETS))?;
        }
        let tails = load_programs(&mut ebpf)?;
        let views = views(&ebpf, sizes, secrets, config)?;
        Ok(Self {
            ebpf,
            tails,
            views: Arc::new(views),
            clock: Arc::new(clock),
            board: Arc::default(),
            dir: None,
            attached: Vec::new(),
            egress: None,
        })
    }

    /// Gives one interface the program, or gives it again to one that was made anew under the same name.
    pub fn attach(&mut self, interface: &Interface) -> Result<Attached, Error> {
        let dir =
            self.dir.clone().ok_or_else(|| Error::Refused("a test's program is not attached".into()))?;
        // Before the program runs; but of an interface that is not there the attachment tells more.
        let output = self.outputs()?.insert(interface.ifindex, interface.ifindex, None, 0);
        self.set_members(interface)?;
        let program: &Xdp = self.program(programs::MAIN)?;
        let fd = program.fd().map_err(|e| Error::Program { name: programs::MAIN, reason: Box::new(e) })?;
        let attached = attach::attach(&dir, fd.as_fd(), interface)?;
        output.map_err(|error| Error::Refused(format!("table {}: {error}", pinned::OUTPUTS)))?;
        self.attached.retain(|other| other.name != attached.name);
        self.attached.push(attached.clone());
        if self.egress.is_some() {
            self.attach_egress(interface, false)?;
        }
        Ok(attached)
    }

    /// The interfaces that have the program.
    pub fn attached(&self) -> &[Attached] {
        &self.attached
    }

    /// Takes the program off every interface and removes all pins: tables and connections are gone with the
    /// last descriptor.
    pub fn detach_all(&mut self) -> Result<(), Error> {
        let Some(dir) = &self.dir else { return Ok(()) };
        attach::detach_except(dir, &[])?;
        egress::detach_except(dir, &[])?;
        self.egress = None;
        for number in numbers(dir, "TAILS-")? {
            let path = dir.join(format!("TAILS-{number}"));
            fs::remove_file(&path).map_err(Error::os(format!("remove {}", path.display())))?;
        }
        remove_tables_except(dir, None)?;
        self.attached.clear();
        Ok(())
    }

    /// The tables that lie in memory.
    pub fn views(&self) -> Arc<Views> {
        self.views.clone()
    }

    /// The data plane's clock.
    pub fn clock(&self) -> Arc<Clock> {
        self.clock.clone()
    }

    /// Sets this director's roles in VRRP instances, for any thread.
    pub fn vrrp_roles(&self) -> VrrpRoles {
        VrrpRoles::new(self.views(), self.clock())
    }

    /// What plans are run against, knowing again what the kernel's tables hold. One at a time.
    pub fn tables(&self) -> Result<Tables, Error> {
        Tables::recover(self.views(), self.board.clone(), super::tables::Stores::of(|name| self.map(name))?)
    }

    /// Counters, for any thread.
    pub fn counters(&self) -> Result<Counters, Error> {
        Counters::of(self.views(), |name| self.map(name))
    }

    /// Starts the thread that frees expired flows. One at a time.
    pub fn sweeper(&self, interval: Duration) -> Result<Sweeper, Error> {
        Sweeper::spawn(self.views(), self.clock(), self.board.clone(), interval)
    }

    /// What the sweeper saw last.
    pub fn board(&self) -> Arc<Board> {
        self.board.clone()
    }

    /// The local addresses by index, for a dump.
    pub fn pool(&self) -> Result<Vec<lb_common::lease::PoolAddress>, Error> {
        let store =
            store::Kernel::<Array<MapData, _>>::of(pinned::POOL, self.map(pinned::POOL)?).map(Box::new)?;
        Ok(store::Store::entries(&*store)?.into_iter().map(|(_, address)| address).collect())
    }

    /// A map of the object, for what this module does not cover.
    pub fn map(&self, name: &'static str) -> Result<&Map, Error> {
        self.ebpf.map(name).ok_or(Error::Missing(name))
    }

    pub(super) fn program(&self, name: &'static str) -> Result<&Xdp, Error> {
        let program = self.ebpf.program(name).ok_or(Error::Missing(name))?;
        program.try_into().map_err(|e| Error::Program { name, reason: Box::new(e) })
    }

    /// How many instructions the kernel's verifier looked at for each program (Linux 5.16; its limit is 1,000,000).
    pub fn verified(&self) -> Result<Vec<(&'static str, u32)>, Error> {
        let names = programs::TAILS.iter().map(|(name, _)| *name).chain([programs::MAIN]);
        names
            .map(|name| {
                let failed = |e| Error::Program { name, reason: Box::new(e) };
                let info = self.program(name)?.info().map_err(failed)?;
                Ok((name, info.verified_instruction_count().unwrap_or(0)))
            })
            .collect()
    }

    fn outputs(&mut self) -> Result<DevMapHash<&mut MapData>, Error> {
        let map = self.ebpf.map_mut(pinned::OUTPUTS).ok_or(Error::Missing(pinned::OUTPUTS))?;
        DevMapHash::try_from(map).map_err(Error::map(pinned::OUTPUTS))
    }

    /// Has what would leave by an interface in a bond leave by the bond, which knows the one that is up. A client on an
    /// attached segment is answered by where it came in.
    pub fn set_members(&mut self, interface: &Interface) -> Result<(), Error> {
        for member in &interface.members {
            let set = self.outputs()?.insert(*member, interface.ifindex, None, 0);
            set.map_err(|error| Error::Refused(format!("table {}: {error}", pinned::OUTPUTS)))?;
        }
        Ok(())
    }

    fn forget_outputs(&mut self, keep: &[u32]) -> Result<(), Error> {
        let mut outputs = self.outputs()?;
        let keys: Vec<u32> = outputs.keys().collect::<Result<_, _>>().map_err(Error::map(pinned::OUTPUTS))?;
        for key in keys.into_iter().filter(|key| !keep.contains(key)) {
            // The kernel itself removes those whose interface goes.
            let _ = outputs.remove(key);
        }
        Ok(())
    }
}

fn load_object(
    object: &[u8],
    specs: &[Spec],
    config: &Config,
    secrets: &Secrets,
    tables: Option<&Path>,
) -> Result<Ebpf, Error> {
    // The ELF reader wants its input aligned; bytes that were included or read need not be.
    let mut aligned = vec![0u64; object.len().div_ceil(8)];
    let (_, bytes, _) = {
        // SAFETY: any bytes are valid `u64`s and the reverse; the middle part is all of it.
        unsafe { aligned.align_to_mut::<u8>() }
    };
    bytes[..object.len()].copy_from_slice(object);
    let mut loader = EbpfLoader::new();
    loader.override_global(rodata::CONFIG, config, true).override_global(rodata::KEYS, secrets, true);
    for spec in specs {
        loader.map_max_entries(spec.name, spec.entries);
        if spec.name == pinned::DESTINATIONS {
            loader.map_max_entries(own::WITNESSES, spec.entries);
        }
        if let Some(dir) = tables {
            loader.map_pin_path(spec.name, dir.join(spec.name));
        }
    }
    let ebpf = loader.load(&bytes[..object.len()]).map_err(|e| Error::Load(Box::new(e)))?;
    for spec in specs {
        // Also of an object of another version, whose records are not ours.
        let data = ebpf.map(spec.name).and_then(store::data_of).ok_or(Error::Missing(spec.name))?;
        check_map(spec, data, spec.name)?;
    }
    Ok(ebpf)
}

fn load_programs(ebpf: &mut Ebpf) -> Result<Map, Error> {
    let mut map = ebpf.take_map(own::TAILS).ok_or(Error::Missing(own::TAILS))?;
    let mut tails = ProgramArray::try_from(&mut map).map_err(Error::map(own::TAILS))?;
    // Tails first: a main program without them would lose the rare paths.
    let names = programs::TAILS.iter().map(|(name, slot)| (*name, Some(*slot)));
    for (name, slot) in names.chain([(programs::PROBE_SENT, None), (programs::MAIN, None)]) {
        let failed = |e| Error::Program { name, reason: Box::new(e) };
        let program = ebpf.program_mut(name).ok_or(Error::Missing(name))?;
        let program: &mut Xdp = program.try_into().map_err(failed)?;
        program.load().map_err(failed)?;
        if let Some(slot) = slot {
            tails.set(slot, program.fd().map_err(failed)?, 0).map_err(Error::map(own::TAILS))?;
        }
    }
    let name = programs::EGRESS;
    let failed = |e| Error::Program { name, reason: Box::new(e) };
    let egress = ebpf.program_mut(name).ok_or(Error::Missing(name))?;
    let egress: &mut SchedClassifier = egress.try_into().map_err(failed)?;
    egress.load().map_err(failed)?;
    Ok(map)
}

fn views(ebpf: &Ebpf, sizes: &Sizes, secrets: Secrets, config: Config) -> Result<Views, Error> {
    fn mapped<T: aya::Pod>(ebpf: &Ebpf, name: &'static str) -> Result<Mapped<T>, Error> {
        let data = ebpf.map(name).and_then(store::data_of).ok_or(Error::Missing(name))?;
        let entries = data.info().map_err(Error::map(name))?.max_entries();
        Mapped::of_map(name, data.fd().as_fd(), entries)
    }
    Ok(Views {
        connections: mapped(ebpf, pinned::CONNECTIONS)?,
        cold_tuples: mapped(ebpf, pinned::COLD_TUPLES)?,
        destinations: mapped(ebpf, pinned::DESTINATIONS)?,
        next_hops: mapped(ebpf, pinned::NEXT_HOPS)?,
        services: mapped(ebpf, pinned::SERVICES)?,
        slots: mapped(ebpf, pinned::SLOTS)?,
        servers: mapped(ebpf, pinned::SERVERS)?,
        loads: mapped(ebpf, pinned::LOADS)?,
        leases: mapped(ebpf, pinned::LEASES)?,
        filter: mapped(ebpf, pinned::FILTER)?,
        vrrp: mapped(ebpf, pinned::VRRP)?,
        witnesses: mapped(ebpf, own::WITNESSES)?,
        guard: mapped(ebpf, own::GUARD)?,
        secrets,
        config,
        pool_end: AtomicU32::new(sizes.pool_addresses),
    })
}

/// The directory of the tables to use: the newest of this layout, or one more where that has other sizes.
fn tables_dir(dir: &Path, sizes: &Sizes, recreate: bool) -> Result<PathBuf, Error> {
    let prefix = format!("v{LAYOUT}-");
    let generation = numbers(dir, &prefix)?.into_iter().max().unwrap_or(1);
    let path = dir.join(format!("{prefix}{generation}"));
    for spec in sizes.specs() {
        let pin = path.join(spec.name);
        if !pin.exists() {
            continue;
        }
        let data = MapData::from_pin(&pin).map_err(Error::map(spec.name))?;
        match check_map(&spec, &data, &pin.display().to_string()) {
            Err(Error::Size { .. }) if recreate => return Ok(dir.join(format!("{prefix}{}", generation + 1))),
            other => other?,
        }
    }
    Ok(path)
}

fn check_map(spec: &Spec, data: &MapData, path: &str) -> Result<(), Error> {
    let info = data.info().map_err(Error::map(spec.name))?;
    let kind = info.map_type().map_err(Error::map(spec.name))?;
    let is = (kind, info.key_size() as usize, info.value_size() as usize, info.max_entries());
    let wanted = (spec.kind, spec.key, spec.value, spec.entries);
    if is == wanted {
        return Ok(());
    }
    let text = |(kind, key, value, entries)| format!("{kind:?} of {entries} x {value} bytes (key {key})");
    Err(Error::Size { path: path.into(), pinned: text(is), wanted: text(wanted) })
}

fn remove_tables_except(dir: &Path, keep: Option<&Path>) -> Result<(), Error> {
    for entry in fs::read_dir(dir).map_err(Error::os(format!("read {}", dir.display())))? {
        let path = entry.map_err(Error::os(format!("read {}", dir.display())))?.path();
        let is_tables = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
            name.strip_prefix('v')
                .and_then(|name| name.split_once('-'))
                .is_some_and(|(layout, n)| layout.parse::<u32>().is_ok() && n.parse::<u32>().is_ok())
        });
        if is_tables && Some(&*path) != keep {
            fs::remove_dir_all(&path).map_err(Error::os(format!("remove {}", path.display())))?;
        }
    }
    Ok(())
}

/// The numbers of the entries that begin with a prefix.
fn numbers(dir: &Path, prefix: &str) -> Result<Vec<u32>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::os(format!("read {}", dir.display())))?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix(prefix)?.parse().ok())
        .collect())
}

fn pinned_secrets(dir: &Path) -> Result<Option<Secrets>, Error> {
    let path = dir.join(pinned::SECRETS);
    if !path.exists() {
        return Ok(None);
    }
    let name = pinned::SECRETS;
    let map = MapData::from_pin(path).and_then(Map::from_map_data).map_err(Error::map(name))?;
    let array = Array::<_, Secrets>::try_from(map).map_err(Error::map(name))?;
    let secrets = array.get(&0, 0).map_err(Error::map(name))?;
    // All zero: the agent was killed between making the map and writing it, before any frame was placed.
    Ok((secrets != Secrets::default()).then_some(secrets))
}

fn new_secrets() -> Result<Secrets, Error> {
    let mut bytes = [[0; 8]; 11];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(bytes.as_flattened_mut()))
        .map_err(Error::os("read /dev/urandom"))?;
    Ok(Secrets::from_random(bytes.map(u64::from_ne_bytes)))
}

fn check_bpffs(dir: &Path) -> Result<(), Error> {
    let stat = nix::sys::statfs::statfs(dir)
        .map_err(|e| Error::Os { what: format!("look at {}", dir.display()), reason: e.into() })?;
    if stat.filesystem_type() != nix::sys::statfs::BPF_FS_MAGIC {
        return Err(Error::Refused(format!(
            "{} is not on a BPF file system: `mount -t bpf bpf /sys/fs/bpf`, or set --bpffs-dir",
            dir.display()
        )));
    }
    Ok(())
}

/// Kernels before 5.11 charge maps to RLIMIT_MEMLOCK. Where it cannot be raised the kernel will say so.
fn raise_memlock() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}
