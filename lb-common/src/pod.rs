//! Lets aya read and write the records as map keys and values.

macro_rules! pod {
    ($($record:ty),* $(,)?) => {$(
        // SAFETY: `repr(C)` (or transparent), every field an integer or an array of such, and no padding: the size
        // tests beside each record add up its fields. Any bytes are a valid value.
        unsafe impl aya::Pod for $record {}
    )*};
}

pod!(
    crate::address::Address,
    crate::connection::Bucket,
    crate::connection::ColdTuple,
    crate::destination::Destination,
    crate::destination::NextHop,
    crate::destination::Traffic,
    crate::extension::Extension,
    crate::feed::Feed,
    crate::filter::AddressKey,
    crate::filter::AddressRecord,
    crate::filter::FilterLine,
    crate::guard::Guard,
    crate::guard::Pace,
    crate::hash::Secrets,
    crate::lease::Lease,
    crate::lease::PoolAddress,
    crate::load::Load,
    crate::load::Rate,
    crate::maps::ClientNeighbour,
    crate::probe::Target,
    crate::scratch::Config,
    crate::scratch::Limiter,
    crate::service::PortRanges,
    crate::service::QuicKey,
    crate::filter::PeerKey,
    crate::service::ServerLine,
    crate::service::Service,
    crate::service::ServiceKey,
    crate::service::SlotLine,
    crate::verdict::Count,
    crate::witness::Witness,
);
