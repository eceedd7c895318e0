//! Builds metric families sample by sample.

use std::collections::HashMap;

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// A label.
pub fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

/// Metric families in the order of their first sample.
pub struct Families {
    node: String,
    done: Vec<MetricFamily>,
    index: HashMap<&'static str, usize>,
}

impl Families {
    /// For one node.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            done: Vec::new(),
            index: HashMap::new(),
        }
    }

    /// Adds a sample of any kind; `fill` sets its value.
    pub fn add(
        &mut self,
        name: &'static str,
        help: &str,
        kind: MetricType,
        labels: &[(&str, &str)],
        fill: impl FnOnce(&mut Metric),
    ) {
        let index = *self.index.entry(name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(format!("tracer_{name}"));
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            self.done.push(family);
            self.done.len() - 1
        });
        let mut metric = Metric::default();
        metric.set_label(
            [("node", self.node.as_str())]
                .iter()
                .chain(labels)
                .map(|(name, value)| pair(name, value))
                .collect(),
        );
        fill(&mut metric);
        self.done[index].mut_metric().push(metric);
    }

    /// Adds a sample of a counter.
    pub fn counter(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: u64) {
        self.add(name, help, MetricType::COUNTER, labels, |metric| {
            let mut counter = Counter::default();
            counter.set_value(value as f64);
            metric.set_counter(counter);
        });
    }

    /// Adds a sample of a gauge.
    pub fn gauge(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: f64) {
        self.add(name, help, MetricType::GAUGE, labels, |metric| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        });
    }

    /// All families.
    pub fn finish(self) -> Vec<MetricFamily> {
        self.done
    }
}
