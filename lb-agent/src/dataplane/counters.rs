//! Counters as the operator reads them: sums over the CPUs, and over destinations that are no more.

use super::{
    Error, Views,
    store::{BoxStore, Kernel},
};
use aya::maps::{Map, MapData, PerCpuArray};
use lb_common::{
    destination::{Destination, Traffic, flags},
    maps::pinned,
    verdict::{Count, Reason},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
};

type PerCpu<V> = BoxStore<u32, Vec<V>>;

/// Reads the data plane's counters.
pub struct Counters {
    views: Arc<Views>,
    stores: Mutex<(PerCpu<Count>, PerCpu<Traffic>)>,
}

impl Counters {
    pub(super) fn of<'a>(
        views: Arc<Views>,
        map: impl Fn(&'static str) -> Result<&'a Map, Error>,
    ) -> Result<Self, Error> {
        let reasons = Kernel::<PerCpuArray<MapData, Count>>::of(pinned::REASONS, map(pinned::REASONS)?)?;
        let traffic = Kernel::<PerCpuArray<MapData, Traffic>>::of(pinned::TRAFFIC, map(pinned::TRAFFIC)?)?;
        Ok(Self::new(views, Box::new(reasons), Box::new(traffic)))
    }

    pub(super) fn new(views: Arc<Views>, reasons: PerCpu<Count>, traffic: PerCpu<Traffic>) -> Self {
        Self { views, stores: Mutex::new((reasons, traffic)) }
    }

    /// Frames and bytes by reason, in the order of the reasons' numbers.
    pub fn reasons(&self) -> Result<Vec<(Reason, Count)>, Error> {
        let stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sums = Vec::with_capacity(Reason::ALL.len());
        for reason in Reason::ALL {
            let mut sum = Count::default();
            for cpu in stores.0.get(&(*reason as u32))?.unwrap_or_default() {
                sum.packets += cpu.packets;
                sum.bytes += cpu.bytes;
            }
            sums.push((*reason, sum));
        }
        Ok(sums)
    }

    /// What one destination forwarded.
    pub fn destination(&self, index: u32) -> Result<Traffic, Error> {
        let stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(sum(&stores.1.get(&index)?.unwrap_or_default()))
    }

    /// What the destinations in use forwarded, by their index, those in quarantine included.
    pub fn destinations(&self) -> Result<BTreeMap<u32, Traffic>, Error> {
        (0..self.views.destinations.len())
            .filter(|index| {
                let word = self.views.destinations.word(*index, 0).load(Relaxed);
                Destination::flags_of(word) & flags::VALID != 0
            })
            .map(|index| Ok((index, self.destination(index)?)))
            .collect()
    }

    /// What services forwarded by their destinations in use, by the service's index.
    pub fn services(&self) -> Result<BTreeMap<u32, Traffic>, Error> {
        let mut services = BTreeMap::<u32, Traffic>::new();
        for (index, traffic) in self.destinations()? {
            add(services.entry(self.views.destinations.get(index).service).or_default(), &traffic);
        }
        Ok(services)
    }

    /// What destinations forwarded that are no more.
    pub fn retired(&self) -> Result<Traffic, Error> {
        self.destination(self.views.destinations.len())
    }
}

/// The sum over CPUs.
pub(super) fn sum(cpus: &[Traffic]) -> Traffic {
    cpus.iter().fold(Traffic::default(), |mut sum, cpu| {
        add(&mut sum, cpu);
        sum
    })
}

/// Adds to a sum.
pub(super) fn add(sum: &mut Traffic, more: &Traffic) {
    sum.packets_in += more.packets_in;
    sum.bytes_in += more.bytes_in;
    sum.packets_out += more.packets_out;
    sum.bytes_out += more.bytes_out;
}
