//! What needs devices that not every kernel has: run by `cargo xtask test kernels` under one that has them, and by no
//! other tier, so that a kernel without them cannot look as if it had passed. Needs root; an emulated machine is slow,
//! so nothing here is in a hurry.

mod kernel_tunnels;
#[allow(dead_code, reason = "the netns tests use all of it")]
#[path = "../netns/site.rs"]
mod site;
