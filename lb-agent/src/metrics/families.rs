//! One metric family after the other: its name, what it means, and its samples.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// Labels of a sample: each family has as many with every sample.
pub type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

/// Where families are written to.
pub struct Families<'a>(DescriptorEncoder<'a>);

type Written = Result<(), fmt::Error>;

impl<'a> Families<'a> {
    pub fn new(encoder: DescriptorEncoder<'a>) -> Families<'a> {
        Families(encoder)
    }

    /// `NAME_info{labels} 1`.
    pub fn info<const N: usize>(&mut self, name: &str, help: &str, labels: Labels<'_, N>) -> Written {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }

    /// One gauge without labels.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> Written {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// The same in seconds, which the name then says.
    pub fn seconds(&mut self, name: &str, help: &str, value: f64) -> Written {
        let unit = Some(&Unit::Seconds);
        self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// One counter without labels.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> Written {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// A gauge of many; one without samples is left out.
    pub fn gauges<'l, const N: usize, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l, N>, V)>,
    ) -> Written {
        self.gauges_in(name, help, None, samples)
    }

    /// The same in a unit, which the name then ends with.
    pub fn gauges_in<'l, const N: usize, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = (Labels<'l, N>, V)>,
    ) -> Written {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut encoder = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        samples.try_for_each(|(labels, value)| encoder.encode_family(&labels)?.encode_gauge(&value))
    }

    /// A counter of many; one without samples is left out.
    pub fn counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = (Labels<'l, N>, u64)>,
    ) -> Written {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut encoder = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        samples.try_for_each(|(labels, value)| {
            encoder.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }

    /// A histogram of seconds; `buckets` hold how many lie between the bound before and theirs, the last one all above.
    pub fn histogram(&mut self, name: &str, help: &str, sum: f64, buckets: &[(f64, u64)]) -> Written {
        let count = buckets.iter().map(|(_, count)| count).sum();
        let unit = Some(&Unit::Seconds);
        let mut encoder = self.0.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        encoder.encode_histogram::<NoLabelSet>(sum, count, buckets, None)
    }
}
