use super::*;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use proptest::prelude::*;

/// What a segment says: (line, address if it names one, port).
fn heard(speaker: Speaker, payload: &[u8]) -> Option<(u32, Option<IpAddr>, u16)> {
    let reader = Reader::read(speaker, payload);
    reader.is_whole().then(|| {
        let address = match reader.family {
            4 => Some(IpAddr::from(reader.address().v4())),
            6 => Some(IpAddr::from(reader.address().v6())),
            _ => None,
        };
        (reader.line, address, reader.port as u16)
    })
}

fn ip(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

#[test]
fn every_form_is_read() {
    use Line::*;
    use Speaker::*;
    for (speaker, line, expected) in [
        (Client, "PORT 198,51,100,7,156,64\r\n", (Port, ip("198.51.100.7"), 40_000)),
        (Client, "port 1,2,3,4,5,6\n", (Port, ip("1.2.3.4"), 1286)),
        (Client, "PORT  1,2,3,4,005,006 \r\n", (Port, ip("1.2.3.4"), 1286)),
        (Client, "NOOP\r\nPORT 1,2,3,4,5,6\r\n", (Port, ip("1.2.3.4"), 1286)),
        (Client, "PORT 1,2,3,4,5,6\r\nRETR file\r\n", (Port, ip("1.2.3.4"), 1286)),
        (Client, "EPRT |1|198.51.100.7|40000|\r\n", (ExtendedPort, ip("198.51.100.7"), 40_000)),
        (Client, "eprt !2!2001:db8::7!40000!\r\n", (ExtendedPort, ip("2001:db8::7"), 40_000)),
        (Client, "EPRT |2|::1|1|\r\n", (ExtendedPort, ip("::1"), 1)),
        (Client, "EPRT |2|::|1|\r\n", (ExtendedPort, ip("::"), 1)),
        (Client, "EPRT |2|fe80::|9|\r\n", (ExtendedPort, ip("fe80::"), 9)),
        (Client, "EPRT |2|1:2:3:4:5:6:7:FFFF|65535|\r\n", (ExtendedPort, ip("1:2:3:4:5:6:7:ffff"), 65_535)),
        (Client, "EPRT |2|1:2:3:4:5:6:7::|2|\r\n", (ExtendedPort, ip("1:2:3:4:5:6:7:0"), 2)),
        (Client, "EPRT |2|::2:3:4:5:6:7:8|2|\r\n", (ExtendedPort, ip("0:2:3:4:5:6:7:8"), 2)),
        (Server, "227 Entering Passive Mode (10,0,0,11,156,64).\r\n", (Passive, ip("10.0.0.11"), 40_000)),
        (Server, "227 =10,0,0,11,156,64\r\n", (Passive, ip("10.0.0.11"), 40_000)),
        (Server, "227 10,0,0,11,156,64\r\n", (Passive, ip("10.0.0.11"), 40_000)),
        (Server, "226 Done.\r\n227 Passive 10,0,0,11,4,0 or so\r\n", (Passive, ip("10.0.0.11"), 1024)),
        (Server, "229 Entering Extended Passive Mode (|||40000|)\r\n", (ExtendedPassive, None, 40_000)),
        (Server, "229 ok (!!!5!)\r\n", (ExtendedPassive, None, 5)),
    ] {
        let (kind, address, port) = expected;
        assert_eq!(heard(speaker, line.as_bytes()), Some((kind as u32, address, port)), "{line:?}");
    }
}

#[test]
fn lines_that_make_no_sense_are_wrong_and_others_say_nothing() {
    for line in [
        "PORT 1,2,3,4,5\r\n",
        "PORT 1,2,3,4,5,6,7\r\n",
        "PORT 1,2,3,256,5,6\r\n",
        "PORT 1,2,3,,5,6\r\n",
        "PORT 1,2,3,4,0,0\r\n",
        "PORT 1,2,3,4,0005,6\r\n",
        "PORT x\r\n",
        "PORT \r\n",
        "PORT 1,2,3,4,5,6 more\r\n",
        "EPRT |3|1.2.3.4|5|\r\n",
        "EPRT |1|1.2.3|5|\r\n",
        "EPRT |1|1.2.3.4.5|5|\r\n",
        "EPRT |1|1.2.3.4|65536|\r\n",
        "EPRT |1|1.2.3.4|0|\r\n",
        "EPRT |1|1.2.3.4||\r\n",
        "EPRT |1|1.2.3.4|5!\r\n",
        "EPRT |1|1.2.3.4|5\r\n",
        "EPRT |2|1:2:3:4:5:6:7|5|\r\n",
        "EPRT |2|1:2:3:4:5:6:7:8:9|5|\r\n",
        "EPRT |2|1::2::3|5|\r\n",
        "EPRT |2|1:::2|5|\r\n",
        "EPRT |2|:1:2:3:4:5:6:7:8|5|\r\n",
        "EPRT |2|1:2:3:4:5:6:7:|5|\r\n",
        "EPRT |2|12345::|5|\r\n",
        "EPRT |2||5|\r\n",
        "EPRT 112.3.4|5|\r\n",
    ] {
        let reader = Reader::read(Speaker::Client, line.as_bytes());
        assert!(reader.is_wrong(), "{line:?}: {reader:?}");
    }
    for line in
        ["227 none here\r\n", "227 1,2,3\r\n", "229 (||5|)\r\n", "229 (|1||5|)\r\n", "229 (|||70000|)\r\n"]
    {
        let reader = Reader::read(Speaker::Server, line.as_bytes());
        assert!(reader.is_wrong(), "{line:?}: {reader:?}");
    }
    for (speaker, line) in [
        (Speaker::Client, "PASV\r\n"),
        (Speaker::Client, "EPSV\r\n"),
        (Speaker::Client, "USER PORT 1,2,3,4,5,6\r\n"),
        (Speaker::Client, "227 Entering Passive Mode (10,0,0,11,156,64).\r\n"),
        (Speaker::Client, "SPORT 1,2,3,4,5,6\r\n"),
        (Speaker::Server, "PORT 1,2,3,4,5,6\r\n"),
        (Speaker::Server, "227-Entering Passive Mode (10,0,0,11,156,64).\r\n"),
        (Speaker::Server, " 227 Entering Passive Mode (10,0,0,11,156,64).\r\n"),
        (Speaker::Server, "2270 Passive (10,0,0,11,156,64).\r\n"),
        (Speaker::Server, "220 welcome to 227 1,2,3,4,5,6\r\n"),
        (Speaker::Server, ""),
    ] {
        let reader = Reader::read(speaker, line.as_bytes());
        assert!(!reader.is_whole() && !reader.is_wrong() && !reader.is_cut(), "{line:?}: {reader:?}");
    }
}

#[test]
fn a_line_cut_by_its_segment_is_known_as_such_wherever_it_is_cut() {
    for (speaker, line, word) in [
        (Speaker::Client, "PORT 198,51,100,7,156,64\r\n", 5),
        (Speaker::Client, "EPRT |2|2001:db8::7|40000|\r\n", 5),
        (Speaker::Server, "227 Entering Passive Mode (10,0,0,11,156,64).\r\n", 4),
        (Speaker::Server, "229 Entering Extended Passive Mode (|||40000|)\r\n", 4),
    ] {
        for len in 0..line.len() {
            let reader = Reader::read(speaker, &line.as_bytes()[..len]);
            assert_eq!(reader.is_cut(), len >= word, "{:?}", &line[..len]);
            assert!(!reader.is_whole() && !reader.is_wrong());
        }
        assert!(Reader::read(speaker, line.as_bytes()).is_whole());
    }
}

fn rewritten(line: &str, vip: [u8; 4]) -> Option<String> {
    let reader = Reader::read(Speaker::Server, line.as_bytes());
    assert!(reader.is_whole(), "{line:?}");
    let mut bytes = [0; SEGMENT];
    bytes[..line.len()].copy_from_slice(line.as_bytes());
    let mut draft = Draft::of(bytes, 0);
    rewrite_passive(&reader, &mut draft, vip)
        .then(|| String::from_utf8(draft.bytes[..line.len()].to_vec()).unwrap())
}

#[test]
fn a_reply_keeps_its_length_with_another_address() {
    const SHORT: [u8; 4] = [1, 2, 3, 4];
    const LONG: [u8; 4] = [203, 100, 113, 100];
    for (line, vip, expected) in [
        (
            "227 Entering Passive Mode (10,0,0,11,156,64).\r\n",
            SHORT,
            Some("227 Entering Passive Mode   (1,2,3,4,156,64).\r\n"),
        ),
        (
            "227 Entering Passive Mode (10,0,0,11,156,64).\r\n",
            LONG,
            Some("227 Entering Passive(203,100,113,100,156,64).\r\n"),
        ),
        (
            "227 Entering Passive Mode (9,9,9,9,156,64).\r\n",
            SHORT,
            Some("227 Entering Passive Mode (1,2,3,4,156,64).\r\n"),
        ),
        ("227 =100,100,100,100,1,1\r\n", SHORT, Some("227         =1,2,3,4,1,1\r\n")),
        ("227 100,100,100,100,1,1\r\n", SHORT, Some("227         1,2,3,4,1,1\r\n")),
        ("227 1,1,1,1,1,1\r\n", LONG, None),
        ("227 =1,1,1,1,1,1\r\n", LONG, None),
    ] {
        assert_eq!(rewritten(line, vip).as_deref(), expected, "{line:?}");
    }
}

/// A segment with an active command, made to name another address and port; and its new length, beyond [`SEGMENT`] when
/// it does not fit.
fn renamed(text: &str, address: IpAddr, port: u16) -> (String, u32) {
    let reader = Reader::read(Speaker::Client, text.as_bytes());
    assert!(reader.is_whole(), "{text:?}");
    let mut came = [0; SEGMENT];
    came[..text.len()].copy_from_slice(text.as_bytes());
    let mut draft = Draft::of([0; SEGMENT], 0);
    for at in 0..text.len() as u32 {
        rewrite_active(&reader, &came, &mut draft, at, address.into(), port);
    }
    let written = (draft.at as usize).min(SEGMENT);
    (String::from_utf8_lossy(&draft.bytes[..written]).into_owned(), draft.at)
}

#[test]
fn a_command_is_made_to_name_another_address_in_its_own_form() {
    for (text, address, port, expected) in [
        ("PORT 198,51,100,7,195,80\r\n", "10.0.0.200", 1024, "PORT 10,0,0,200,4,0\r\n"),
        ("PORT 1,2,3,4,5,6\r\n", "203.100.113.100", 65_535, "PORT 203,100,113,100,255,255\r\n"),
        ("port  1,2,3,4,5,6 \n", "9.8.7.6", 2560, "port  9,8,7,6,10,0 \n"),
        (
            "NOOP\r\nPORT 1,2,3,4,5,6\r\nNOOP\r\n",
            "9.8.7.60",
            4242,
            "NOOP\r\nPORT 9,8,7,60,16,146\r\nNOOP\r\n",
        ),
        ("EPRT |1|198.51.100.7|50000|\r\n", "10.0.0.200", 1024, "EPRT |1|10.0.0.200|1024|\r\n"),
        ("EPRT !2!2001:db8::7!40000!\r\n", "fd00::b:200", 6000, "EPRT !2!fd00:0:0:0:0:0:b:200!6000!\r\n"),
        (
            "EPRT |2|::1|1|\r\n",
            "1234:567:89:a:bcde:f0:0:1",
            10_000,
            "EPRT |2|1234:567:89:a:bcde:f0:0:1|10000|\r\n",
        ),
    ] {
        let (renamed, len) = renamed(text, address.parse().unwrap(), port);
        assert_eq!((renamed.as_str(), len as usize), (expected, expected.len()), "{text:?}");
    }
}

#[test]
fn a_segment_that_becomes_too_long_says_so() {
    let text = format!("PORT 1,2,3,4,5,6\r\n{}", "x".repeat(SEGMENT - 18));
    let (_, len) = renamed(&text, IpAddr::from([203, 100, 113, 100]), 65_535);
    assert_eq!(len as usize, SEGMENT + 12);
}

proptest! {
    #[test]
    fn a_renamed_command_says_the_new_address_and_all_else_stays(
        v6: bool,
        old: bool,
        from: [u16; 8],
        to: [u16; 8],
        ports in (1u16.., 1u16..),
        after in "[A-Z]{0,9}",
    ) {
        let of = |groups: [u16; 8]| -> IpAddr {
            let v4 = Ipv4Addr::from(u32::from(groups[0]) << 16 | u32::from(groups[1]));
            if v6 { Ipv6Addr::from(groups).into() } else { v4.into() }
        };
        let (client, local) = (of(from), of(to));
        prop_assume!(!v6 || !client.to_string().contains('.'));
        let write = |address: IpAddr, port: u16| match address {
            IpAddr::V4(v4) if old => {
                let [a, b, c, d] = v4.octets();
                format!("{a},{b},{c},{d},{},{}", port >> 8, port & 255)
            }
            IpAddr::V4(v4) => format!("{v4}|{port}"),
            IpAddr::V6(v6) => format!("{}|{port}", v6.segments().map(|group| format!("{group:x}")).join(":")),
        };
        let around = |argument: String| match (v6, old) {
            (false, true) => format!("PORT {argument}\r\n{after}"),
            (false, false) => format!("EPRT |1|{argument}|\r\n{after}"),
            (true, _) => format!("EPRT |2|{argument}|\r\n{after}"),
        };
        let text = around(if v6 { format!("{client}|{}", ports.0) } else { write(client, ports.0) });
        let (new, len) = renamed(&text, local, ports.1);
        prop_assert_eq!(len as usize, new.len());
        prop_assert_eq!(new, around(write(local, ports.1)));
    }

    #[test]
    fn any_bytes_are_read_without_a_fault(server: bool, payload in proptest::collection::vec(any::<u8>(), 0..300)) {
        let speaker = if server { Speaker::Server } else { Speaker::Client };
        let reader = Reader::read(speaker, &payload);
        prop_assert!(!reader.is_whole() || reader.port != 0);
        prop_assert!(reader.end as usize <= SEGMENT && reader.first as usize <= SEGMENT);
    }

    #[test]
    fn bytes_of_the_grammar_are_read_without_a_fault(
        server: bool,
        word in prop::sample::select(vec!["PORT ", "EPRT ", "227 ", "229 ", "x\r\n227 "]),
        rest in "[0-9,.:|() a-f\r\n]{0,60}",
    ) {
        let speaker = if server { Speaker::Server } else { Speaker::Client };
        let text = format!("{word}{rest}");
        let reader = Reader::read(speaker, text.as_bytes());
        if reader.is_whole() {
            prop_assert!((1..=65_535).contains(&reader.port));
            prop_assert!(reader.start <= reader.first && reader.first < reader.end);
            prop_assert!((reader.end as usize) < text.len());
        }
    }

    #[test]
    fn an_ipv6_address_is_read_as_the_standard_library_reads_it(groups: [u16; 8], zeros in 0usize..8, from in 0usize..8, port in 1u16..) {
        let mut groups = groups;
        groups.iter_mut().skip(from).take(zeros).for_each(|group| *group = 0);
        let address = Ipv6Addr::from(groups);
        // Its text may end in dots where it maps IPv4, which nobody's client is.
        prop_assume!(!address.to_string().contains('.'));
        let line = format!("EPRT |2|{address}|{port}|\r\n");
        let expected = (Line::ExtendedPort as u32, Some(IpAddr::from(address)), port);
        prop_assert_eq!(heard(Speaker::Client, line.as_bytes()), Some(expected));
    }

    #[test]
    fn a_text_of_an_ipv6_address_is_taken_only_if_it_is_one(text in "[0-9a-f:]{1,20}") {
        let line = format!("EPRT |2|{text}|21|\r\n");
        let expected = text.parse::<Ipv6Addr>().ok().map(|a| (Line::ExtendedPort as u32, Some(IpAddr::from(a)), 21));
        prop_assert_eq!(heard(Speaker::Client, line.as_bytes()), expected);
    }

    #[test]
    fn a_rewritten_reply_says_the_vip_and_nothing_else_moves(
        server: [u8; 4],
        vip: [u8; 4],
        port in 1u16..,
        text in "[A-Za-z ]{0,40}[ (=]",
    ) {
        let [a, b, c, d] = server;
        let [high, low] = port.to_be_bytes();
        let line = format!("227 {text}{a},{b},{c},{d},{high},{low}).\r\n");
        match rewritten(&line, vip) {
            Some(new) => {
                prop_assert_eq!(new.len(), line.len());
                let expected = (Line::Passive as u32, Some(IpAddr::from(Ipv4Addr::from(vip))), port);
                prop_assert_eq!(heard(Speaker::Server, new.as_bytes()), Some(expected), "{}", new);
                prop_assert!(new.starts_with("227 ") && new.ends_with(").\r\n"));
            }
            // Eight more digits, and what stands before the first.
            None => prop_assert!(text.len() < 9),
        }
    }
}
