//! The maps, and the read-only values of this program version. Sizes here are placeholders: the agent sets
//! `max_entries` at load.

use aya_ebpf::{
    Global,
    btf_maps::{Array, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray},
    macros::btf_map,
};
use lb_common::{
    connection::{Bucket, ColdTuple},
    destination::{Destination, NextHop, Traffic},
    extension::Extension,
    filter::{AddressKey, AddressRecord, FilterLine, MAX_PEERS, PeerKey},
    fragment::{FRAGMENTED_PACKETS, FirstFragment, FragmentKey},
    ftp::Dialog,
    guard::{Guard, Pace},
    hash::Secrets,
    lease::{Lease, PoolAddress},
    load::{Load, Rate},
    maps::{ClientNeighbour, VRRP_INSTANCES},
    probe::{GROUPS, PORTS, TARGETS, Target},
    scratch::{Config, Limiter, Scratch},
    service::{PortRanges, QuicKey, ServerLine, Service, ServiceKey, SlotLine},
    verdict::{Count, REASONS as REASON_COUNT},
    witness::Witness,
};

/// `BPF_F_MMAPABLE`: the agent reads the array without system calls, and its values begin on a cache line.
const MMAP: usize = 1 << 10;

#[btf_map]
pub static CONNECTIONS: Array<Bucket, 1, MMAP> = Array::new();
#[btf_map]
pub static COLD_TUPLES: Array<ColdTuple, 1, MMAP> = Array::new();
#[btf_map]
pub static DESTINATIONS: Array<Destination, 1, MMAP> = Array::new();
#[btf_map]
pub static NEXT_HOPS: Array<NextHop, 1, MMAP> = Array::new();
#[btf_map]
pub static TRAFFIC: PerCpuArray<Traffic, 1> = PerCpuArray::new();
#[btf_map]
pub static SERVICE_INDEX: HashMap<ServiceKey, u32, 1> = HashMap::new();
#[btf_map]
pub static SERVICES: Array<Service, 1, MMAP> = Array::new();
#[btf_map]
pub static PORT_RANGES: Array<PortRanges, 1> = Array::new();
#[btf_map]
pub static SLOTS: Array<SlotLine, 1, MMAP> = Array::new();
#[btf_map]
pub static SERVERS: Array<ServerLine, 1, MMAP> = Array::new();
#[btf_map]
pub static LOADS: Array<Load, 1, MMAP> = Array::new();
#[btf_map]
pub static RATES: Array<Rate, 1> = Array::new();
#[btf_map]
pub static ACL4: LpmTrie<[u8; 8], u32, 65536> = LpmTrie::new();
#[btf_map]
pub static ACL6: LpmTrie<[u8; 20], u32, 65536> = LpmTrie::new();
#[btf_map]
pub static QUIC_IDS: HashMap<QuicKey, u32, 1> = HashMap::new();
#[btf_map]
pub static LEASES: Array<Lease, 1, MMAP> = Array::new();
#[btf_map]
pub static POOL: Array<PoolAddress, 1> = Array::new();
#[btf_map]
pub static FILTER: Array<FilterLine, 1, MMAP> = Array::new();
#[btf_map]
pub static ADDRESSES: HashMap<AddressKey, AddressRecord, 1> = HashMap::new();
#[btf_map]
pub static CLIENT_ROUTES4: LpmTrie<[u8; 4], u32, 65536> = LpmTrie::new();
#[btf_map]
pub static CLIENT_ROUTES6: LpmTrie<[u8; 16], u32, 65536> = LpmTrie::new();
#[btf_map]
pub static CLIENT_NEIGHB: LruHashMap<AddressKey, ClientNeighbour, 65536> = LruHashMap::new();
#[btf_map]
pub static VRRP: Array<u64, { VRRP_INSTANCES as usize }, MMAP> = Array::new();
#[btf_map]
pub static EXTENSIONS: Array<Extension, 1, MMAP> = Array::new();
#[btf_map]
pub static REASONS: PerCpuArray<Count, { REASON_COUNT as usize }> = PerCpuArray::new();
#[btf_map]
pub static SECRETS: Array<Secrets, 1> = Array::new();
#[btf_map]
pub static PEERS: HashMap<PeerKey, u32, { MAX_PEERS as usize }> = HashMap::new();
#[btf_map]
pub static OUTPUTS: DevMapHash<256> = DevMapHash::new();

#[btf_map]
pub static PROBE_TARGETS: Array<Target, { TARGETS as usize }, MMAP> = Array::new();
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FirstFragment, { FRAGMENTED_PACKETS as usize }> =
    LruHashMap::new();
#[btf_map]
pub static PATHS: LruHashMap<AddressKey, u32, 1024> = LruHashMap::new();
#[btf_map]
pub static PROBE_PORTS: Array<u64, { (PORTS * GROUPS) as usize }> = Array::new();
#[btf_map]
pub static WITNESSES: Array<Witness, 1, MMAP> = Array::new();
#[btf_map]
pub static TAILS: ProgramArray<32> = ProgramArray::new();
#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();
#[btf_map]
pub static DIALOG: PerCpuArray<Dialog, 1> = PerCpuArray::new();
#[btf_map]
pub static LIMITER: PerCpuArray<Limiter, 1> = PerCpuArray::new();
#[btf_map]
pub static GUARD: Array<Guard, 1, MMAP> = Array::new();
#[btf_map]
pub static PACE: PerCpuArray<Pace, 1> = PerCpuArray::new();

#[unsafe(no_mangle)]
static CONFIG: Global<Config> = Global::new(Config {
    bucket_shift: 64,
    bucket_shift_v6: 64,
    cell_shift: 52,
    tick_shift: 7,
    answers_per_second: 1000,
    hz: 250,
    log: 0,
    policies: 0,
    sources_v4: 0,
    varies_v4: 0,
    sources_v6: [0; 2],
    varies_v6: [0; 2],
    extension_shift: 0,
    reserved: 0,
});

#[unsafe(no_mangle)]
static KEYS: Global<Secrets> = Global::new(Secrets {
    address_offset: 1,
    address: 1,
    spread: 1,
    udp: 1,
    bucket: 1,
    second_bucket: 1,
    nh: [1; 5],
});

/// One field of the configuration: a load from read-only data.
macro_rules! config {
    ($field:ident) => {
        $crate::maps::read(&raw const $crate::maps::config_ref().$field)
    };
}
pub(crate) use config;

#[inline(always)]
pub fn config_ref() -> &'static Config {
    // SAFETY: the global is initialised by the loader before the program runs and is read-only.
    unsafe { &*(&raw const CONFIG).cast::<Config>() }
}

/// Reads a word of read-only data: volatile, or the compiler would put the placeholder's value in its place.
#[inline(always)]
pub fn read(word: *const u32) -> u32 {
    // SAFETY: callers pass a field of `config_ref`.
    unsafe { core::ptr::read_volatile(word) }
}

/// As [`read`], of the two words of an address.
#[inline(always)]
pub fn read_words(words: *const [u64; 2]) -> crate::packet::Words {
    // SAFETY: as for `read`.
    unsafe { core::ptr::read_volatile(words) }
}

/// The secrets. Fields are read where they are used.
#[inline(always)]
pub fn keys() -> &'static Secrets {
    // SAFETY: the global is initialised by the loader before the program runs and is read-only.
    unsafe { &*(crate::packet::opaque((&raw const KEYS) as u64) as *const Secrets) }
}
