//! The reasons a frame can end with, other than being forwarded (which its destination counts), and the
//! events on its way. Numbers index the `reasons` map; names are what metrics, `get counters` and docs show.

/// What becomes of a frame with a reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// To the kernel, untouched.
    Pass,
    /// Gone.
    Drop,
    /// Answered: the frame was turned into a reply to its sender.
    Answer,
    /// Put into the prober's veth pair.
    Divert,
    /// A frame of this host's own that was kept from leaving. It was not received, so it is outside the sum.
    Withheld,
    /// Not the end of a frame: something that happened on the way. Outside the sum.
    Event,
}

macro_rules! reasons {
    ($($number:literal $variant:ident $name:literal $class:ident $text:literal;)*) => {
        /// Why a frame was not forwarded, or what happened on its way.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum Reason { $(#[doc = $text] $variant = $number,)* }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// The name in metrics and output.
            pub const fn name(self) -> &'static str { match self { $(Reason::$variant => $name,)* } }

            /// What becomes of the frame.
            #[inline(always)]
            pub const fn class(self) -> Class { match self { $(Reason::$variant => Class::$class,)* } }

            /// One sentence for the operator.
            pub const fn text(self) -> &'static str { match self { $(Reason::$variant => $text,)* } }
        }
    };
}

reasons! {
    0 NotIp "not_ip" Pass "not IPv4 or IPv6 (ARP, LLDP, …)";
    1 NotOurs "not_ours" Pass "neither to a VIP or pool address nor from a NAT real server";
    2 NoService "no_service" Pass "to a VIP, but no virtual service has this port and protocol";
    3 OtherProtocol "other_protocol" Pass "to one of our addresses, but neither TCP, UDP, SCTP nor ICMP";
    4 Icmp "icmp" Pass "ICMP to one of our addresses that is no error: the kernel's";
    5 Fragment "fragment" Pass "an IP fragment to one of our addresses";
    6 ServerTraffic "server_traffic" Pass "from a NAT real server, but no reply of a flow of ours";
    7 VrrpBackup "vrrp_backup" Pass "this director is not the master of the VIP's VRRP instance";
    8 UnknownFlowPassed "unknown_flow_passed" Pass "begins no flow (TCP without SYN, SCTP without INIT) and belongs to none, onUnknownFlow: pass";
    9 BadHeader "bad_header" Pass "an IP header that is cut short or lies about its length";
    10 TooManyHeaders "too_many_headers" Pass "more IPv6 extension headers or VLAN tags than are walked";

    11 Land "land" Drop "from the address that it is sent to (land attack)";
    12 BadSource "bad_source" Drop "to one of our addresses from a source that no host has: multicast, broadcast, loopback, unspecified";

    16 BadTransport "bad_transport" Drop "to one of our addresses with a TCP, UDP or SCTP header cut short or lying";
    17 BadFlags "bad_flags" Drop "TCP flags that no stack sends: SYN with RST or FIN, none at all, FIN without ACK (RFC 9293)";
    18 NoServer "no_server" Drop "the virtual service has no real server to offer";
    19 UnknownFlowDropped "unknown_flow_dropped" Drop "begins no flow and belongs to none, onUnknownFlow: drop, or nothing that is answered (RST, ABORT)";
    20 TableFull "table_full" Drop "no room for a new flow: every entry in its two buckets is established";
    21 NoLocalPort "no_local_port" Drop "FULLNAT: no free local port found in the pool";
    22 ReplyConflict "reply_conflict" Drop "NAT: the reply would be another flow's at every server tried";
    23 NoNextHop "no_next_hop" Drop "the next hop's MAC is not known";
    24 TooBig "too_big" Drop "does not fit the path and may be fragmented (DF is not set)";
    25 TtlExpired "ttl_expired" Drop "TTL or hop limit at its end, and the answer's rate is used up";
    26 NoLease "no_lease" Drop "to a pool address, but no flow holds that port";
    27 WrongServer "wrong_server" Drop "to a leased port, but not from the real server that the flow goes to";
    28 TooBigLimited "too_big_limited" Drop "does not fit the path, and the answer's rate is used up";
    29 ResetLimited "reset_limited" Drop "a reset was due, and the answer's rate is used up";
    30 NoClientHop "no_client_hop" Drop "no way to the client is known";
    31 LeaseExpired "lease_expired" Drop "vrrp lease ended: this director may not speak for the VIP";
    32 Internal "internal" Drop "a table of this program lacks what it must hold; please report";
    33 NoRoomInFrame "no_room_in_frame" Drop "the driver leaves no room before the frame for a header";
    34 ArpBackup "arp_backup" Drop "ARP for an address of a VRRP instance of which this director is not the master";
    35 ArpExpired "arp_expired" Drop "ARP for an address of a VRRP instance whose lease has ended";
    36 NdBackup "nd_backup" Drop "neighbour discovery for an address of a VRRP instance of which this director is not the master";
    37 NdExpired "nd_expired" Drop "neighbour discovery for an address of a VRRP instance whose lease has ended";
    38 NotAccepted "not_accepted" Drop "to an address of a VRRP instance without accept mode, and no virtual service takes it";

    40 UnknownFlowReset "unknown_flow_reset" Answer "begins no flow (TCP without SYN, SCTP without INIT) and belongs to none, answered with RST or ABORT";
    41 TimeExceeded "time_exceeded" Answer "TTL or hop limit at its end, answered with ICMP time exceeded";
    42 PacketTooBig "packet_too_big" Answer "does not fit the path, answered with ICMP fragmentation needed or packet too big";
    43 ProbeReply "probe_reply" Divert "a real server's answer to a health probe on the real path: to the prober";

    44 ArpUnsentBackup "arp_unsent_backup" Withheld "ARP from an address of a VRRP instance of which this director is not the master";
    45 ArpUnsentExpired "arp_unsent_expired" Withheld "ARP from an address of a VRRP instance whose lease has ended";
    46 NdUnsentBackup "nd_unsent_backup" Withheld "neighbour discovery from an address of a VRRP instance of which this director is not the master";
    47 NdUnsentExpired "nd_unsent_expired" Withheld "neighbour discovery from an address of a VRRP instance whose lease has ended";

    48 FlowNew "flow_new" Event "a flow was scheduled";
    49 FlowAdopted "flow_adopted" Event "a flow was taken up without its SYN or INIT";
    50 FlowReplaced "flow_replaced" Event "a SYN or INIT began anew on the ports of a closing flow";
    51 FlowMoved "flow_moved" Event "a flow left a real server that was removed";
    52 EvictedUnconfirmed "evicted_unconfirmed" Event "an unconfirmed entry made room";
    53 EvictedHalfOpen "evicted_half_open" Event "a half-open entry made room";
    54 EvictedClosing "evicted_closing" Event "a closing entry made room";
    55 Stateless "stateless" Event "no room in the table: forwarded by the slot table alone";
    56 DuplicateWithdrawn "duplicate_withdrawn" Event "two CPUs took up one flow at once; one withdrew";
    13 CookieSent "cookie_sent" Answer "a SYN, answered with a SYN cookie";
    14 CookieAcknowledged "cookie_acknowledged" Answer "a real server's SYN-ACK, sent again since its client has nothing to say: acknowledged for it";
    15 CookieValid "cookie_valid" Event "a client brought the cookie that it was sent: its flow began";
    59 CookieInvalid "cookie_invalid" Event "while cookies are sent: a packet of no flow without a cookie of ours";
    60 CookieExpired "cookie_expired" Event "while cookies are sent: a packet of no flow with a cookie that is too old";
    61 FloodStateless "flood_stateless" Event "above the rate of new flows: forwarded by the slot table alone";
    62 ProbeSent "probe_sent" Event "a packet of a health probe went out on the real path";
    63 ProbeLost "probe_lost" Event "a packet of a health probe could not go out: no next hop, or no port left";
    58 HeaderSent "proxy_header" Event "a PROXY header was put in front of a client's first bytes";
    57 MssClamped "mss_clamped" Event "the MSS option of a SYN was lowered";

    64 AccessDenied "access_denied" Drop "the service's access list does not let this source begin a flow";
    65 NewFlowsLimited "new_flows_limited" Drop "the service's new flows of this second are used up";
    66 PacketsLimited "packets_limited" Drop "the real server's packets of this second are used up";
    67 NoCallId "no_call_id" Drop "SIP persistence: a packet of no flow without a Call-ID";
    68 NoServerReset "no_server_reset" Answer "the virtual service has no real server to offer, answered with RST or ABORT";
    69 NoServerUnreachable "no_server_unreachable" Answer "the virtual service has no real server to offer, answered with ICMP port unreachable";
    70 FlowReset "flow_reset" Answer "a flow whose real server was given up, answered with RST or ABORT";
    75 ExtensionLost "extension_lost" Answer "a flow whose sequence numbers were shifted by an amount that is no longer known, answered with RST";
    76 NoExtension "no_extension" Drop "no room to remember how a new flow's sequence numbers are shifted";
    77 FastOpenRefused "fast_open_refused" Drop "a SYN with data to a service whose connections begin with a header (TCP Fast Open): the client sends it again without";
    78 NoRoomForHeader "no_room_for_header" Drop "a segment that should carry a header cannot: a fragment, or headers too long";
    72 OnePacket "one_packet" Event "a packet was scheduled by itself, without a flow";
    73 FlowSticky "flow_sticky" Event "a new flow went to the real server that its client's persistence names";
    74 ServerTold "server_told" Event "a client's packet was turned into a RST or ABORT that tells the real server that its flow is given up";

    104 ToaSent "toa_sent" Event "FULLNAT: the client's address went to the server in a TCP option";
    105 ToaUnsent "toa_unsent" Event "FULLNAT: a segment or a flow without the client's address: no room for the option, in the frame, or for a record";
    80 IcmpNoFlow "icmp_no_flow" Pass "an ICMP error to one of our addresses that quotes no flow of ours";
    81 IcmpTtlExpired "icmp_ttl_expired" Drop "an ICMP error or a later fragment with its TTL or hop limit at its end: neither is answered";
    85 TunnelMtu "tunnel_mtu" Pass "an ICMP error about a tunnel packet of ours: the path MTU to its real server is lowered";
    86 TunnelMtuTold "tunnel_mtu_told" Answer "an ICMP error about a tunnel packet of ours: the path MTU is lowered, and the client was told";
    87 FragmentBad "fragment_bad" Drop "a fragment that makes no packet: not the last and no multiple of 8 bytes, or beyond 65535";
    88 FragmentTiny "fragment_tiny" Drop "a first fragment without the whole TCP or UDP header";
    89 FragmentOverlap "fragment_overlap" Drop "a later fragment that overlaps the first one";
    90 FragmentUnknown "fragment_unknown" Drop "a later fragment without its first one, or of no flow";
    91 FragmentFollowed "fragment_followed" Event "a later fragment followed its first one";
    82 IcmpToServer "icmp_to_server" Event "an ICMP error about a flow went to its real server";
    83 IcmpToClient "icmp_to_client" Event "an ICMP error about a flow went to its client";
    96 EchoAnswered "echo_answered" Answer "an ICMP echo request to a VIP, answered from here by policy";
    97 EchoLimited "echo_limited" Drop "an ICMP echo request to a VIP, and the answer's rate is used up";
    98 EchoDropped "echo_dropped" Drop "an ICMP echo request to a VIP, dropped by policy";
    99 TunnelFragmented "tunnel_fragmented" Event "a packet without DF that does not fit its tunnel went in it to the kernel, which fragments";
    100 FromDirector "from_director" Pass "to a VIP that this host is a real server of, from another one of them: a director, which chose this host";
    84 ServerUnreachable "server_unreachable" Event "an ICMP unreachable answered the first packet of a flow at its real server";

    106 FlowExpected "flow_expected" Event "a data connection began that a control channel of FTP had announced";
    107 FtpAnnounced "ftp_announced" Event "a control channel of FTP announced a data connection";
    71 FtpCut "ftp_cut" Event "a command or reply of FTP about a data connection did not end in its segment: it went on unread";
    79 FtpGarbled "ftp_garbled" Event "a command or reply of FTP about a data connection made no sense: it went on as it was";
    92 FtpElsewhere "ftp_elsewhere" Event "a reply of FTP named neither the real server nor the VIP: it went on as it was";
    93 FtpRefused "ftp_refused" Drop "a command of FTP named another address than the client's, or a command or reply a port below 1024";
    94 FtpPortBusy "ftp_port_busy" Drop "a reply of FTP named a port that another real server has just named to the same client: it is sent again";
    95 FtpNoRoom "ftp_no_room" Drop "a reply or command of FTP left no room for another address in its line";
    108 FtpEarly "ftp_early" Drop "a command of FTP for an active connection came before the server had acknowledged the last one: it is sent again";
}

/// Size of the `reasons` map.
pub const REASONS: u32 = 128;

/// Frames and bytes of one reason on one CPU.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_the_map_and_names_are_unique() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        assert!(Reason::ALL.iter().all(|r| (*r as u32) < REASONS));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
    }

    #[test]
    fn the_documentation_lists_every_reason_with_its_class_and_text() {
        let page = include_str!("../../docs/datapath.md");
        for reason in Reason::ALL {
            let class = match reason.class() {
                Class::Pass => "passed",
                Class::Drop => "dropped",
                Class::Answer => "answered",
                Class::Divert => "diverted",
                Class::Withheld => "withheld",
                Class::Event => "event",
            };
            let row = format!("| `{}` | {class} | {} |", reason.name(), reason.text());
            assert!(page.contains(&row), "docs/datapath.md lacks: {row}");
        }
    }
}
