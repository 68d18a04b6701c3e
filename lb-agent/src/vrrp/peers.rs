//! Who else speaks for the virtual router: the priority each was last heard with, and in what each differs
//! from us. Bounded, and forgetful of who is no longer heard.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::events::{Action, Mismatch};
use super::wire::{Difference, Field, Heard, Refused};

#[derive(Debug, Clone, Default)]
pub struct Peers {
    peers: BTreeMap<IpAddr, Peer>,
}

#[derive(Debug, Clone)]
struct Peer {
    heard: Instant,
    /// As last advertised, never 0; None: nothing of it was believed yet.
    priority: Option<u8>,
    mismatches: BTreeMap<Field, Mismatch>,
}

impl Peers {
    /// An advertisement that counts.
    pub fn heard(&mut self, now: Instant, heard: &Heard) -> Vec<Action> {
        let Some(peer) = self.peer(now, heard.source) else { return Vec::new() };
        if heard.priority != 0 {
            peer.priority = Some(heard.priority);
        }
        let agreed = |field: &Field| heard.differences.iter().all(|difference| difference.field != *field);
        let ended: Vec<Field> = peer.mismatches.keys().copied().filter(agreed).collect();
        let mut actions: Vec<Action> = Vec::new();
        for field in ended {
            peer.mismatches.remove(&field);
            actions.push(Action::MismatchEnded { peer: heard.source, field });
        }
        for difference in &heard.differences {
            actions.extend(peer.differs(heard.source, difference, false));
        }
        actions
    }

    /// An advertisement that does not.
    pub fn refused(&mut self, now: Instant, refused: &Refused) -> Vec<Action> {
        let Some(difference) = &refused.difference else { return Vec::new() };
        let Some(peer) = self.peer(now, refused.source) else { return Vec::new() };
        peer.differs(refused.source, difference, true).into_iter().collect()
    }

    /// Ends the mismatches of who was silent for so long that it need not be so any more (a peer that was set
    /// right may have become a backup, and those never speak), and forgets who was not heard much longer.
    pub fn expire(&mut self, now: Instant, interval: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        for (address, peer) in &mut self.peers {
            if now >= peer.heard + mismatches_last(interval) {
                let ended = |(field, _)| Action::MismatchEnded { peer: *address, field };
                actions.extend(std::mem::take(&mut peer.mismatches).into_iter().map(ended));
            }
        }
        self.peers.retain(|_, peer| now < peer.heard + FORGET_AFTER);
        actions
    }

    /// When [`Peers::expire`] next has to say something.
    pub fn next_expiry(&self, interval: Duration) -> Option<Instant> {
        let differing = self.peers.values().filter(|peer| !peer.mismatches.is_empty());
        differing.map(|peer| peer.heard + mismatches_last(interval)).min()
    }

    /// The highest priority that any peer was heard with.
    pub fn highest_priority(&self) -> Option<u8> {
        self.peers.values().filter_map(|peer| peer.priority).max()
    }

    pub fn mismatches(&self) -> impl Iterator<Item = &Mismatch> {
        self.peers.values().flat_map(|peer| peer.mismatches.values())
    }

    /// Every peer heard of lately, when, and the priority it was believed to have.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, Instant, Option<u8>)> {
        self.peers.iter().map(|(address, peer)| (*address, peer.heard, peer.priority))
    }

    /// The peer, made known if there is room: forged sources fill no memory.
    fn peer(&mut self, now: Instant, source: IpAddr) -> Option<&mut Peer> {
        if !self.peers.contains_key(&source) && self.peers.len() >= PEERS_MAX {
            return None;
        }
        let new = Peer { heard: now, priority: None, mismatches: BTreeMap::new() };
        let peer = self.peers.entry(source).or_insert(new);
        peer.heard = now;
        Some(peer)
    }
}

impl Peer {
    fn differs(&mut self, peer: IpAddr, difference: &Difference, refused: bool) -> Option<Action> {
        let Difference { field, ours, theirs } = difference.clone();
        let mismatch = Mismatch { peer, field, ours, theirs, refused };
        let new = self.mismatches.get(&field) != Some(&mismatch);
        self.mismatches.insert(field, mismatch.clone());
        new.then_some(Action::Mismatch(mismatch))
    }
}

/// How long the mismatches of a silent peer are held against it.
fn mismatches_last(interval: Duration) -> Duration {
    (interval * 3).max(Duration::from_secs(30))
}

/// How long a silent peer's priority is remembered: backups never speak, and it decides whether lowering our own
/// priority is a hand-over.
const FORGET_AFTER: Duration = Duration::from_secs(86_400);
/// How many peers are remembered: more directors than share a segment.
const PEERS_MAX: usize = 32;
