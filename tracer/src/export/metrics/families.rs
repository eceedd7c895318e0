//! Builds the text of metric families sample by sample.

use std::{collections::HashMap, sync::LazyLock};

use anyhow::Result;
use prometheus::{
    core::Collector as _,
    process_collector::ProcessCollector,
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

use super::{openmetrics, text};
use crate::export::negotiate::Format;

/// A label.
fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

/// The usual `process_*`, with the node as on every series.
pub fn process(node: &str) -> Vec<MetricFamily> {
    // One for all times: each reckons the start of the process anew, by the clock that somebody may set.
    static PROCESS: LazyLock<ProcessCollector> = LazyLock::new(ProcessCollector::for_self);
    let mut families = PROCESS.collect();
    for metric in families.iter_mut().flat_map(MetricFamily::mut_metric) {
        metric.set_label(vec![pair("node", node)]);
    }
    families
}

/// Samples of a family that wait to be written: a sample takes several times the memory of its line.
const WAITING: usize = 16;

/// One family: what is written, and what waits for it.
struct Family {
    waiting: MetricFamily,
    text: String,
}

impl Family {
    /// Writes what waits.
    fn write(&mut self, format: Format) -> Result<()> {
        let mut text = match format {
            Format::Text => text::encode(&self.waiting)?,
            Format::OpenMetrics => openmetrics::encode(&self.waiting)?,
        };
        if !self.text.is_empty() {
            text.drain(..head(&text));
        }
        self.text.push_str(&text);
        self.waiting.mut_metric().clear();
        Ok(())
    }
}

/// Length of the lines before the first sample.
fn head(text: &str) -> usize {
    text.split_inclusive('\n')
        .take_while(|line| line.starts_with('#'))
        .map(str::len)
        .sum()
}

/// Metric families in the order of their first sample, written as they come.
pub struct Families {
    node: String,
    format: Format,
    done: Vec<Family>,
    index: HashMap<&'static str, usize>,
    result: Result<()>,
}

impl Families {
    /// For one node.
    pub fn new(node: &str, format: Format) -> Self {
        Self {
            node: node.to_owned(),
            format,
            done: Vec::new(),
            index: HashMap::new(),
            result: Ok(()),
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
            let mut waiting = MetricFamily::default();
            waiting.set_name(format!("tracer_{name}"));
            waiting.set_help(help.to_owned());
            waiting.set_field_type(kind);
            self.done.push(Family {
                waiting,
                text: String::new(),
            });
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
        let family = &mut self.done[index];
        family.waiting.mut_metric().push(metric);
        if family.waiting.get_metric().len() == WAITING && self.result.is_ok() {
            self.result = family.write(self.format);
        }
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

    /// The text of all, and of these.
    pub fn finish(self, more: Vec<MetricFamily>) -> Result<String> {
        self.result?;
        let more = more.into_iter().map(|waiting| Family {
            waiting,
            text: String::new(),
        });
        let mut all = String::new();
        for mut family in self.done.into_iter().chain(more) {
            if !family.waiting.get_metric().is_empty() {
                family.write(self.format)?;
            }
            all.push_str(&family.text);
        }
        if self.format == Format::OpenMetrics {
            all.push_str(openmetrics::END);
        }
        all.shrink_to_fit();
        Ok(all)
    }
}
