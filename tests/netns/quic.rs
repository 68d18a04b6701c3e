//! QUIC by a client that changes its address: with server ids in the connection ids it keeps its connection, without
//! them its packets come to a real server that does not know it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lb_tests::{Agent, Namespace, Topology};
use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, ServerConfig,
    TokioRuntime,
};

use crate::site::{director, until_all_in};

const PORT: u16 = 443;
const NAME: &str = "web.example";
/// For a whole handshake, or a question that is lost and sent again, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// An answer that never comes is not waited for longer.
const NO_ANSWER: Duration = Duration::from_secs(4);

/// Connection ids in the plain layout of draft-ietf-quic-load-balancers, section 5.2: an octet with the configuration's
/// number and the length, the server id, a nonce.
struct PlainIds {
    server: [u8; 4],
}

impl ConnectionIdGenerator for PlainIds {
    fn generate_cid(&mut self) -> ConnectionId {
        static NONCE: AtomicU64 = AtomicU64::new(0x9e37_79b9_7f4a_7c15);
        let nonce = NONCE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mut id = [0; 13];
        id[0] = (id.len() - 1) as u8;
        id[1..5].copy_from_slice(&self.server);
        id[5..].copy_from_slice(&nonce.to_be_bytes());
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        13
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn server_id(number: u8) -> [u8; 4] {
    [0, 0, 7, number]
}

fn socket(namespace: &Namespace, address: SocketAddr) -> UdpSocket {
    namespace.run(|| UdpSocket::bind(address)).unwrap_or_else(|error| panic!("bind {address}: {error}"))
}

/// Answers every question with its number.
async fn serve(endpoint: Endpoint, number: u8) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((mut answer, mut question)) = connection.accept_bi().await {
                if question.read_to_end(16).await.is_ok() && answer.write_all(&[number]).await.is_ok() {
                    // The stream may be gone already: then nobody waits for it.
                    let _ = answer.finish();
                }
            }
        });
    }
}

/// Who is at the other end. None: no answer within `patience`.
async fn ask(connection: &Connection, patience: Duration) -> Option<u8> {
    let answer = async {
        let (mut question, mut answer) = connection.open_bi().await.ok()?;
        question.write_all(b"who?").await.ok()?;
        question.finish().ok()?;
        answer.read_to_end(1).await.ok()?.first().copied()
    };
    tokio::time::timeout(patience, answer).await.ok().flatten()
}

/// A QUIC server on the VIP in each real server's namespace, and a client's configuration that trusts them.
fn servers(topology: &Topology, vip: SocketAddr, with_ids: bool) -> ClientConfig {
    let key = rcgen::KeyPair::generate().expect("make a key");
    let certificate = rcgen::CertificateParams::new(vec![NAME.to_owned()])
        .and_then(|params| params.self_signed(&key))
        .expect("make a certificate");
    let certificate: CertificateDer<'static> = certificate.der().clone();
    for (number, server) in (1..).zip(&topology.servers) {
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = ServerConfig::with_single_cert(vec![certificate.clone()], key.into());
        let config = config.expect("a server's configuration");
        let mut endpoint = EndpointConfig::default();
        if with_ids {
            endpoint.cid_generator(move || Box::new(PlainIds { server: server_id(number) }));
        }
        let socket = socket(&server.namespace, vip);
        let endpoint = Endpoint::new(endpoint, Some(config), socket, Arc::new(TokioRuntime));
        tokio::spawn(serve(endpoint.expect("a server"), number));
    }
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("trust the certificate");
    ClientConfig::with_root_certificates(Arc::new(roots)).expect("a client's configuration")
}

/// A service by rr, so that a flow that is new to the director goes to another real server than the flow before.
fn manifest(topology: &Topology, vip: SocketAddr, with_ids: bool) -> String {
    let quic = if with_ids { "  quic: {serverIdOffset: 1, serverIdLength: 4}\n" } else { "" };
    let server = |(number, host): (u8, &lb_tests::Host)| {
        let id: String = server_id(number).iter().map(|byte| format!("{byte:02x}")).collect();
        let id = if with_ids { format!(", serverId: \"{id}\"") } else { String::new() };
        format!("    - {{address: {}{id}}}\n", host.v4())
    };
    let servers: String = (1..).zip(&topology.servers).map(server).collect();
    format!(
        "apiVersion: lb/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n  address: {}\n  ports: [{PORT}]\n  \
         protocol: udp\n  forwarding: dr\n  scheduler: rr\n{quic}  addressInterface: eth0\n  realServers:\n{servers}",
        vip.ip()
    )
}

#[test]
fn a_quic_client_that_changes_its_address_keeps_its_connection_by_server_ids_alone() {
    let topology = Topology::builder().servers(3).clients(2).build();
    let vip = SocketAddr::new(topology.vip_v4(0).into(), PORT);
    topology.vip_on_servers(vip.ip());
    let agent = Agent::start(&topology.director().namespace, &director(&["eth0"]));
    for with_ids in [true, false] {
        agent.apply(&manifest(&topology, vip, with_ids));
        until_all_in(&agent);
        // With it end the servers, whose sockets the next round wants.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        runtime.block_on(moves(&topology, vip, with_ids));
    }
}

async fn moves(topology: &Topology, vip: SocketAddr, with_ids: bool) {
    let config = servers(topology, vip, with_ids);
    // Each time another address and port.
    let place = |n: usize| {
        let host = &topology.clients[n % 2];
        socket(&host.namespace, SocketAddr::new(IpAddr::from(host.v4()), 0))
    };
    let client = Endpoint::new(EndpointConfig::default(), None, place(0), Arc::new(TokioRuntime));
    let client = client.expect("a client");
    let connecting = client.connect_with(config, vip, NAME).expect("a connection begins");
    let connection =
        tokio::time::timeout(PATIENCE, connecting).await.expect("a handshake").expect("a handshake");
    let first = ask(&connection, PATIENCE).await.expect("an answer");
    if with_ids {
        for n in 1..=4 {
            client.rebind(place(n)).expect("another address");
            let again = ask(&connection, PATIENCE).await;
            assert_eq!(again, Some(first), "after change {n} of the client's address");
        }
    } else {
        client.rebind(place(1)).expect("another address");
        let again = ask(&connection, NO_ANSWER).await;
        assert_eq!(again, None, "a real server that does not know the connection cannot answer, {first} did");
    }
    connection.close(0u32.into(), b"");
    client.close(0u32.into(), b"");
}
