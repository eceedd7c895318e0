//! OpenMetrics 1.0 text of metric families
//! (<https://prometheus.io/docs/specs/om/open_metrics_spec/>), which the crate `prometheus` cannot write.
//!
//! Against the older format: a counter's family has no `_total` and an info's no `_info` (their samples
//! have), units are told, bounds of buckets are written as floats, quotes in help are escaped, and the
//! end is marked.

use std::fmt::{self, Display, Formatter, Write as _};

use anyhow::{Result, bail};
use prometheus::proto::{Metric, MetricFamily, MetricType};

/// Base units that end a family's name.
const UNITS: [&str; 3] = ["seconds", "bytes", "ratio"];

/// What comes after the last family.
pub const END: &str = "# EOF\n";

/// A family with its samples.
pub fn encode(family: &MetricFamily) -> Result<String> {
    let mut text = String::new();
    let out = &mut text;
    let full = family.name();
    let (name, kind, suffix) = match family.get_field_type() {
        MetricType::COUNTER => match full.strip_suffix("_total") {
            Some(name) => (name, "counter", "_total"),
            None => bail!("the counter {full} has no _total"),
        },
        MetricType::GAUGE => match full.strip_suffix("_info") {
            Some(name) => (name, "info", "_info"),
            None => (full, "gauge", ""),
        },
        MetricType::HISTOGRAM => (full, "histogram", ""),
        MetricType::SUMMARY => (full, "summary", ""),
        MetricType::UNTYPED => (full, "unknown", ""),
    };
    writeln!(out, "# TYPE {name} {kind}")?;
    let unit = UNITS
        .iter()
        .find(|unit| name.strip_suffix(*unit).is_some_and(|n| n.ends_with('_')));
    if let Some(unit) = unit {
        writeln!(out, "# UNIT {name} {unit}")?;
    }
    writeln!(out, "# HELP {name} {}", Escaped(family.help()))?;
    for metric in family.get_metric() {
        let mut sample = |suffix: &str, le: Option<f64>, value: f64| {
            write_sample(out, [name, suffix], metric, le, value)
        };
        match family.get_field_type() {
            MetricType::COUNTER => sample(suffix, None, metric.get_counter().get_value())?,
            MetricType::GAUGE => sample(suffix, None, metric.get_gauge().get_value())?,
            MetricType::HISTOGRAM => {
                let histogram = metric.get_histogram();
                for bucket in histogram.get_bucket() {
                    let (bound, below) = (bucket.upper_bound(), bucket.cumulative_count());
                    sample("_bucket", Some(bound), below as f64)?;
                }
                let count = histogram.get_sample_count() as f64;
                sample("_bucket", Some(f64::INFINITY), count)?;
                sample("_sum", None, histogram.get_sample_sum())?;
                sample("_count", None, count)?;
            }
            MetricType::SUMMARY => {
                let summary = metric.get_summary();
                if !summary.get_quantile().is_empty() {
                    bail!("{full} has quantiles, which no metric of tracer's has");
                }
                sample("_sum", None, summary.sample_sum())?;
                sample("_count", None, summary.sample_count() as f64)?;
            }
            MetricType::UNTYPED => bail!("{full} has no type"),
        }
    }
    Ok(text)
}

fn write_sample(
    out: &mut String,
    name: [&str; 2],
    metric: &Metric,
    le: Option<f64>,
    value: f64,
) -> fmt::Result {
    out.push_str(name[0]);
    out.push_str(name[1]);
    let mut before = '{';
    for label in metric.get_label() {
        write!(
            out,
            "{before}{}=\"{}\"",
            label.name(),
            Escaped(label.value())
        )?;
        before = ',';
    }
    if let Some(bound) = le {
        write!(out, "{before}le=\"{}\"", Bound(bound))?;
        before = ',';
    }
    if before == ',' {
        out.push('}');
    }
    writeln!(out, " {}", Number(value))
}

/// Text of a label's value or of help.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(['\\', '"', '\n']) {
            f.write_str(&rest[..at])?;
            f.write_str(match rest.as_bytes()[at] {
                b'\\' => "\\\\",
                b'"' => "\\\"",
                _ => "\\n",
            })?;
            rest = &rest[at + 1..];
        }
        f.write_str(rest)
    }
}

/// A value.
struct Number(f64);

impl Display for Number {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            f64::INFINITY => f.write_str("+Inf"),
            f64::NEG_INFINITY => f.write_str("-Inf"),
            number => write!(f, "{number}"),
        }
    }
}

/// A bucket's bound: `1.0`, where a value may be `1`.
struct Bound(f64);

impl Display for Bound {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            f64::INFINITY => f.write_str("+Inf"),
            bound => write!(f, "{bound:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::proto::{Bucket, Histogram, Summary};

    use super::{super::families::Families, *};
    use crate::export::negotiate::Format;

    #[test]
    fn every_type_is_written_as_the_specification_says() {
        let mut families = Families::new("n1", Format::OpenMetrics);
        families.counter("lost_total", "A \"quoted\"\\ word.", &[("why", "a\nb")], 3);
        families.gauge("build_info", "1.", &[("version", "2")], 1.0);
        families.gauge("until_full_seconds", "Or never.", &[], f64::INFINITY);
        families.add(
            "took_seconds",
            "Each.",
            MetricType::HISTOGRAM,
            &[],
            |metric| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(1.0);
                bucket.set_cumulative_count(2);
                let mut histogram = Histogram::default();
                histogram.set_bucket(vec![bucket]);
                histogram.set_sample_count(3);
                histogram.set_sample_sum(4.5);
                metric.set_histogram(histogram);
            },
        );
        families.add("all_seconds", "All.", MetricType::SUMMARY, &[], |metric| {
            let mut summary = Summary::default();
            summary.set_sample_count(3);
            summary.set_sample_sum(0.5);
            metric.set_summary(summary);
        });
        let text = families.finish(Vec::new()).unwrap();
        let expected = r#"# TYPE tracer_lost counter
# HELP tracer_lost A \"quoted\"\\ word.
tracer_lost_total{node="n1",why="a\nb"} 3
# TYPE tracer_build info
# HELP tracer_build 1.
tracer_build_info{node="n1",version="2"} 1
# TYPE tracer_until_full_seconds gauge
# UNIT tracer_until_full_seconds seconds
# HELP tracer_until_full_seconds Or never.
tracer_until_full_seconds{node="n1"} +Inf
# TYPE tracer_took_seconds histogram
# UNIT tracer_took_seconds seconds
# HELP tracer_took_seconds Each.
tracer_took_seconds_bucket{node="n1",le="1.0"} 2
tracer_took_seconds_bucket{node="n1",le="+Inf"} 3
tracer_took_seconds_sum{node="n1"} 4.5
tracer_took_seconds_count{node="n1"} 3
# TYPE tracer_all_seconds summary
# UNIT tracer_all_seconds seconds
# HELP tracer_all_seconds All.
tracer_all_seconds_sum{node="n1"} 0.5
tracer_all_seconds_count{node="n1"} 3
# EOF
"#;
        assert_eq!(text, expected);
    }
}
