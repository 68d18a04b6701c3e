//! What has to be done to the data plane and the host, as steps in an order in which no packet meets a half-made
//! table: what others lean on is made first and goes last. Pure: [`Layout`] says what should be there, [`diff`]
//! compares two of them, `apply` runs the steps.

mod diff;
mod done;
mod layout;
mod rules;
mod step;

pub use diff::diff;
pub use done::Done;
pub use layout::{
    Binding, Destination, Followers, Hop, HopKey, Layout, Lookup, Pool, Role, Service, ServiceLayout, Slots,
    Via,
};
pub use rules::{NextPacket, Rules, Standing};
pub use step::{Mac, Step};

#[cfg(test)]
mod tests;
