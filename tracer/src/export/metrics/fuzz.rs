//! [`crate::fuzz`]: what goes into an exposition comes out of it, read anew by the formats' own rules
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>), apart from what writes it.

use super::*;

/// A sample: its name, its labels, its value.
type Sample = (String, Vec<(String, String)>, f64);

/// Label values, the node's first, and help, in both formats.
pub(crate) fn round_trip(values: &[&str; 3], help: &str, counted: u64, measured: f64) {
    let [node, first, second] = *values;
    let labels = [("first", first), ("second", second)];
    let own = |more: &[(&str, &str)]| {
        let node = ("node", node);
        let all = std::iter::once(&node).chain(more);
        all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    let expected: [Sample; 2] = [
        (
            "tracer_events_total".to_owned(),
            own(&labels),
            counted as f64,
        ),
        ("tracer_age".to_owned(), own(&[("first", second)]), measured),
    ];
    for format in [Format::Text, Format::OpenMetrics] {
        let mut families = Families::new(node, format);
        families.counter("events_total", help, &labels, counted);
        families.gauge("age", help, &[("first", second)], measured);
        let text = families.finish(Vec::new()).expect("it can be written");
        let found: Vec<Sample> = text.split('\n').filter_map(sample).collect();
        assert_eq!(found.len(), expected.len(), "{text:?}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((&found.0, &found.1), (&expected.0, &expected.1), "{text:?}");
            let same =
                found.2.total_cmp(&expected.2).is_eq() || (found.2.is_nan() && expected.2.is_nan());
            assert!(same, "{} for {}", found.2, expected.2);
        }
    }
}

/// A line; `None` for a comment.
fn sample(line: &str) -> Option<Sample> {
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (name, mut rest) = line.split_at(line.find('{').expect("every sample has labels"));
    let mut labels = Vec::new();
    while let Some(label) = rest.strip_prefix(['{', ',']) {
        let (name, quoted) = label.split_once("=\"").expect("a label has a value");
        let mut value = String::new();
        let mut chars = quoted.chars();
        loop {
            match chars.next().expect("a value ends") {
                '"' => break,
                '\\' => value.push(match chars.next() {
                    Some('n') => '\n',
                    Some(other @ ('\\' | '"')) => other,
                    other => panic!("an escape that the format does not have: {other:?}"),
                }),
                other => value.push(other),
            }
        }
        labels.push((name.to_owned(), value));
        rest = chars.as_str();
    }
    let value = rest.strip_prefix("} ").expect("a value comes last");
    // As the format has it; Rust would take this too.
    assert_ne!(value, "inf");
    Some((name.to_owned(), labels, value.parse().expect("a number")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_goes_in_comes_out(
            values in any::<[String; 3]>(),
            // Characters that the formats escape, more often than chance has them.
            odd in "[\\\\\"\n\r{}=, #]{0,12}",
            help in any::<String>(),
            counted in any::<u64>(),
            measured in any::<f64>(),
        ) {
            let [node, first, _] = &values;
            round_trip(&[node, first, &odd], &help, counted, measured);
        }
    }
}
