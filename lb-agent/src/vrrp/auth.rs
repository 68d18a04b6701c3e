//! Authenticated advertisements: a trailer of 28 bytes behind the message, in the form of keepalived 2.4's
//! `auth_hmac`. HMAC-SHA256 (RFC 2104), cut to 128 bits, over a pseudo header that binds family, version,
//! virtual router and source, over the message with its checksum read as zero, and over the trailer's own
//! first twelve bytes. A sequence made of the sender's clock, which only grows, keeps what was recorded from
//! being played again.
//!
//! ```text
//!  0       1       2       3       4               8       10      12                     28
//!  | type  | key id| reserved 0    | seconds (UTC) | 2^-16 s| count | HMAC, first 128 bits |
//! ```

use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::advert::{CHECKSUM, TRAILER_LEN};
use crate::model::{HmacMode, Vrid, VrrpVersion};

/// The keys of an instance, and how strictly they are meant.
#[derive(Clone, PartialEq, Eq)]
pub struct Keyring {
    /// (id, 32 to 64 bytes), each id once.
    pub keys: Vec<(u8, Vec<u8>)>,
    /// The id of the key that signs.
    pub active: u8,
    pub mode: HmacMode,
    /// How far a sender's clock may be from ours; None: only the order of the sequence counts.
    pub window: Option<Duration>,
}

/// Signs and verifies for one instance. Remembers what it sent and what it heard from whom.
#[derive(Debug)]
pub struct Authenticator {
    keyring: Keyring,
    sent: u64,
    /// Who was heard, and the highest sequence from there; the one heard last is the last.
    senders: Vec<(IpAddr, u64)>,
}

/// What a trailer is bound to, beside the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    pub version: VrrpVersion,
    pub vrid: Vrid,
    pub source: IpAddr,
}

/// Why an advertisement is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unauthentic {
    #[error("no trailer")]
    Missing,
    #[error("trailer of type {0}")]
    Type(u8),
    #[error("trailer with reserved bits set")]
    Reserved,
    #[error("signed {} s {}", seconds.unsigned_abs(), if *seconds < 0 { "in the future" } else { "ago" })]
    Stale {
        /// Our clock less the sender's.
        seconds: i64,
    },
    #[error("signed with key {0}, which we do not have")]
    UnknownKey(u8),
    #[error("wrong signature for key {0}")]
    Signature(u8),
    #[error("heard before")]
    Replayed,
}

impl Unauthentic {
    /// The word under which it is counted.
    pub fn name(self) -> &'static str {
        match self {
            Unauthentic::Missing => "auth_missing",
            Unauthentic::Type(_) => "auth_type",
            Unauthentic::Reserved => "auth_reserved",
            Unauthentic::Stale { .. } => "auth_stale",
            Unauthentic::UnknownKey(_) => "auth_unknown_key",
            Unauthentic::Signature(_) => "auth_signature",
            Unauthentic::Replayed => "auth_replayed",
        }
    }
}

impl Authenticator {
    pub fn new(keyring: Keyring) -> Authenticator {
        Authenticator { keyring, sent: 0, senders: Vec::new() }
    }

    /// Other keys or another mode from now on; sequences go on, so that no record becomes good again.
    pub fn configure(&mut self, keyring: Keyring) {
        self.keyring = keyring;
    }

    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// The trailer for a message whose checksum is zero, or None where none is sent. `clock` is the time since
    /// the Unix epoch.
    pub fn sign(&mut self, clock: Duration, subject: &Subject, message: &[u8]) -> Option<[u8; TRAILER_LEN]> {
        if self.keyring.mode == HmacMode::ReceiveOnly {
            return None;
        }
        self.sent = self.next_sequence(clock);
        let mut trailer = [0; TRAILER_LEN];
        trailer[TYPE] = TYPE_HMAC_SHA256_128;
        trailer[KEY_ID] = self.keyring.active;
        trailer[SEQUENCE].copy_from_slice(&self.sent.to_be_bytes());
        let mac = self.mac(self.keyring.active, subject, message, &trailer)?;
        let digest = mac.finalize().into_bytes();
        trailer[HMAC].copy_from_slice(&digest[..HMAC.len()]);
        Some(trailer)
    }

    /// Whether a message, without its trailer, may be believed. Only one that may moves what is remembered of
    /// its sender.
    pub fn verify(
        &mut self,
        clock: Duration,
        subject: &Subject,
        message: &[u8],
        trailer: Option<&[u8; TRAILER_LEN]>,
    ) -> Result<(), Unauthentic> {
        let Some(trailer) = trailer else {
            let plain_is_taken = self.keyring.mode != HmacMode::Enforce;
            return if plain_is_taken { Ok(()) } else { Err(Unauthentic::Missing) };
        };
        if trailer[TYPE] != TYPE_HMAC_SHA256_128 {
            return Err(Unauthentic::Type(trailer[TYPE]));
        }
        if trailer[RESERVED] != [0, 0] {
            return Err(Unauthentic::Reserved);
        }
        let sequence = u64::from_be_bytes(trailer[SEQUENCE].try_into().expect("eight bytes"));
        // Before the signature: what is too old costs no digest. It can only be refused by this, never taken.
        if let Some(seconds) = self.outside_window(clock, sequence) {
            return Err(Unauthentic::Stale { seconds });
        }
        let key = trailer[KEY_ID];
        let mac = self.mac(key, subject, message, trailer).ok_or(Unauthentic::UnknownKey(key))?;
        mac.verify_truncated_left(&trailer[HMAC]).map_err(|_| Unauthentic::Signature(key))?;

        let known = self.senders.iter().position(|(source, _)| *source == subject.source);
        if let Some(known) = known {
            let (_, highest) = self.senders[known];
            // A mark outside the window orders only what the window refuses anyway; forgetting it lets a
            // sender back in whose clock was set right.
            let forgotten = self.outside_window(clock, highest).is_some();
            if !forgotten && !after(sequence, highest) {
                return Err(Unauthentic::Replayed);
            }
            self.senders.remove(known);
        } else if self.senders.len() == SENDERS_MAX {
            self.senders.remove(0);
        }
        self.senders.push((subject.source, sequence));
        Ok(())
    }

    /// The clock, or one more than what was sent last, whichever is later. A clock that was set back by more
    /// than the window starts again from the clock: receivers would refuse anything else.
    fn next_sequence(&self, clock: Duration) -> u64 {
        let fraction = (u64::from(clock.subsec_nanos()) << 16) / 1_000_000_000;
        let now = clock.as_secs() << 32 | fraction << 16;
        if after(now, self.sent) || self.outside_window(clock, self.sent).is_some_and(|ahead| ahead < 0) {
            now
        } else {
            self.sent.wrapping_add(1)
        }
    }

    /// Our clock less the sequence's in seconds, if that is more than the window allows. The sequence has the
    /// low 32 bits of the seconds, so the difference is taken in 32 bits: it holds past 2106.
    fn outside_window(&self, clock: Duration, sequence: u64) -> Option<i64> {
        let seconds = i64::from((clock.as_secs() as u32).wrapping_sub((sequence >> 32) as u32) as i32);
        (seconds.unsigned_abs() > self.keyring.window?.as_secs()).then_some(seconds)
    }

    /// The HMAC over everything but itself, not finished; None without that key.
    fn mac(
        &self,
        key: u8,
        subject: &Subject,
        message: &[u8],
        trailer: &[u8; TRAILER_LEN],
    ) -> Option<Hmac<Sha256>> {
        let (_, secret) = self.keyring.keys.iter().find(|(id, _)| *id == key)?;
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
        let mut pseudo = [0; 20];
        match subject.source {
            IpAddr::V4(source) => {
                pseudo[0] = 4;
                pseudo[4..8].copy_from_slice(&source.octets());
            }
            IpAddr::V6(source) => {
                pseudo[0] = 6;
                pseudo[4..].copy_from_slice(&source.octets());
            }
        }
        pseudo[1] = subject.version.number();
        pseudo[2] = subject.vrid.get();
        mac.update(&pseudo);
        mac.update(&message[..CHECKSUM.start]);
        mac.update(&[0; CHECKSUM.end - CHECKSUM.start]);
        mac.update(&message[CHECKSUM.end..]);
        mac.update(&trailer[..HMAC.start]);
        mac.update(&[0; HMAC.end - HMAC.start]);
        Some(mac)
    }
}

/// Whether sequence `a` is later than `b` (serial number arithmetic, RFC 1982).
fn after(a: u64, b: u64) -> bool {
    a.wrapping_sub(b) as i64 > 0
}

/// Secrets stay out of logs.
impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<u8> = self.keys.iter().map(|(id, _)| *id).collect();
        f.debug_struct("Keyring")
            .field("keys", &ids)
            .field("active", &self.active)
            .field("mode", &self.mode)
            .field("window", &self.window)
            .finish()
    }
}

/// How long a key is, in bytes.
pub const KEY_LEN: std::ops::RangeInclusive<usize> = 32..=64;
/// How many senders are remembered; one that was forgotten is new again, within the window.
const SENDERS_MAX: usize = 16;
const TYPE_HMAC_SHA256_128: u8 = 1;
const TYPE: usize = 0;
const KEY_ID: usize = 1;
const RESERVED: Range<usize> = 2..4;
const SEQUENCE: Range<usize> = 4..12;
const HMAC: Range<usize> = 12..28;

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
