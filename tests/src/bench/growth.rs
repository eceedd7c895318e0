//! How a cost grows with the load: the slope between two loads where both axes are logarithmic.

use std::fmt;

use serde::Serialize;

/// One step of a load, and what became of a cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Growth {
    /// The cost.
    pub what: &'static str,
    /// What there is more of.
    pub with: &'static str,
    /// How many, before and after the step.
    pub loads: [u64; 2],
    /// 0 where the cost stays, 1 where it is proportional to the load. None where there is nothing to
    /// compare: a cost that is not above zero.
    pub exponent: Option<f64>,
}

/// A load and its cost.
pub type Point = (u64, f64);

impl Growth {
    /// From each load to the next.
    pub fn steps(what: &'static str, with: &'static str, points: &[Point]) -> Vec<Self> {
        let step = |two: &[Point]| Self {
            what,
            with,
            loads: [two[0].0, two[1].0],
            exponent: exponent(two[0], two[1]),
        };
        points.windows(2).map(step).collect()
    }

    /// The same of what is above the first point's cost, which is there without any load. No logarithm
    /// has a place for a load of zero, and the constant part would hide how the rest grows.
    pub fn above_first(what: &'static str, with: &'static str, points: &[Point]) -> Vec<Self> {
        let Some(((_, constant), rest)) = points.split_first() else {
            return Vec::new();
        };
        let above: Vec<Point> = rest
            .iter()
            .map(|(load, cost)| (*load, cost - constant))
            .collect();
        Self::steps(what, with, &above)
    }
}

fn exponent(before: Point, after: Point) -> Option<f64> {
    if before.0 == 0 || after.0 == 0 || before.1 <= 0.0 || after.1 <= 0.0 {
        return None;
    }
    let exponent = (after.1 / before.1).ln() / (after.0 as f64 / before.0 as f64).ln();
    // No step is not finite.
    Some(exponent).filter(|exponent| exponent.is_finite())
}

/// As a table.
#[derive(Debug)]
pub struct Table<'a>(pub &'a [Growth]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:40} {:10} {:>8} {:>8} {:>9}",
            "how it grows", "with", "from", "to", "exponent"
        )?;
        for growth in self.0 {
            let [from, to] = growth.loads;
            // Never "-0.00", which says no more than "0.00".
            let rounded = growth.exponent.map(|e| (e * 100.0).round() / 100.0 + 0.0);
            let exponent = rounded.map_or_else(|| "-".to_owned(), |e| format!("{e:.2}"));
            writeln!(
                f,
                "{:40} {:10} {from:>8} {to:>8} {exponent:>9}",
                growth.what, growth.with
            )?;
        }
        writeln!(
            f,
            "exponent of the load: 0 does not grow, 1 is proportional, -: a figure is not above zero"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exponents(growths: &[Growth]) -> Vec<Option<f64>> {
        let round = |growth: &Growth| growth.exponent.map(|e| (e * 100.0).round() / 100.0);
        growths.iter().map(round).collect()
    }

    #[test]
    fn a_step_has_the_slope_of_the_logarithms() {
        let points = [(10, 3.0), (100, 30.0), (1000, 30.0), (2000, 120.0)];
        let steps = Growth::steps("time", "lookups", &points);
        assert_eq!(exponents(&steps), [Some(1.0), Some(0.0), Some(2.0)]);
        assert_eq!(steps[1].loads, [100, 1000]);
        assert_eq!(Growth::steps("time", "lookups", &points[..1]), []);
    }

    #[test]
    fn what_is_there_without_load_does_not_count() {
        let points = [(0, 22.0), (50, 23.0), (250, 27.0)];
        let growth = Growth::above_first("memory", "pods", &points);
        assert_eq!(exponents(&growth), [Some(1.0)]);
        assert_eq!(growth[0].loads, [50, 250]);
        assert_eq!(Growth::above_first("memory", "pods", &[]), []);
    }

    #[test]
    fn what_cannot_be_compared_has_no_exponent() {
        let none =
            |points: &[Point]| exponents(&Growth::steps("time", "lookups", points)) == [None];
        assert!(none(&[(10, 0.0), (100, 1.0)]), "less than a tick");
        assert!(none(&[(10, 1.0), (100, -1.0)]), "less than the constant");
        assert!(none(&[(0, 1.0), (100, 1.0)]), "no load");
        assert!(none(&[(10, 1.0), (10, 2.0)]), "no step");
    }

    #[test]
    fn the_table_says_what_grows_with_what() {
        let mut growths =
            Growth::steps("kernel time", "lookups", &[(10_000, 0.03), (100_000, 0.3)]);
        growths.extend(Growth::steps("memory", "pods", &[(50, 0.0), (250, 1.0)]));
        growths.extend(Growth::steps(
            "memory",
            "failures",
            &[(10, 4.2), (100, 4.199)],
        ));
        let expected = "\
how it grows                             with           from       to  exponent
kernel time                              lookups       10000   100000      1.00
memory                                   pods             50      250         -
memory                                   failures         10      100      0.00
exponent of the load: 0 does not grow, 1 is proportional, -: a figure is not above zero
";
        assert_eq!(Table(&growths).to_string(), expected);
    }
}
