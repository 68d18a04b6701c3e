//! How long a frame is, where it may lie in several buffers.

use crate::{maps::config, packet::Frame};
use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_xdp_get_buff_len};

impl Frame {
    /// Bytes in the frame, of a jumbo frame those behind its first buffer too. Which of the two it is, the verifier
    /// sees: the other is not in the program that runs.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        if config!(frags) != 0 { lb_length(self.ctx) } else { self.linear() }
    }
}

/// All of a frame's bytes (Linux 5.18).
#[inline(never)]
fn lb_length(ctx: *mut xdp_md) -> u32 {
    // SAFETY: the kernel's helper, and its context.
    unsafe { bpf_xdp_get_buff_len(ctx.cast()) as u32 }
}
