//! The contract between the data plane (`lb-ebpf`) and the agent (`lb-agent`): the records in the maps,
//! the words in them that are written atomically, the hashes that place a flow, checksum arithmetic, the
//! TCP state step and the verdicts. Depends on nothing outside `core`; what is here is tested on the host.
#![cfg_attr(not(test), no_std)]

pub mod address;
pub mod checksum;
pub mod connection;
pub mod cookie;
pub mod crc32c;
pub mod decapsulator;
pub mod destination;
pub mod extension;
pub mod feed;
pub mod filter;
pub mod fragment;
pub mod ftp;
pub mod guard;
pub mod hash;
pub mod header;
pub mod ipvs;
pub mod lease;
pub mod load;
pub mod maps;
pub mod probe;
pub mod scratch;
pub mod sctp;
pub mod service;
pub mod state;
pub mod toa;
pub mod verdict;
pub mod witness;

#[cfg(feature = "aya")]
mod pod;
