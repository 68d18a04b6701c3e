//! Packet cases: one frame in, what became of it, the frame out, by BPF_PROG_TEST_RUN on the object that the
//! agent carries. Needs root; no interface, no traffic.

mod cookies;
mod corpus;
mod counted;
mod differential;
mod extended;
mod flood;
mod flows;
mod forwarding;
mod fragments;
mod frame;
mod ftp;
mod full;
mod hammer;
mod local_ports;
mod parsing;
mod passive;
mod policies;
mod proxy;
mod random;
mod real_path;
mod real_server;
mod related;
mod renumbered;
mod rules;
mod scheduling;
mod sctp;
mod self_probe;
mod size;
mod toa;
mod translation;
mod tunnels;
mod unknown;
mod verifier;
mod vrrp;
mod world;
