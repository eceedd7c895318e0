//! The kernel's counters of the neighbour tables beside tracer's, at one moment.

use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::agent::Agent;
use crate::metrics::Metrics;
use crate::neigh::{Family, Statistics, statistics};
use crate::unseen::{Traced, Unseen, has_value};
use crate::wait::{ensure, eventually};

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

/// So old the figures of a scrape may be at most, and a little more.
const OLDEST: Duration = Duration::from_millis(1200);

/// Labels of what belongs to the host and to no process.
pub const HOST: [(&str, &str); 2] = [("namespace", "(host)"), ("pod", "(kernel)")];

/// Waits until as many creations have been refused to a pod since `before`, but for those that the kernel showed to no
/// program.
pub fn await_refused(
    agent: &Agent,
    before: &Point,
    labels: [(&str, &str); 2],
    family: Family,
    expected: u64,
) {
    eventually(Duration::from_secs(5), || {
        let after = Point::take(agent, before)?;
        let full = [("result", "table_full")];
        let refused = after.pod_growth(before, POD_CREATES, labels, family, &full);
        within(refused, expected, || before.hidden().refusals(family))
            .map_err(|why| format!("{labels:?} {family:?}: refused {why}"))
    });
}

/// The kernel's counters and tracer's, at one moment between two creations.
#[derive(Clone, Debug)]
pub struct Point {
    /// The kernel's, in the order of [`Family::ALL`].
    pub kernel: [Statistics; 2],
    /// tracer's.
    pub metrics: Metrics,
    hidden: Hidden,
}

impl Point {
    /// An agent, and what it and the kernel have counted when it begins: mostly nothing, and what there was.
    pub fn begin(arguments: &[&str]) -> (Agent, Self) {
        let hidden = Hidden::watch();
        let kernel = Family::ALL.map(statistics);
        let agent = Agent::start(arguments);
        let changes = |of: [Statistics; 2]| of.map(|s| (s.entries, s.allocs, s.table_fulls));
        let stands_still = |since| changes(since) == changes(Family::ALL.map(statistics));
        let mut begun = Self {
            kernel,
            metrics: Metrics::default(),
            hidden,
        };
        if stands_still(kernel) {
            return (agent, begun);
        }
        // An emulated machine takes ten seconds for the start. What was made meanwhile is on neither side then.
        for _ in 0..5 {
            begun.kernel = Family::ALL.map(statistics);
            sleep(OLDEST);
            begun.metrics = agent.metrics();
            if stands_still(begun.kernel) {
                return (agent, begun);
            }
        }
        panic!("this host makes neighbour entries all the time: nothing can be compared");
    }

    /// Scrapes; `Err` where the kernel counted something meanwhile. `before` is where it began.
    pub fn take(agent: &Agent, before: &Self) -> Result<Self, String> {
        let kernel = Family::ALL.map(statistics);
        let metrics = agent.metrics();
        ensure(kernel == Family::ALL.map(statistics), || {
            "the kernel's counters do not stand still".to_owned()
        })?;
        Ok(Self {
            kernel,
            metrics,
            hidden: before.hidden.clone(),
        })
    }

    /// What the kernel showed to no program so far.
    pub fn hidden(&self) -> &Hidden {
        &self.hidden
    }

    /// Compares growth since `before`, for both families: creations by result, of the node and of
    /// all pods together, with what the kernel counted, but for those that it showed to no program.
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
                let [node, pods] = [NODE_CREATES, POD_CREATES]
                    .map(|name| self.metrics.growth(&before.metrics, name, &labels));
                ensure(node == pods, || {
                    format!("{labels:?}: {node} creations of the node, {pods} of pods")
                })?;
                within(node, expected, || self.hidden.creations(family, result))
                    .map_err(|why| format!("creations {labels:?}: {why}"))?;
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

/// Creations and removals of entries, and packets' ends, that the kernel showed to no program; see
/// [`crate::unseen`].
#[derive(Clone, Debug)]
pub struct Hidden(Arc<Unseen>);

impl Hidden {
    fn watch() -> Self {
        Self(Arc::new(Unseen::watch(&[
            (CREATION, "0"),
            (REMOVAL, "0"),
            (DROP, "0"),
        ])))
    }

    /// Creations of a family by result.
    pub fn creations(&self, family: Family, result: &str) -> u64 {
        let created = if result == "created" { "1" } else { "0" };
        self.count(CREATION, &[number(family), ("created", created)])
    }

    /// Removed entries of a family.
    pub fn removals(&self, family: Family) -> u64 {
        self.count(REMOVAL, &[number(family)])
    }

    /// Refusals that are not their packet's sender's: the refusal itself was hidden, or the end of the
    /// packet, which names the sender.
    pub fn refusals(&self, family: Family) -> u64 {
        // Kernels before 5.18 do not say of what a packet died.
        let died = [("reason:", REFUSED)];
        let fields = if has_value(DROP, REFUSED) {
            &died[..]
        } else {
            &[]
        };
        self.creations(family, "table_full") + self.count(DROP, fields)
    }

    fn count(&self, tracepoint: &str, fields: &[(&str, &str)]) -> u64 {
        let is_one = |traced: &&Traced| traced.unseen && traced.is(tracepoint, fields);
        self.0.all().iter().filter(is_one).count() as u64
    }
}

/// The tracepoint of creations, granted and refused.
pub const CREATION: &str = "neigh/neigh_create";
const REMOVAL: &str = "neigh/neigh_cleanup_and_release";
const DROP: &str = "skb/kfree_skb";
/// Why a packet dies whose neighbour could not be made.
const REFUSED: &str = "NEIGH_CREATEFAIL";

/// A family as the trace has it.
fn number(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("family", "2"),
        Family::V6 => ("family", "10"),
    }
}

/// `Ok` if `counted` is `truth`, or short of it by no more than was hidden, which is asked for only
/// where they differ.
pub fn within(counted: u64, truth: u64, hidden: impl FnOnce() -> u64) -> Result<(), String> {
    if counted == truth {
        return Ok(());
    }
    let hidden = hidden();
    ensure(counted < truth && counted + hidden >= truth, || {
        format!("{counted}, the kernel's {truth}; {hidden} were shown to no program")
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_may_lack_what_was_hidden_and_no_more() {
        assert_eq!(within(7, 7, || unreachable!("nothing to explain")), Ok(()));
        assert_eq!(within(6, 7, || 1), Ok(()));
        for (counted, hidden) in [(6, 0), (5, 1), (8, 1)] {
            assert!(within(counted, 7, || hidden).is_err(), "{counted} {hidden}");
        }
    }
}
