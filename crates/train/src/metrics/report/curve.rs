//! Numbers over steps, in bounded memory however long the run was.
//!
//! A run may have a hundred thousand steps, a screen has a thousand columns. Both types below keep the numbers in bins of
//! steps; when there are too many bins, each takes in its neighbour. A short run keeps every number.

/// What is larger is damage.
pub const LARGEST: f64 = 1e100;

/// One number a step.
#[derive(Clone, Debug)]
pub struct Curve {
    limit: usize,
    width: u64,
    bins: Vec<Bin>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    n: u64,
    steps: f64,
    sum: f64,
    low: f64,
    high: f64,
}

impl Bin {
    fn take(&mut self, other: Bin) {
        if self.n == 0 {
            *self = other;
        } else if other.n > 0 {
            self.n += other.n;
            self.steps += other.steps;
            self.sum += other.sum;
            self.low = self.low.min(other.low);
            self.high = self.high.max(other.high);
        }
    }
}

/// What a curve has at some steps.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Point {
    /// Mean step.
    pub step: f64,
    /// Mean.
    pub mean: f64,
    /// Least.
    pub low: f64,
    /// Greatest.
    pub high: f64,
}

impl Curve {
    /// An empty curve of at most `limit` points, two at least.
    pub fn new(limit: usize) -> Curve {
        Curve { limit: limit.max(2), width: 1, bins: vec![] }
    }

    /// Adds a number; one that is not finite, or so large that a sum of them is not, is left out.
    pub fn push(&mut self, step: u64, value: f64) {
        if value.is_nan() || value.abs() > LARGEST {
            return;
        }
        let index = fit(step, self.limit, &mut self.width, &mut self.bins, |a, b| a.take(*b));
        if self.bins.len() <= index {
            self.bins.resize(index + 1, Bin::default());
        }
        self.bins[index].take(Bin { n: 1, steps: step as f64, sum: value, low: value, high: value });
    }

    /// The points, in the order of steps.
    pub fn points(&self) -> Vec<Point> {
        let filled = self.bins.iter().filter(|bin| bin.n > 0);
        filled
            .map(|b| {
                let n = b.n as f64;
                Point { step: b.steps / n, mean: b.sum / n, low: b.low, high: b.high }
            })
            .collect()
    }

    /// True if a point may stand for several numbers.
    pub fn is_binned(&self) -> bool {
        self.width > 1
    }
}

/// The means, smoothed: at each point the value of the straight line that fits its neighbourhood best, under a bell curve
/// of `sigma` points (local linear regression; Cleveland 1979). A plain average would bend the ends of a falling curve.
/// The first points, where a loss falls fastest, have smaller neighbourhoods.
pub fn smooth(points: &[Point], sigma: f64) -> Vec<(f64, f64)> {
    let at = |i: usize| {
        let sigma = sigma.min(0.25 * i as f64).max(0.3);
        let reach = (3.0 * sigma).ceil() as usize;
        let (mut w0, mut w1, mut w2, mut y0, mut y1) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (j, point) in points.iter().enumerate().take(i + reach + 1).skip(i.saturating_sub(reach)) {
            let x = j as f64 - i as f64;
            let w = (-0.5 * (x / sigma).powi(2)).exp();
            w0 += w;
            w1 += w * x;
            w2 += w * x * x;
            y0 += w * point.mean;
            y1 += w * x * point.mean;
        }
        let determinant = w0 * w2 - w1 * w1;
        let value = if determinant > 1e-6 { (w2 * y0 - w1 * y1) / determinant } else { y0 / w0 };
        (points[i].step, value)
    };
    (0..points.len()).map(at).collect()
}

/// Several numbers a step: a column of an image.
#[derive(Clone, Debug)]
pub struct Columns {
    limit: usize,
    width: u64,
    sums: Vec<(u64, Vec<f64>)>,
}

impl Columns {
    /// No columns yet, and never more than `limit`, two at least.
    pub fn new(limit: usize) -> Columns {
        Columns { limit: limit.max(2), width: 1, sums: vec![] }
    }

    /// Adds the numbers of a step.
    pub fn push(&mut self, step: u64, values: &[f64]) {
        fn take(into: &mut (u64, Vec<f64>), from: &(u64, Vec<f64>)) {
            into.0 += from.0;
            into.1.resize(into.1.len().max(from.1.len()), 0.0);
            into.1.iter_mut().zip(&from.1).for_each(|(a, b)| *a += b);
        }
        let index = fit(step, self.limit, &mut self.width, &mut self.sums, take);
        if self.sums.len() <= index {
            self.sums.resize(index + 1, (0, vec![]));
        }
        let finite = values.iter().map(|v| if v.is_finite() { *v } else { 0.0 }).collect();
        take(&mut self.sums[index], &(1, finite));
    }

    /// The mean columns from the first that has numbers; one without shows what was before it. And the step at the left
    /// edge of the first, and the one at the right edge of the last.
    pub fn means(&self) -> (Vec<Vec<f64>>, [u64; 2]) {
        let first = self.sums.iter().position(|(n, _)| *n > 0).unwrap_or(self.sums.len());
        let mut columns: Vec<Vec<f64>> = vec![];
        for (n, sums) in &self.sums[first..] {
            let column = match columns.last() {
                Some(before) if *n == 0 => before.clone(),
                _ => sums.iter().map(|sum| sum / *n as f64).collect(),
            };
            columns.push(column);
        }
        (columns, [first as u64 * self.width, (self.sums.len() as u64).saturating_mul(self.width)])
    }
}

/// The index of a step's bin, after bins were paired until there is room for it.
fn fit<T: Clone>(step: u64, limit: usize, width: &mut u64, bins: &mut Vec<T>, take: impl Fn(&mut T, &T)) -> usize {
    while step / *width >= limit as u64 {
        *width *= 2;
        let pair = |pair: &[T]| {
            let mut one = pair[0].clone();
            pair[1..].iter().for_each(|other| take(&mut one, other));
            one
        };
        *bins = bins.chunks(2).map(pair).collect();
    }
    (step / *width) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_short_run_keeps_every_number() {
        let mut curve = Curve::new(8);
        for step in 1..8 {
            curve.push(step, (step * step) as f64);
        }
        curve.push(4, f64::NAN);
        let expected: Vec<(f64, f64)> = (1..8).map(|n| (f64::from(n), f64::from(n * n))).collect();
        assert_eq!(curve.points().iter().map(|p| (p.step, p.mean)).collect::<Vec<_>>(), expected);
        assert!(!curve.is_binned());
    }

    #[test]
    fn a_step_beyond_all_others_costs_no_memory() {
        let mut curve = Curve::new(16);
        curve.push(1, 1.0);
        curve.push(u64::MAX, 2.0);
        assert_eq!(curve.points().len(), 2);
        assert!(curve.bins.len() <= 16);
    }

    #[test]
    fn smoothing_keeps_straight_lines_and_calms_noise() {
        let line: Vec<Point> =
            (0..50).map(|i| Point { step: f64::from(i), mean: 3.0 - f64::from(i), low: 0.0, high: 0.0 }).collect();
        for (point, (step, value)) in line.iter().zip(smooth(&line, 4.0)) {
            assert!((point.mean - value).abs() < 1e-9 && point.step == step);
        }
        let noisy: Vec<Point> = (0..50).map(|i| Point { mean: f64::from(i % 2), ..line[i as usize] }).collect();
        assert!(smooth(&noisy, 4.0)[16..38].iter().all(|(_, v)| (v - 0.5).abs() < 1e-2));
    }

    #[test]
    fn columns_average_what_they_merge_and_fill_what_is_missing() {
        let mut columns = Columns::new(4);
        for step in [1, 3, 5] {
            columns.push(step, &[step as f64, 1.0]);
        }
        // Two steps a bin: {0, 1}, {2, 3}, {4, 5}.
        assert_eq!(columns.means(), (vec![vec![1.0, 1.0], vec![3.0, 1.0], vec![5.0, 1.0]], [0, 6]));
        let mut sparse = Columns::new(8);
        sparse.push(2, &[2.0]);
        sparse.push(5, &[5.0]);
        assert_eq!(sparse.means(), (vec![vec![2.0], vec![2.0], vec![2.0], vec![5.0]], [2, 6]));
        assert_eq!(Columns::new(8).means(), (vec![], [0, 0]));
        let mut far = Columns::new(8);
        far.push(u64::MAX, &[1.0]);
        assert_eq!(far.means(), (vec![vec![1.0]], [7 << 61, u64::MAX]));
    }

    proptest! {
        #[test]
        fn binning_keeps_sums_and_extremes(values in prop::collection::vec(-1e3..1e3f64, 1..300), limit in 2usize..40) {
            let mut curve = Curve::new(limit);
            for (i, &value) in values.iter().enumerate() {
                curve.push(i as u64 + 1, value);
            }
            prop_assert!(curve.bins.len() <= limit);
            let sum: f64 = curve.bins.iter().map(|b| b.sum).sum();
            prop_assert!((sum - values.iter().sum::<f64>()).abs() < 1e-6);
            let points = curve.points();
            prop_assert!(points.windows(2).all(|w| w[0].step < w[1].step));
            let low = points.iter().map(|p| p.low).fold(f64::MAX, f64::min);
            prop_assert_eq!(low, values.iter().copied().fold(f64::MAX, f64::min));
        }
    }
}
