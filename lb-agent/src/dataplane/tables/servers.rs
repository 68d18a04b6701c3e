//! The lists of servers that counted schedulers walk, and that say which binding a real server has at another
//! endpoint of its group. Packed like slots: a new list is written beside the old one and switched to by one word.

use super::{super::Error, Tables};
use crate::dataplane::ranges::Ranges;
use lb_common::service::{MAX_SERVERS, SERVERS_PER_LINE, ServerEntry, Service};
use std::{
    sync::atomic::Ordering::{Relaxed, Release},
    time::Instant,
};

/// Byte offset of the servers word in a service's record.
const WORD: usize = std::mem::offset_of!(Service, servers);

/// Lines of the packed lists.
#[derive(Debug)]
pub struct Servers {
    lines: Ranges,
    /// Ranges of lines that were replaced: (first, number, when).
    old: Vec<(u32, u32, Instant)>,
}

impl Servers {
    pub fn new(lines: u32) -> Self {
        Self { lines: Ranges::new(lines), old: Vec::new() }
    }

    /// Marks the list of a service's record as used.
    pub fn claim(&mut self, word: u64) {
        let (first, len) = Service::slots_of(word);
        if len > 0 {
            self.lines.claim(first / SERVERS_PER_LINE, len.div_ceil(SERVERS_PER_LINE));
        }
    }
}

impl Tables {
    /// Gives a service its list of servers: destination indices by ordinal, None for a hole. A member of lblcr's
    /// set stays one.
    pub fn set_servers(&mut self, service: &str, servers: &[Option<u32>]) -> Result<(), Error> {
        let index = self.service_of(service)?;
        self.set_servers_of(index, servers)
    }

    pub(super) fn set_servers_of(&mut self, index: u32, servers: &[Option<u32>]) -> Result<(), Error> {
        if servers.len() > MAX_SERVERS as usize {
            return Err(Error::Refused(format!(
                "a service with {} real servers: at most {MAX_SERVERS} can be walked",
                servers.len()
            )));
        }
        let word = self.views.services.word(index, WORD).load(Relaxed);
        let (first, len) = Service::slots_of(word);
        let entry = |server: &Option<u32>| match server {
            Some(destination) => {
                let load = self.destinations.load(*destination).unwrap_or(*destination);
                ServerEntry::new(*destination, load)
            }
            None => ServerEntry::HOLE,
        };
        let wanted: Vec<u64> = servers.iter().map(|server| entry(server).0).collect();
        let is: Vec<u64> = (first..first + len).map(|at| self.views.server(at).load(Relaxed)).collect();
        let plain = |word: &u64| word & !ServerEntry::MEMBER;
        if is.iter().map(plain).eq(wanted.iter().copied()) {
            return Ok(());
        }
        let members: std::collections::BTreeSet<u64> =
            is.iter().filter(|word| **word & ServerEntry::MEMBER != 0).map(plain).collect();
        let new_len = wanted.len() as u32;
        let new_first = if new_len == 0 { 0 } else { self.allocate_servers(new_len)? };
        // Whole lines: the walk reads to the end of the last one.
        let lines_end = new_first + new_len.next_multiple_of(SERVERS_PER_LINE);
        let padded = wanted.iter().copied().chain(std::iter::repeat(0));
        for (at, word) in (new_first..lines_end).zip(padded) {
            let member = if members.contains(&word) { ServerEntry::MEMBER } else { 0 };
            self.views.server(at).store(word | member, Release);
            self.writes += 1;
        }
        let generation = ((word >> 56) as u8).wrapping_add(1);
        let new = Service::make_slots(new_first, new_len, generation);
        self.views.services.word(index, WORD).store(new, Release);
        self.writes += 1;
        if len > 0 {
            let lines = len.div_ceil(SERVERS_PER_LINE);
            self.servers.old.push((first / SERVERS_PER_LINE, lines, Instant::now()));
        }
        Ok(())
    }

    fn allocate_servers(&mut self, len: u32) -> Result<u32, Error> {
        let lines = len.div_ceil(SERVERS_PER_LINE);
        let mut first = self.servers.lines.allocate(lines);
        if first.is_none()
            && let Some(since) = self.servers.old.iter().map(|(_, _, since)| *since).max()
        {
            std::thread::sleep((since + self.grace).saturating_duration_since(Instant::now()));
            self.release_servers(Instant::now());
            first = self.servers.lines.allocate(lines);
        }
        let limit = self.views.servers.len() * SERVERS_PER_LINE;
        let full = Error::Full { what: "list of servers", limit, hint: super::MORE_REAL_SERVERS };
        Ok(first.ok_or(full)? * SERVERS_PER_LINE)
    }

    pub(super) fn release_servers(&mut self, now: Instant) {
        let (grace, lines) = (self.grace, &mut self.servers.lines);
        self.servers.old.retain(|(first, len, since)| {
            let wait = now < *since + grace;
            if !wait {
                lines.release(*first, *len);
            }
            wait
        });
    }

    /// How many servers a service's list has, holes included.
    pub fn servers_of(&self, service: &str) -> Option<u32> {
        let word = self.views.services.word(self.service(service)?, WORD).load(Relaxed);
        Some(Service::slots_of(word).1)
    }

    /// Counts, weight and thresholds of the real server of a destination.
    pub fn load(&self, destination: u32) -> Option<lb_common::load::Load> {
        Some(self.views.loads.get(self.destinations.load(destination)?))
    }

    /// The index of the load of a destination: where its counts, weight and thresholds are.
    pub fn load_of(&self, destination: u32) -> Option<u32> {
        self.destinations.load(destination)
    }
}
