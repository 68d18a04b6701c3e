//! Datagrams by the batch: one system call receives or sends up to 32, each with the address it came from and
//! the address it came to.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// How many datagrams one system call moves. Well below the 256 frames a veth queue holds for XDP, so that
/// the laboratory's own queues do not overflow.
pub(super) const BATCH: usize = 32;

/// Room for a batch of datagrams with the address each came from and the address it came to.
pub(super) struct Inbox {
    datagrams: Vec<[u8; 256]>,
    lengths: [usize; BATCH],
    senders: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    answers: [Answer; BATCH],
}

/// Room for one IP_PKTINFO or IPV6_PKTINFO message; aligned as `cmsghdr` needs it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct Control {
    bytes: [u8; 64],
    length: usize,
}

/// Which datagram is to be answered, and how many bytes of its room are the answer.
#[derive(Clone, Copy, Default)]
struct Answer {
    index: usize,
    length: usize,
}

impl Inbox {
    pub(super) fn new() -> Inbox {
        // SAFETY: sockaddr_storage is plain bytes, for which zeros are a value.
        let nobody: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        Inbox {
            datagrams: vec![[0; 256]; BATCH],
            lengths: [0; BATCH],
            senders: vec![nobody; BATCH],
            controls: vec![Control { bytes: [0; 64], length: 0 }; BATCH],
            answers: [Answer::default(); BATCH],
        }
    }

    pub(super) fn datagram(&self, index: usize) -> &[u8] {
        &self.datagrams[index][..self.lengths[index]]
    }

    /// Receives up to a batch; waits for the first as the socket and `flags` say.
    pub(super) fn receive(&mut self, socket: &UdpSocket, flags: i32) -> io::Result<usize> {
        let mut pieces = self.pieces(128);
        let mut messages: Vec<libc::mmsghdr> = (0..BATCH)
            .map(|index| {
                let control = &mut self.controls[index];
                control.length = control.bytes.len();
                message(&mut pieces[index], Some((&mut self.senders[index], control)))
            })
            .collect();
        // SAFETY: every message points into `pieces` and `self`, which outlive the call, with true lengths.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH as u32,
                flags,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        for (index, message) in messages[..count as usize].iter().enumerate() {
            self.lengths[index] = message.msg_len as usize;
            self.controls[index].length = message.msg_hdr.msg_controllen;
        }
        Ok(count as usize)
    }

    /// Turns datagram `index` into the `nth` answer: its first `head` bytes and the name, sent from the
    /// address it came to. The interface is left open, for an answer may leave by another one.
    pub(super) fn prepare_answer(&mut self, index: usize, nth: usize, head: usize, name: &str) {
        let name = &name.as_bytes()[..name.len().min(128)];
        self.datagrams[index][head..head + name.len()].copy_from_slice(name);
        self.answers[nth] = Answer { index, length: head + name.len() };
        let control = &mut self.controls[index];
        if control.length < size_of::<libc::cmsghdr>() {
            return;
        }
        // SAFETY: the kernel wrote one whole control message into the aligned buffer, and pktinfo structs are
        // plain numbers that may be read and written in place.
        unsafe {
            let header = control.bytes.as_mut_ptr().cast::<libc::cmsghdr>();
            let data = libc::CMSG_DATA(header);
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    (*data.cast::<libc::in_pktinfo>()).ipi_ifindex = 0;
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    (*data.cast::<libc::in6_pktinfo>()).ipi6_ifindex = 0;
                }
                _ => control.length = 0,
            }
        }
    }

    /// Sends the first `count` prepared answers. One that cannot be sent is dropped, as a server would.
    pub(super) fn send_answers(&mut self, socket: &UdpSocket, count: usize) {
        let lengths = self.answers;
        let mut pieces = self.pieces(0);
        let mut messages: Vec<libc::mmsghdr> = Vec::with_capacity(count);
        for Answer { index, length } in lengths[..count].iter().copied() {
            pieces[index].iov_len = length;
            let control = &mut self.controls[index];
            messages.push(message(&mut pieces[index], Some((&mut self.senders[index], control))));
        }
        let mut done = 0;
        while done < count {
            // SAFETY: as in `receive`; the range `done..count` is inside the messages.
            let sent = unsafe {
                let first = messages.as_mut_ptr().add(done);
                libc::sendmmsg(socket.as_raw_fd(), first, (count - done) as u32, 0)
            };
            done += if sent > 0 { sent as usize } else { 1 };
        }
    }

    /// One piece for each datagram's room, all of the same length.
    fn pieces(&mut self, length: usize) -> Vec<libc::iovec> {
        let rooms = self.datagrams.iter_mut();
        rooms.map(|room| libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: length }).collect()
    }
}

/// A message of one piece, with an address and control data unless the socket is connected.
pub(super) fn message(
    piece: &mut libc::iovec,
    remote: Option<(&mut libc::sockaddr_storage, &mut Control)>,
) -> libc::mmsghdr {
    // SAFETY: mmsghdr is numbers and pointers, for which zeros are a value.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_iov = piece;
    message.msg_hdr.msg_iovlen = 1;
    if let Some((address, control)) = remote {
        message.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
        message.msg_hdr.msg_namelen = match i32::from(address.ss_family) {
            libc::AF_INET => size_of::<libc::sockaddr_in>() as u32,
            libc::AF_INET6 => size_of::<libc::sockaddr_in6>() as u32,
            _ => size_of::<libc::sockaddr_storage>() as u32,
        };
        message.msg_hdr.msg_control = control.bytes.as_mut_ptr().cast();
        message.msg_hdr.msg_controllen = control.length;
    }
    message
}
