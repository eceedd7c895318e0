//! How far one node is from the others: median and median absolute deviation, which hold as long as
//! fewer than half of the nodes are sick. In words in docs/top.md.

/// From this score on a node is odd.
pub(super) const ODD: f64 = 5.0;
/// Makes the MAD of normally distributed figures their standard deviation.
const NORMAL: f64 = 1.4826;

/// What a step of the score is at least: no node is odd for a figure that is just above others' 0, and
/// where others have much, some more is nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    /// In the figure's unit.
    pub absolute: f64,
    /// As a share of the median.
    pub relative: f64,
}

/// What the figures of all nodes have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub median: f64,
    scale: f64,
}

impl Spread {
    /// Of the figures of all nodes that have one; `None` where nobody has.
    pub fn of(figures: impl Iterator<Item = f64>, floor: Floor) -> Option<Self> {
        let mut figures: Vec<f64> = figures.filter(|figure| figure.is_finite()).collect();
        let median = low_median(&mut figures)?;
        let mut distances: Vec<f64> = figures.iter().map(|x| (x - median).abs()).collect();
        let mad = low_median(&mut distances)?;
        let scale = (NORMAL * mad)
            .max(floor.absolute)
            .max(floor.relative * median);
        Some(Self { median, scale })
    }

    /// Steps above the median; what is below is 0.
    pub fn score(&self, figure: f64) -> f64 {
        ((figure - self.median) / self.scale).max(0.0)
    }
}

/// The middle one; of two in the middle the lower one, so that of two nodes one can be odd.
fn low_median(figures: &mut [f64]) -> Option<f64> {
    let middle = figures.len().checked_sub(1)? / 2;
    let (_, median, _) = figures.select_nth_unstable_by(middle, f64::total_cmp);
    Some(*median)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: Floor = Floor {
        absolute: 1.0,
        relative: 0.2,
    };

    /// The nodes that are odd, by number.
    fn odd(figures: &[f64]) -> Vec<usize> {
        let Some(spread) = Spread::of(figures.iter().copied(), FLOOR) else {
            return Vec::new();
        };
        let is_odd = |i: &usize| spread.score(figures[*i]) >= ODD;
        (0..figures.len()).filter(is_odd).collect()
    }

    #[test]
    fn one_sick_node_is_odd_among_two_and_a_thousand() {
        for nodes in [2, 3, 4, 5, 50, 1000] {
            for sick in [0, nodes - 1] {
                let mut figures = vec![0.0; nodes];
                figures[sick] = 40.0;
                assert_eq!(odd(&figures), [sick], "of {nodes}");
            }
        }
        assert_eq!(odd(&[0.0, 30.0, 0.0, 60.0]), [1, 3]);
    }

    #[test]
    fn noise_and_what_all_have_is_not_odd() {
        assert!(odd(&[]).is_empty() && odd(&[90.0]).is_empty());
        assert!(odd(&[0.0; 7]).is_empty());
        assert!(odd(&[0.0, 4.9, 0.0]).is_empty());
        assert!(odd(&[40.0, 42.0, 41.0, 47.0]).is_empty());
        assert!(odd(&[40.0, 79.0, 40.0, 40.0]).is_empty());
        assert!(odd(&[90.0, 90.0, 0.0]).is_empty());
        // A thousand nodes, all with something between 0 and 3.
        let noisy: Vec<f64> = (0..1000).map(|i| f64::from(i * 7 % 31) / 10.0).collect();
        assert!(odd(&noisy).is_empty());
        assert!(odd(&[f64::NAN, 1.0]).is_empty());
    }
}
