//! Builds metric families sample by sample.

use std::collections::HashMap;

use prometheus::{
    core::Collector as _,
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

/// A label.
fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

/// The encoder writes `inf`; Prometheus' format has `+Inf`. No label ends a line.
pub fn infinities(text: Vec<u8>) -> Vec<u8> {
    match String::from_utf8(text) {
        Ok(text) => text.replace(" inf\n", " +Inf\n").into_bytes(),
        Err(error) => error.into_bytes(),
    }
}

/// The usual `process_*`, with the node as on every series.
pub fn process(node: &str) -> Vec<MetricFamily> {
    let mut families = prometheus::process_collector::ProcessCollector::for_self().collect();
    for metric in families.iter_mut().flat_map(MetricFamily::mut_metric) {
        metric.set_label(vec![pair("node", node)]);
    }
    families
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
