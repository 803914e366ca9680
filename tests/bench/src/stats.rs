//! What is kept of a measurement: how often, and how long.

use std::time::Duration;

use serde::Serialize;

/// Rate and latencies of one measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Operations that were done.
    pub count: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Operations a second.
    pub rate: f64,
    /// Median latency in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile in milliseconds.
    pub p99_ms: f64,
}

/// Latencies as they were seen, of one or more rounds.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    nanoseconds: Vec<u64>,
    errors: u64,
    /// Time during which they were taken.
    elapsed: Duration,
}

impl Samples {
    /// Takes one latency.
    pub fn push(&mut self, latency: Duration) {
        self.nanoseconds.push(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Takes one failure.
    pub fn fail(&mut self) {
        self.errors += 1;
    }

    /// Adds what another client of the same time saw.
    pub fn join(&mut self, other: Samples) {
        self.nanoseconds.extend(other.nanoseconds);
        self.errors += other.errors;
    }

    /// Adds a round of another time.
    pub fn append(&mut self, other: Samples) {
        self.elapsed += other.elapsed;
        self.join(other);
    }

    /// Says how long the round took.
    pub fn took(mut self, elapsed: Duration) -> Samples {
        self.elapsed = elapsed;
        self
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.nanoseconds.len()
    }

    /// Rate and latencies.
    pub fn summary(&self) -> Summary {
        let mut sorted = self.nanoseconds.clone();
        sorted.sort_unstable();
        let ms = |q: f64| percentile(&sorted, q).map_or(f64::NAN, |ns| ns as f64 / 1e6);
        let seconds = self.elapsed.as_secs_f64();
        Summary {
            count: sorted.len() as u64,
            errors: self.errors,
            rate: if seconds > 0.0 { sorted.len() as f64 / seconds } else { f64::NAN },
            p50_ms: ms(0.50),
            p99_ms: ms(0.99),
        }
    }
}

/// The smallest value that at least `q` of all values do not exceed.
fn percentile(sorted: &[u64], q: f64) -> Option<u64> {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(percentile(&hundred, 0.50), Some(50));
        assert_eq!(percentile(&hundred, 0.99), Some(99));
        assert_eq!(percentile(&[7], 0.99), Some(7));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn rounds_add_up_and_clients_do_not() {
        let mut client = Samples::default();
        client.push(Duration::from_millis(2));
        let mut round = client.clone();
        round.join(client);
        let mut all = round.clone().took(Duration::from_secs(1));
        all.append(round.took(Duration::from_secs(1)));
        let summary = all.summary();
        assert_eq!(summary.count, 4);
        assert!((summary.rate - 2.0).abs() < 1e-9 && (summary.p50_ms - 2.0).abs() < 1e-9);
    }
}
