//! The kernel's counters of the neighbour tables beside tracer's, at one moment.

use serde_json::Value;

use crate::agent::Agent;
use crate::metrics::Metrics;
use crate::neigh::{Family, Statistics, statistics};
use crate::wait::ensure;

/// Creations asked for on the node.
pub const NODE_CREATES: &str = "tracer_node_neighbour_creates_total";
/// The same by pod.
pub const POD_CREATES: &str = "tracer_pod_neighbour_creates_total";
/// Entries removed from the node's tables.
pub const NODE_EVICTIONS: &str = "tracer_node_neighbour_evictions_total";
/// The same by pod.
pub const POD_EVICTIONS: &str = "tracer_pod_neighbour_evictions_total";
/// Live entries by pod.
pub const POD_ENTRIES: &str = "tracer_pod_neighbour_entries";

/// Labels of what belongs to the host and to no process.
pub const HOST: [(&str, &str); 2] = [("namespace", "(host)"), ("pod", "(kernel)")];

/// The kernel's counters and tracer's, at one moment between two creations.
#[derive(Clone, Debug)]
pub struct Point {
    /// The kernel's, in the order of [`Family::ALL`].
    pub kernel: [Statistics; 2],
    /// tracer's.
    pub metrics: Metrics,
}

impl Point {
    /// An agent that has counted nothing yet, and the kernel's counters when it began.
    pub fn begin(arguments: &[&str]) -> (Agent, Self) {
        for _ in 0..5 {
            let kernel = Family::ALL.map(statistics);
            let agent = Agent::start(arguments);
            let changes = |of: [Statistics; 2]| of.map(|s| (s.entries, s.allocs, s.table_fulls));
            if changes(kernel) == changes(Family::ALL.map(statistics)) {
                let metrics = Metrics::default();
                return (agent, Self { kernel, metrics });
            }
        }
        panic!("this host makes neighbour entries all the time: nothing can be compared");
    }

    /// Scrapes; `Err` where the kernel counted something meanwhile.
    pub fn take(agent: &Agent) -> Result<Self, String> {
        let kernel = Family::ALL.map(statistics);
        let metrics = agent.metrics();
        ensure(kernel == Family::ALL.map(statistics), || {
            "the kernel's counters do not stand still".to_owned()
        })?;
        Ok(Self { kernel, metrics })
    }

    /// Compares growth since `before`, for both families: creations by result, of the node and of
    /// all pods together, with what the kernel counted.
    pub fn compare(&self, before: &Self) -> Result<(), String> {
        for (index, family) in Family::ALL.into_iter().enumerate() {
            let (kernel, then) = (self.kernel[index], before.kernel[index]);
            let label = family.label();
            let truth = [
                ("created", kernel.allocs - then.allocs),
                ("table_full", kernel.table_fulls - then.table_fulls),
            ];
            for (result, expected) in truth {
                let labels = [("family", label), ("result", result)];
                for name in [NODE_CREATES, POD_CREATES] {
                    let grown = self.metrics.growth(&before.metrics, name, &labels);
                    ensure(grown == expected, || {
                        format!("{name} {labels:?} grew by {grown}, the kernel's by {expected}")
                    })?;
                }
            }
            let own = [
                (
                    "tracer_node_neighbour_table_fulls_total",
                    None,
                    kernel.table_fulls,
                ),
                (
                    "tracer_node_neighbour_gc_runs_total",
                    Some("forced"),
                    kernel.forced_gc_runs,
                ),
                (
                    "tracer_node_neighbour_gc_runs_total",
                    Some("periodic"),
                    kernel.periodic_gc_runs,
                ),
            ];
            for (name, gc, expected) in own {
                let mut labels = vec![("family", label)];
                labels.extend(gc.map(|gc| ("gc", gc)));
                let value = self.metrics.count(name, &labels);
                ensure(value == expected, || {
                    format!("{name} {labels:?} is {value}, the kernel's {expected}")
                })?;
            }
        }
        Ok(())
    }

    /// Entries that left the node's tables since `before`, as tracer counts them.
    pub fn evictions(&self, before: &Self, labels: &[(&str, &str)]) -> u64 {
        self.metrics.growth(&before.metrics, NODE_EVICTIONS, labels)
    }

    /// Growth of a pod's counter of one family since `before`.
    pub fn pod_growth(
        &self,
        before: &Self,
        name: &str,
        pod: [(&str, &str); 2],
        family: Family,
        more: &[(&str, &str)],
    ) -> u64 {
        let labels = [&pod[..], &[("family", family.label())], more].concat();
        self.metrics.growth(&before.metrics, name, &labels)
    }
}

/// A neighbour figure of a pod in the API's snapshot; 0 where the pod or the family is not in it.
pub fn figure(snapshot: &Value, pod: [(&str, &str); 2], family: Family, name: &str) -> u64 {
    let pods = snapshot["pods"].as_array().expect("the snapshot has pods");
    pods.iter()
        .find(|shown| pod.iter().all(|(label, value)| shown[label] == *value))
        .map_or(&Value::Null, |shown| &shown["neighbour"][family.label()])
        .get(name)
        .and_then(Value::as_u64)
        .unwrap_or(0)
}
