//! A datagram, and what must come back. Without an expected reply only an ICMP error is a failure.

use regex::bytes::Regex;
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::words::{Failure, quote};
use super::{Attempt, Success, connect};
use crate::model::health::{Reply, Udp};

#[derive(Debug)]
pub struct Prober {
    udp: Udp,
    matches: Option<Regex>,
}

impl Prober {
    pub fn new(udp: &Udp) -> Result<Prober, Failure> {
        let matches = match &udp.reply {
            Some(Reply::Matches(pattern)) => Some(Regex::new(pattern)),
            _ => None,
        };
        let matches = matches.transpose().map_err(|error| Failure::new(format!("the pattern: {error}")))?;
        Ok(Prober { udp: udp.clone(), matches })
    }

    pub async fn run(&self, attempt: &Attempt<'_>) -> Result<Success, Failure> {
        let socket = connect::udp(attempt)?;
        let began = Instant::now();
        let reply = ask(&socket, attempt, &self.udp.payload).await;
        let took = began.elapsed();
        match (reply, &self.udp.reply) {
            (Ok(Some(reply)), Some(wanted)) => {
                if self.fits(&reply, wanted) {
                    Ok(Success::new("the reply is as expected", took))
                } else {
                    Err(Failure::new(format!("the reply, {}, is not what is expected", quote(&reply))))
                }
            }
            (Ok(Some(_)), None) => Ok(Success::new("answered", took)),
            (Ok(None), None) => Ok(Success::new("no error came back", took)),
            (Ok(None), Some(_)) => {
                let doing = format!("ask {}", attempt.target);
                Err(connect::silent(&doing, attempt.target, attempt.check))
            }
            (Err(failure), _) => Err(failure),
        }
    }

    fn fits(&self, reply: &[u8], wanted: &Reply) -> bool {
        match wanted {
            Reply::Any => true,
            Reply::Prefix { bytes, mask } => {
                let same = |((found, wanted), mask): ((&u8, &u8), &u8)| found & mask == wanted & mask;
                reply.len() >= bytes.len() && reply.iter().zip(bytes).zip(mask).all(same)
            }
            Reply::Matches(_) => self.matches.as_ref().is_some_and(|regex| regex.is_match(reply)),
        }
    }
}

/// Sends and waits for one datagram. None: nothing came in time.
async fn ask(socket: &UdpSocket, attempt: &Attempt<'_>, payload: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
    let doing = format!("ask {}", attempt.target);
    socket.send(payload).await.map_err(|error| Failure::io(&doing, &error))?;
    let mut reply = vec![0; REPLY_MAX];
    match attempt.within(&doing, socket.recv(&mut reply)).await {
        Ok(Ok(length)) => {
            reply.truncate(length);
            Ok(Some(reply))
        }
        // The port's ICMP error.
        Ok(Err(error)) => Err(Failure::io(&doing, &error)),
        Err(_) => Ok(None),
    }
}

/// What of a datagram is looked at.
const REPLY_MAX: usize = 4096;
