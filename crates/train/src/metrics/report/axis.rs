//! Axes: where a value lies, which values are named, and how.

use std::fmt::Write;

/// One axis of a chart.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Axis {
    /// Least value.
    pub low: f64,
    /// Greatest value.
    pub high: f64,
    /// Where the least lies, in pixels.
    pub from: f64,
    /// Where the greatest lies.
    pub to: f64,
    /// Logarithmic: equal factors are equal lengths. Values are above 0.
    pub log: bool,
}

/// How values are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// As numbers.
    Plain,
    /// As hundredths.
    Percent,
    /// As numbers, of which only whole ones are marked.
    Whole,
}

impl Axis {
    /// Where `value` lies; values beyond an end lie at the end.
    pub fn at(&self, value: f64) -> f64 {
        let scale = |v: f64| if self.log { v.max(f64::MIN_POSITIVE).ln() } else { v };
        let (low, high) = (scale(self.low), scale(self.high));
        let share = if high > low { ((scale(value) - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 };
        self.from + share * (self.to - self.from)
    }

    /// Values to mark, with their texts: at most about `most`, at least as many as are round.
    pub fn marks(&self, most: usize, format: Format) -> Vec<(f64, String)> {
        if let Some(ticks) = self.log.then(|| self.decades(most)).flatten() {
            // Each has its own size, and so its own unit.
            return ticks
                .into_iter()
                .flat_map(|t| labels(&[t], format).into_iter().map(move |text| (t, text)))
                .collect();
        }
        let few = (self.high - self.low).max(1.0) as usize;
        let ticks = linear(self.low, self.high, if format == Format::Whole { most.min(few) } else { most });
        let texts = labels(&ticks, format);
        ticks.into_iter().zip(texts).collect()
    }

    /// Round values of a logarithmic axis, unless it is so short that it has hardly any.
    fn decades(&self, most: usize) -> Option<Vec<f64>> {
        let powers = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        for multiples in [&[1.0, 2.0, 5.0][..], &[1.0]] {
            let all = powers.clone().flat_map(|e| multiples.iter().map(move |m| m * 10f64.powi(e)));
            let within: Vec<f64> = all.filter(|t| (self.low..=self.high).contains(t)).collect();
            match within.len() {
                0 | 1 => return None,
                n if n <= most => return Some(within),
                _ => (),
            }
        }
        let every = (powers.clone().count() / most.max(1) + 1) as i32;
        let marked = powers.filter(|e| e.rem_euclid(every) == 0).map(|e| 10f64.powi(e));
        Some(marked.filter(|t| (self.low..=self.high).contains(t)).collect())
    }
}

/// Round multiples: of 1, 2 or 5 times a power of ten.
fn linear(low: f64, high: f64, most: usize) -> Vec<f64> {
    let wanted = (high - low) / most.max(1) as f64;
    if !(wanted.is_finite() && wanted > 0.0) {
        return vec![low];
    }
    let power = 10f64.powf(wanted.log10().floor());
    let step = [1.0, 2.0, 5.0].map(|m| m * power).into_iter().find(|s| *s >= wanted * 0.999).unwrap_or(10.0 * power);
    let (first, last) = ((low / step - 1e-6).ceil(), (high / step + 1e-6).floor());
    (0..=(last - first) as i64).map(|k| (first + k as f64) * step).collect()
}

/// Texts for ticks at equal distances: all with the same unit and as many decimals as tell them apart.
fn labels(ticks: &[f64], format: Format) -> Vec<String> {
    let largest = ticks.iter().fold(0.0, |a: f64, t| a.max(t.abs()));
    let gap = ticks.windows(2).map(|w| w[1] - w[0]).fold(f64::MAX, f64::min).min(largest).max(largest * 1e-6);
    let scaled = |scale: f64, unit: &str| {
        let decimals = (-(gap / scale).log10() - 1e-6).ceil().clamp(0.0, 6.0) as usize;
        let text =
            |t: &f64| if t.abs() < gap * 1e-3 { "0".to_owned() } else { format!("{:.decimals$}{unit}", t / scale) };
        ticks.iter().map(text).collect()
    };
    match (format, largest) {
        (_, 0.0) => vec!["0".to_owned(); ticks.len()],
        (Format::Percent, _) => scaled(0.01, "\u{202f}%"),
        (_, x) if x >= 1e9 => scaled(1e9, "\u{202f}G"),
        (_, x) if x >= 1e6 => scaled(1e6, "\u{202f}M"),
        (_, x) if x >= 1e4 => scaled(1e3, "\u{202f}k"),
        (_, x) if x < 2e-3 => {
            let exponent = x.log10().floor();
            scaled(10f64.powf(exponent), &format!("×10{}", superscript(exponent as i32)))
        }
        _ => scaled(1.0, ""),
    }
}

fn superscript(n: i32) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let mut text = String::from(if n < 0 { "⁻" } else { "" });
    text.extend(n.unsigned_abs().to_string().bytes().map(|digit| DIGITS[usize::from(digit - b'0')]));
    text
}

/// `12,345`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three digits and a unit of thousands: `1.23 M`.
pub fn short(x: f64) -> String {
    let (scale, unit) = match x.abs() {
        x if x >= 1e12 => (1e12, "\u{202f}T"),
        x if x >= 1e9 => (1e9, "\u{202f}B"),
        x if x >= 1e6 => (1e6, "\u{202f}M"),
        x if x >= 1e4 => (1e3, "\u{202f}k"),
        _ => (1.0, ""),
    };
    let digits = match (x / scale).abs() {
        _ if scale == 1.0 && x.fract() == 0.0 => 0,
        y if y >= 100.0 => 0,
        y if y >= 10.0 => 1,
        _ => 2,
    };
    format!("{:.digits$}{unit}", x / scale)
}

/// `1 h 02 min`, `2 min 05 s`, `4.2 s`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    let mut text = String::new();
    let written = match whole {
        86_400.. => write!(text, "{} d {:02} h", whole / 86_400, whole % 86_400 / 3600),
        3600.. => write!(text, "{} h {:02} min", whole / 3600, whole % 3600 / 60),
        60.. => write!(text, "{} min {:02} s", whole / 60, whole % 60),
        10.. => write!(text, "{whole} s"),
        _ => write!(text, "{seconds:.1} s"),
    };
    written.expect("a string takes everything");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn axis(low: f64, high: f64, log: bool) -> Axis {
        Axis { low, high, from: 0.0, to: 100.0, log }
    }

    #[test]
    fn ticks_are_round_and_labels_tell_them_apart() {
        let named = |low, high, log, format| -> Vec<String> {
            axis(low, high, log).marks(6, format).into_iter().map(|(_, text)| text).collect()
        };
        assert_eq!(named(2.9, 10.4, false, Format::Plain), ["4", "6", "8", "10"]);
        assert_eq!(named(2.91, 3.43, false, Format::Plain), ["3.0", "3.1", "3.2", "3.3", "3.4"]);
        assert_eq!(named(0.0, 100_000.0, false, Format::Plain)[..2], ["0", "20\u{202f}k"]);
        assert_eq!(named(0.0, 1e-3, false, Format::Plain)[..2], ["0", "0.2×10⁻³"]);
        assert_eq!(named(0.0, 0.62, false, Format::Percent)[1], "20\u{202f}%");
        assert_eq!(named(0.0, 2.0, false, Format::Whole), ["0", "1", "2"]);
        assert_eq!(named(7.0, 8.0, false, Format::Whole), ["7", "8"]);
        assert_eq!(named(0.31, 0.43, true, Format::Plain), ["0.32", "0.34", "0.36", "0.38", "0.40", "0.42"]);
        assert_eq!(named(1e-9, 1e9, true, Format::Plain)[..2], ["1×10⁻⁸", "1×10⁻⁴"]);
        assert_eq!(named(0.08, 7.0, true, Format::Plain), ["0.1", "0.2", "0.5", "1", "2", "5"]);
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(
            [short(0.0), short(950.0), short(12_345.0), short(1.2e9)],
            ["0", "950", "12.3\u{202f}k", "1.20\u{202f}B"]
        );
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!([duration(4.21), duration(125.0), duration(3720.0)], ["4.2 s", "2 min 05 s", "1 h 02 min"]);
    }

    proptest! {
        #[test]
        fn ticks_lie_on_the_axis_and_are_few(
            low in -1e6..1e6f64, length in 1e-6..1e9f64, exponents in (-8f64..8.0, 0.01f64..12.0), most in 2usize..10,
        ) {
            let logarithmic = axis(10f64.powf(exponents.0), 10f64.powf(exponents.0 + exponents.1), true);
            for axis in [axis(low, low + length, false), logarithmic] {
                let ticks: Vec<f64> = axis.marks(most, Format::Plain).into_iter().map(|(tick, _)| tick).collect();
                prop_assert!(ticks.len() <= most + 1, "{:?}", ticks);
                let slack = 1e-5 * (axis.high - axis.low);
                prop_assert!(ticks.iter().all(|t| *t >= axis.low - slack && *t <= axis.high + slack), "{:?} {:?}", axis, ticks);
                prop_assert!(ticks.iter().all(|t| (-1e-9..=100.000001).contains(&axis.at(*t))));
            }
        }
    }
}
