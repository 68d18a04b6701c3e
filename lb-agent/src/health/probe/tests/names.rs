//! DNS against a server of its own messages; a real one is in the netns tests.

use std::io::{Read as _, Write as _};
use std::net::UdpSocket;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};

use super::*;
use crate::model::health::{Dns, DnsTransport, DnsType};

/// What answers to a question.
type Answer = fn(&Message) -> Vec<Message>;

fn reply(question: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(question.metadata.id, OpCode::Query);
    reply.add_queries(question.queries.iter().cloned());
    reply.metadata.response_code = code;
    reply
}

fn udp_server(answer: Answer) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            for reply in answer(&Message::from_vec(&bytes[..length]).unwrap()) {
                socket.send_to(&reply.to_vec().unwrap(), from).unwrap();
            }
        }
    });
    address
}

fn tcp_server(answer: Answer) -> SocketAddr {
    server(move |mut stream| {
        let mut length = [0; 2];
        if stream.read_exact(&mut length).is_err() {
            return;
        }
        let mut bytes = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut bytes).unwrap();
        for reply in answer(&Message::from_vec(&bytes).unwrap()) {
            let bytes = reply.to_vec().unwrap();
            let _ = stream.write_all(&(bytes.len() as u16).to_be_bytes());
            let _ = stream.write_all(&bytes);
        }
    })
}

fn dns(transport: DnsTransport) -> Check {
    check(Probe::Dns(Dns { name: "web.example".into(), record: DnsType::Soa, transport }))
}

#[tokio::test]
async fn the_code_of_the_answer_decides() {
    let rows: [(Answer, bool, &str); 4] = [
        (|q| vec![reply(q, ResponseCode::NoError)], true, "NOERROR, 0 answers"),
        (
            |q| vec![reply(q, ResponseCode::NXDomain)],
            false,
            "ask for SOA web.example: the server answers NXDOMAIN",
        ),
        (
            |q| vec![reply(q, ResponseCode::ServFail)],
            false,
            "ask for SOA web.example: the server answers SERVFAIL",
        ),
        (
            |q| vec![Message::error_msg(q.metadata.id, OpCode::Query, ResponseCode::Refused)],
            false,
            "ask for SOA web.example: the server answers REFUSED",
        ),
    ];
    for (answer, passed, words) in rows {
        for (transport, server) in
            [(DnsTransport::Udp, udp_server(answer)), (DnsTransport::Tcp, tcp_server(answer))]
        {
            let outcome = run(&dns(transport), server).await;
            assert_eq!((outcome.passed, &*outcome.words), (passed, words), "{transport:?}");
        }
    }
}

#[tokio::test]
async fn a_forged_answer_is_not_taken_for_the_answer() {
    let forged: Answer = |question| {
        let mut other_id = reply(question, ResponseCode::Refused);
        other_id.metadata.id ^= 1;
        let mut other_name = reply(question, ResponseCode::NoError);
        other_name.queries[0].set_name("other.example.".parse().unwrap());
        let mut a_question = reply(question, ResponseCode::Refused);
        a_question.metadata.message_type = MessageType::Query;
        vec![other_id, other_name, a_question, reply(question, ResponseCode::NoError)]
    };
    passes(&run(&dns(DnsTransport::Udp), udp_server(forged)).await, "NOERROR, 0 answers");
    let outcome = run(&dns(DnsTransport::Tcp), tcp_server(forged)).await;
    fails(&outcome, "ask for SOA web.example: the answer is to another question");
}
