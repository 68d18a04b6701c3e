//! DNS: one question, by UDP or TCP. The server passes if it answers this question without an error.

use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::words::Failure;
use super::{Attempt, Success, connect};
use crate::model::health::{Dns, DnsTransport, DnsType};

#[derive(Debug)]
pub struct Prober {
    query: Query,
    transport: DnsTransport,
    doing: String,
}

impl Prober {
    pub fn new(dns: &Dns) -> Result<Prober, Failure> {
        let mut name = Name::from_ascii(&dns.name)
            .map_err(|error| Failure::new(format!("{} is no domain name: {error}", dns.name)))?;
        name.set_fqdn(true);
        let doing = format!("ask for {} {}", dns.record, dns.name);
        Ok(Prober { query: Query::query(name, record_type(dns.record)), transport: dns.transport, doing })
    }

    pub async fn run(&self, attempt: &Attempt<'_>) -> Result<Success, Failure> {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(self.query.clone());
        let id = message.metadata.id;
        let bytes = message.to_vec().map_err(|error| Failure::new(format!("{}: {error}", self.doing)))?;
        let (answer, took) = match self.transport {
            DnsTransport::Udp => self.by_udp(attempt, &bytes, id).await?,
            DnsTransport::Tcp => self.by_tcp(attempt, &bytes, id).await?,
        };
        match answer.metadata.response_code {
            ResponseCode::NoError => {
                Ok(Success::new(format!("NOERROR, {} answers", answer.answers.len()), took))
            }
            code => Err(Failure::new(format!("{}: the server answers {}", self.doing, word(code)))),
        }
    }

    async fn by_udp(
        &self,
        attempt: &Attempt<'_>,
        query: &[u8],
        id: u16,
    ) -> Result<(Message, Duration), Failure> {
        let socket = connect::udp(attempt)?;
        let began = Instant::now();
        let wrong = |error| Failure::io(&self.doing, &error);
        socket.send(query).await.map_err(wrong)?;
        let mut reply = vec![0; u16::MAX.into()];
        loop {
            let received = tokio::time::timeout_at(attempt.deadline, socket.recv(&mut reply)).await;
            let silent = |_| connect::silent(&self.doing, attempt.target, attempt.check);
            let length = received.map_err(silent)?.map_err(wrong)?;
            let answer = self.parse(&reply[..length])?;
            // Late answers to an earlier question cannot come, this socket is new; forged ones may.
            if self.answers(&answer, id) {
                return Ok((answer, began.elapsed()));
            }
        }
    }

    async fn by_tcp(
        &self,
        attempt: &Attempt<'_>,
        query: &[u8],
        id: u16,
    ) -> Result<(Message, Duration), Failure> {
        let (mut stream, took) = connect::tcp(attempt).await?;
        let exchange = async {
            // Length and message in one segment (RFC 7766, 8).
            let mut framed = (query.len() as u16).to_be_bytes().to_vec();
            framed.extend_from_slice(query);
            stream.write_all(&framed).await?;
            let mut reply = vec![0; stream.read_u16().await?.into()];
            stream.read_exact(&mut reply).await?;
            Ok(reply)
        };
        let reply = attempt.within(&self.doing, exchange).await?.map_err(|e| Failure::io(&self.doing, &e))?;
        let answer = self.parse(&reply)?;
        if !self.answers(&answer, id) {
            return Err(Failure::new(format!("{}: the answer is to another question", self.doing)));
        }
        Ok((answer, took))
    }

    fn parse(&self, reply: &[u8]) -> Result<Message, Failure> {
        Message::from_vec(reply).map_err(|_| Failure::new(format!("{}: the answer is not DNS", self.doing)))
    }

    /// An error may come without the question (RFC 1035, 4.1.1 requires it of none).
    fn answers(&self, answer: &Message, id: u16) -> bool {
        let metadata = &answer.metadata;
        let question = match &answer.queries[..] {
            [] => metadata.response_code != ResponseCode::NoError,
            [query] => *query == self.query,
            _ => false,
        };
        metadata.id == id
            && metadata.message_type == MessageType::Response
            && metadata.op_code == OpCode::Query
            && question
    }
}

fn record_type(record: DnsType) -> RecordType {
    match record {
        DnsType::A => RecordType::A,
        DnsType::Aaaa => RecordType::AAAA,
        DnsType::Cname => RecordType::CNAME,
        DnsType::Mx => RecordType::MX,
        DnsType::Ns => RecordType::NS,
        DnsType::Ptr => RecordType::PTR,
        DnsType::Soa => RecordType::SOA,
        DnsType::Srv => RecordType::SRV,
        DnsType::Txt => RecordType::TXT,
    }
}

/// The mnemonics of RFC 1035 and 6895, which an operator knows from dig.
fn word(code: ResponseCode) -> String {
    match code {
        ResponseCode::FormErr => "FORMERR".into(),
        ResponseCode::ServFail => "SERVFAIL".into(),
        ResponseCode::NXDomain => "NXDOMAIN".into(),
        ResponseCode::NotImp => "NOTIMP".into(),
        ResponseCode::Refused => "REFUSED".into(),
        other => other.to_string(),
    }
}
