//! [`crate::fuzz`]: what a Prometheus answers, as tables, as JSON and on the screen.

use std::time::Duration;

use super::{
    NodeColumn,
    api::{self, Answers},
    nodes::Cluster,
    pods::NodePods,
    sorted, text,
};
use crate::top::fuzz::assert_plain;

const RANGE: Duration = Duration::from_mins(5);
const BASE: &str = "http://prometheus:9090";

/// Answers, a line each: to the ten queries about all nodes, the ten about one, the two about owners.
pub(crate) fn prometheus(bytes: &[u8]) -> bool {
    let all = String::from_utf8_lossy(bytes);
    let mut lines = all.split('\n');
    let mut next = |count: usize| {
        let mut answers = Answers::default();
        for line in lines.by_ref().take(count) {
            let (samples, warnings) = api::fuzz(line).unwrap_or_default();
            answers.samples.push(samples);
            answers.warnings.extend(warnings);
        }
        answers.samples.resize(count, Vec::new());
        answers
    };
    let cluster = Cluster::new(next(10), RANGE.as_secs_f64());
    let (of_pods, of_owners) = (next(10), next(2));
    let Ok(cluster) = cluster else {
        return false;
    };
    let node = cluster.nodes.first();
    let name = node.map_or("n1", |node| node.name.as_str());
    let mut pods = NodePods::new(name, of_pods).expect("ten answers");
    pods.name_owners(of_owners);
    let rows = sorted(&cluster, NodeColumn::default());
    assert_plain(&text::nodes(BASE, RANGE, &cluster, &rows));
    assert_plain(&text::pods(BASE, RANGE, node, &pods));
    for json in [
        text::nodes_json(BASE, RANGE, &cluster, &rows),
        text::pods_json(BASE, RANGE, node, &pods),
    ] {
        serde_json::to_string(&json).expect("it is JSON");
    }
    super::live::fuzz::prometheus(&cluster, &pods);
    true
}
