//! Latencies in fixed space: buckets whose width grows with their value, each within 1.6 % of what it counts.

use std::time::Duration;

/// Each power of two is cut in this many buckets.
const PARTS_LOG2: u32 = 6;
const PARTS: u64 = 1 << PARTS_LOG2;

/// Longer latencies (18 minutes) all count as this one.
const NANOS_LOG2_MAX: u32 = 40;
const BUCKETS: usize = ((NANOS_LOG2_MAX - PARTS_LOG2 + 1) as usize) << PARTS_LOG2;

#[derive(Clone)]
pub struct Histogram {
    counts: Box<[u32]>,
    total: u64,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into(), total: 0, max: Duration::ZERO }
    }
}

impl Histogram {
    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let count = &mut self.counts[bucket(nanos)];
        *count = count.saturating_add(1);
        self.total += 1;
        self.max = self.max.max(latency);
    }

    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine = mine.saturating_add(*theirs);
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    pub fn count(&self) -> u64 {
        self.total
    }

    pub fn max(&self) -> Duration {
        self.max
    }

    /// The latency that a share of all latencies does not exceed, `share` from 0 to 1; zero when there is none.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= rank {
                return Duration::from_nanos(upper_bound(index)).min(self.max);
            }
        }
        self.max
    }
}

fn bucket(nanos: u64) -> usize {
    let nanos = nanos.min((1 << NANOS_LOG2_MAX) - 1);
    if nanos < PARTS {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - PARTS_LOG2;
    ((u64::from(shift) << PARTS_LOG2) + (nanos >> shift)) as usize
}

/// The largest number of nanoseconds that a bucket counts.
fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < PARTS {
        return bucket;
    }
    let shift = (bucket >> PARTS_LOG2) - 1;
    (((bucket & (PARTS - 1)) + PARTS + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket() {
        let mut last = 0;
        for nanos in (0..200_000).chain((0..35).map(|power| 37 << power)) {
            let index = bucket(nanos);
            let bound = upper_bound(index);
            assert!(bound >= nanos && bound - nanos <= nanos / PARTS, "{nanos} in {index} up to {bound}");
        }
        for nanos in 0..200_000 {
            let index = bucket(nanos);
            assert!(index == last || index == last + 1, "{nanos} skips a bucket");
            last = index;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_values() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|micros| histogram.record(Duration::from_micros(micros)));
        let near = |share, micros: f64| {
            let found = histogram.quantile(share).as_secs_f64() * 1e6;
            assert!((found - micros).abs() <= micros * 0.02, "{share}: {found} µs");
        };
        near(0.5, 500.0);
        near(0.99, 990.0);
        assert_eq!(histogram.quantile(1.0), Duration::from_micros(1000));
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
    }

    #[test]
    fn merged_histograms_are_as_if_recorded_in_one() {
        let (mut left, mut right, mut both) =
            (Histogram::default(), Histogram::default(), Histogram::default());
        for micros in 1..100 {
            let latency = Duration::from_micros(micros * micros);
            if micros % 3 == 0 { &mut left } else { &mut right }.record(latency);
            both.record(latency);
        }
        left.merge(&right);
        assert_eq!((left.count(), left.max()), (both.count(), both.max()));
        assert_eq!(left.quantile(0.9), both.quantile(0.9));
    }
}
