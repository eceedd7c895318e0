//! Samples of a Prometheus text exposition.

use std::collections::BTreeMap;

/// Labels of a series, by name.
pub type Labels = BTreeMap<String, String>;

/// All samples of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Value by name and labels.
    pub samples: BTreeMap<(String, Labels), f64>,
    /// Type by family name, as the `# TYPE` lines say.
    pub types: BTreeMap<String, String>,
}

impl Metrics {
    /// Reads an exposition; panics on a line that is none, and on a series that comes twice.
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(comment) = line.strip_prefix("# ") {
                if let Some((name, kind)) = comment
                    .strip_prefix("TYPE ")
                    .and_then(|rest| rest.split_once(' '))
                {
                    metrics.types.insert(name.to_owned(), kind.to_owned());
                }
                continue;
            }
            let (key, value) = sample(line).unwrap_or_else(|| panic!("not a sample: {line}"));
            let twice = metrics.samples.insert(key, value).is_some();
            assert!(!twice, "the series comes twice: {line}");
        }
        metrics
    }

    /// Samples of that name whose labels include these.
    pub fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = (&'a Labels, f64)> {
        self.samples
            .iter()
            .filter(move |((n, has), _)| n == name && includes(has, labels))
            .map(|((_, has), value)| (has, *value))
    }

    /// Sum of [`Metrics::matching`].
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|(_, value)| value).sum()
    }

    /// The value of the one series that matches; `None` without one, panics with several.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut all = self.matching(name, labels);
        let first = all.next().map(|(_, value)| value);
        assert!(all.next().is_none(), "{name} {labels:?} is not one series");
        first
    }

    /// [`Metrics::sum`] of counters, which are whole numbers.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let sum = self.sum(name, labels);
        assert!(
            sum >= 0.0 && sum.fract() == 0.0,
            "{name} {labels:?} is no count: {sum}"
        );
        sum as u64
    }

    /// Growth of counters since an earlier scrape; what was not there then was 0.
    pub fn growth(&self, before: &Self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let (now, then) = (self.count(name, labels), before.count(name, labels));
        now.checked_sub(then)
            .unwrap_or_else(|| panic!("{name} {labels:?} fell from {then} to {now}"))
    }
}

fn includes(has: &Labels, wanted: &[(&str, &str)]) -> bool {
    wanted
        .iter()
        .all(|(name, value)| has.get(*name).is_some_and(|v| v == value))
}

/// `name{label="value",…} number`, or the same without labels.
fn sample(line: &str) -> Option<((String, Labels), f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.to_owned(), value);
            rest = after.strip_prefix(',').unwrap_or(after);
        }
    }
    let value = match rest.trim() {
        "+Inf" => f64::INFINITY,
        number => number.parse().ok()?,
    };
    Some(((name.to_owned(), labels), value))
}

/// A value up to its closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_samples_with_and_without_labels() {
        let metrics = Metrics::parse(
            "# HELP a what it is\n# TYPE a counter\na{pod=\"x\\\"y, }\",node=\"n\"} 3\n\
             a{pod=\"z\",node=\"n\"} 4\nb 1e3\nc{le=\"+Inf\"} +Inf\n",
        );
        assert_eq!(metrics.count("a", &[("node", "n")]), 7);
        assert_eq!(metrics.get("a", &[("pod", "x\"y, }")]), Some(3.0));
        assert_eq!(metrics.get("b", &[]), Some(1000.0));
        assert_eq!(metrics.get("c", &[]), Some(f64::INFINITY));
        assert_eq!(metrics.get("d", &[]), None);
        assert_eq!(metrics.types["a"], "counter");
    }
}
