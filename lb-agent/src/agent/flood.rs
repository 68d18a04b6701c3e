//! Tells the data plane what the Director's `flood` says, at once whenever it may have changed, and with which key cookies
//! are made.

use std::mem::offset_of;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use lb_common::cookie::siphash;
use lb_common::guard::Guard;
use lb_common::hash::Secrets;
use sha2::{Digest as _, Sha256};

use super::{Agent, Trouble};
use crate::model::Flood;

impl Agent {
    /// Writes what differs.
    pub(super) fn guard(&mut self) {
        let director = self.director.objects().director().unwrap_or(&self.running);
        let flood = director.flood.clone();
        let views = self.dataplane.views();
        for (offset, wanted) in limits(&flood) {
            let word = views.guard.half(0, offset);
            if word.load(Relaxed) != wanted {
                word.store(wanted, Relaxed);
            }
        }
        let mut problems = Vec::new();
        let key = match flood.syn_cookies.secret_file.as_deref().map(key_of_file) {
            None => own_key(&views.secrets),
            Some(Ok(key)) => key,
            Some(Err(error)) => {
                problems.push(format!(
                    "spec.flood.synCookies.secretFile: {error:#}; cookies are this director's own"
                ));
                own_key(&views.secrets)
            }
        };
        for (n, half) in key.into_iter().enumerate() {
            let word = views.guard.word(0, offset_of!(Guard, key) + n * 8);
            if word.load(Relaxed) != half {
                word.store(half, Relaxed);
            }
        }
        let clock = self.dataplane.clock();
        match clock.jiffies() {
            Ok(jiffies) => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let wanted = epoch(jiffies, since.as_secs(), clock.hz());
                let word = views.guard.word(0, offset_of!(Guard, epoch));
                // A second more or less is the clocks' grain.
                if word.load(Relaxed).wrapping_sub(wanted).cast_signed().unsigned_abs()
                    > 2 * u64::from(clock.hz())
                {
                    word.store(wanted, Relaxed);
                }
            }
            Err(error) => problems.push(error.to_string()),
        }
        self.trouble(Trouble::Flood, problems);
    }
}

/// The limits of the record, by their offsets.
fn limits(flood: &Flood) -> [(usize, u32); 2] {
    [
        (offset_of!(Guard, new_flows), flood.new_flows.unwrap_or(0)),
        (offset_of!(Guard, cookies_above), flood.syn_cookies.above.unwrap_or(0)),
    ]
}

/// The key of a director that shares none: as lasting as the secrets that its tables are read by.
fn own_key(secrets: &Secrets) -> [u64; 2] {
    let own = [secrets.address, secrets.bucket, secrets.udp, secrets.nh[2]];
    [0, 1].map(|n| siphash([secrets.nh[0] ^ n, secrets.nh[1]], own))
}

fn key_of_file(path: &Path) -> Result<[u64; 2]> {
    let secret = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let len = secret.len();
    ensure!(Flood::SECRET.contains(&len), "{} has {len} bytes, not 16 to 4096", path.display());
    let digest = Sha256::digest(&secret);
    let half =
        |n: usize| digest[n * 8..n * 8 + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    Ok([half(0), half(1)])
}

/// Jiffies when Unix time began, modulo 2^64.
fn epoch(jiffies: u64, unix: u64, hz: u32) -> u64 {
    jiffies.wrapping_sub(unix.wrapping_mul(u64::from(hz)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SynCookiesAbove;

    #[test]
    fn off_is_no_limit() {
        let offsets = [offset_of!(Guard, new_flows), offset_of!(Guard, cookies_above)];
        assert_eq!(limits(&Flood::default()), [(offsets[0], 100_000), (offsets[1], 20_000)], "the default");
        let syn_cookies = SynCookiesAbove { above: None, secret_file: None };
        let off = Flood { new_flows: None, syn_cookies };
        assert_eq!(limits(&off), [(offsets[0], 0), (offsets[1], 0)]);
    }

    #[test]
    fn directors_with_one_file_have_one_key_and_others_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let (one, same, other) = (path("one", &[7; 32]), path("same", &[7; 32]), path("other", &[8; 32]));
        let key = key_of_file(&one).unwrap();
        assert_eq!(key_of_file(&same).unwrap(), key);
        assert_ne!(key_of_file(&other).unwrap(), key);
        assert!(key[0] != key[1] && key[0] != 0);
        let short = key_of_file(&path("short", b"secret")).unwrap_err().to_string();
        assert!(short.ends_with("short has 6 bytes, not 16 to 4096"), "{short}");
        assert!(key_of_file(&dir.path().join("none")).is_err());
        let secrets = |n: u64| Secrets::from_random(std::array::from_fn(|i| n * 1000 + i as u64 * 77));
        assert_ne!(own_key(&secrets(1)), own_key(&secrets(2)));
        assert_eq!(own_key(&secrets(1)), own_key(&secrets(1)));
    }

    #[test]
    fn slices_are_those_of_unix_time_whenever_the_director_was_started() {
        for (jiffies, hz) in [(4_294_892_296u64, 250u32), (17, 1000), (1 << 40, 100)] {
            let unix = 1_795_000_000;
            let epoch = epoch(jiffies, unix, hz);
            let later = jiffies + 5 * u64::from(hz);
            assert_eq!(later.wrapping_sub(epoch) / u64::from(hz), unix + 5);
        }
    }
}
