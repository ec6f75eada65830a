//! Ranks that come as often as a Zipf distribution says: rank r, from 1, with a chance in proportion to 1/r^exponent.
//!
//! Drawn by rejection-inversion (Hörmann and Derflinger 1996): two or three logarithms whatever the count is, no table, any
//! exponent above 0, and the count may grow between draws.

/// A distribution over the ranks of any count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Zipf {
    exponent: f64,
    /// The area left of which rank 1 alone lies.
    first: f64,
    /// A point so near its rank needs no second look.
    near: f64,
}

impl Zipf {
    /// Of an exponent above 0.
    pub(super) fn new(exponent: f64) -> Self {
        let mut zipf = Self { exponent, first: 0.0, near: 0.0 };
        zipf.first = zipf.area(1.5) - 1.0;
        zipf.near = 2.0 - zipf.area_inverse(zipf.area(2.5) - zipf.height(2.0));
        zipf
    }

    /// A rank from 0 to `count` - 1; 0 comes most often. `count` is at least 1.
    pub(super) fn draw(&self, count: usize, mut random: impl FnMut() -> f64) -> usize {
        let last = self.area(count as f64 + 0.5);
        loop {
            let area = last + random() * (self.first - last);
            let point = self.area_inverse(area);
            let rank = point.round().clamp(1.0, count as f64);
            // The hat lies above the bars: what falls between is drawn again, 1 in 8 times at most.
            if rank - point <= self.near || area >= self.area(rank + 0.5) - self.height(rank) {
                return rank as usize - 1;
            }
        }
    }

    /// Of the bar of a rank.
    fn height(&self, point: f64) -> f64 {
        (-self.exponent * point.ln()).exp()
    }

    /// Under the hat, from 1 to a point: (point^(1 - exponent) - 1) / (1 - exponent), and its limit, ln(point), at 1.
    fn area(&self, point: f64) -> f64 {
        let log = point.ln();
        slope_exp((1.0 - self.exponent) * log) * log
    }

    fn area_inverse(&self, area: f64) -> f64 {
        let scaled = (area * (1.0 - self.exponent)).max(-1.0);
        (slope_log(scaled) * area).exp()
    }
}

/// (e^x - 1) / x, 1 at 0.
fn slope_exp(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.exp_m1() / x } else { 1.0 + x / 2.0 }
}

/// ln(1 + x) / x, 1 at 0.
fn slope_log(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.ln_1p() / x } else { 1.0 - x / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: usize = 400_000;

    #[test]
    fn ranks_come_as_often_as_they_should() {
        for (exponent, count) in [(0.5, 50), (0.99, 1000), (1.0, 20), (1.0, 1), (2.5, 7)] {
            let zipf = Zipf::new(exponent);
            let mut random = fastrand::Rng::with_seed(7);
            let mut drawn = vec![0_usize; count];
            for _ in 0..DRAWS {
                drawn[zipf.draw(count, || random.f64())] += 1;
            }
            let sum: f64 = (1..=count).map(|rank| (rank as f64).powf(-exponent)).sum();
            for (rank, drawn) in drawn.iter().enumerate() {
                let expected = DRAWS as f64 * ((rank + 1) as f64).powf(-exponent) / sum;
                // Five standard deviations: the seed is fixed, so this fails always or never.
                let off = (*drawn as f64 - expected).abs();
                assert!(off <= 5.0 * expected.sqrt() + 1.0, "{exponent} {count} {rank}: {drawn} {expected}");
            }
        }
    }

    #[test]
    fn the_ends_of_the_random_numbers_stay_inside() {
        for exponent in [0.01, 0.99, 1.0, 10.0] {
            for count in [1, 2, 1_000_000] {
                for point in [0.0, 0.5, 1.0 - f64::EPSILON] {
                    // A point that is drawn again needs another one.
                    let mut points = [point, 0.5, 0.25].into_iter().cycle();
                    let rank = Zipf::new(exponent).draw(count, || points.next().unwrap());
                    assert!(rank < count, "{exponent} {count} {point}: {rank}");
                }
            }
        }
    }
}
