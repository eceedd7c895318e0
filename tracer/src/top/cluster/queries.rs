//! The queries, in PromQL: a fixed number of them, whatever the number of nodes, and answers that are
//! bounded. Counters only; the rule that they serve is in docs/top.md.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

/// Pairs of nodes that are asked for, those with most failures.
const MAX_PAIRS: usize = 20_000;
/// Figures of one node's pods that are asked for: an agent tells 1,000 pods apart.
const MAX_PODS: usize = 5_000;
/// Destinations of one node: an agent names 100.
const MAX_DESTINATIONS: usize = 200;
/// So long a node is remembered that has no agent any more, and so long agents remember pods.
const MEMORY: &str = "1h";

/// A pod's labels. Where the scraper has no `honor_labels` (Google's managed Prometheus), `namespace`
/// and `pod` are those of the agent, and those that the agent told have another name.
const POD: &str = "namespace, pod, exported_namespace, exported_pod";

/// What all queries share.
#[derive(Clone, Debug)]
pub(super) struct Queries {
    range: String,
    matchers: String,
}

impl Queries {
    pub fn new(range: Duration, matchers: &str) -> Self {
        let milliseconds = range.as_millis();
        let range = if milliseconds.is_multiple_of(1000) {
            format!("{}s", milliseconds / 1000)
        } else {
            format!("{milliseconds}ms")
        };
        Self {
            range,
            matchers: matchers.to_owned(),
        }
    }

    fn select(&self, metric: &str, own: &str) -> String {
        let comma = if own.is_empty() || self.matchers.is_empty() {
            ""
        } else {
            ","
        };
        format!("{metric}{{{own}{comma}{}}}", self.matchers)
    }

    fn increase(&self, by: &str, metric: &str, own: &str) -> String {
        let series = self.select(metric, own);
        format!("sum by ({by}) (increase({series}[{}]))", self.range)
    }

    /// Of all nodes; [`super::nodes::Answer`] names them in this order.
    pub fn nodes(&self) -> [String; 10] {
        let built = format!(
            "last_over_time({}[{MEMORY}])",
            self.select("tracer_build_info", "")
        );
        let entries = |metric, own| {
            let series = self.select(metric, own);
            format!("max by (node, family) ({series})")
        };
        [
            format!("group by (cluster, node, job, instance) ({built})"),
            // What tracer's targets are is known from what they told; the name of the job finds
            // those that never told anything.
            format!(
                "{} and on (job, instance) {built} or {}",
                self.select("up", ""),
                self.select("up", "job=~\".*tracer.*\"")
            ),
            format!(
                "max by (node) ({})",
                self.select(
                    "kube_node_status_condition",
                    "condition=\"Ready\",status=\"true\""
                )
            ),
            self.increase(
                "node",
                "tracer_node_neighbour_creates_total",
                "result=\"table_full\"",
            ),
            self.increase("node, cause", "tracer_node_dns_failures_total", ""),
            self.increase("node", "tracer_node_dns_lookups_total", ""),
            self.increase("node, result", "tracer_node_connects_total", ""),
            self.increase("node", "tracer_pod_retransmits_total", ""),
            format!(
                "topk({MAX_PAIRS}, {} > 0)",
                self.increase(
                    "node, peer, kind",
                    "tracer_node_peer_failures_total",
                    "peer!=\"(other)\""
                )
            ),
            format!(
                "max by (node) ({} / {})",
                entries("tracer_node_neighbour_entries", ""),
                entries("tracer_node_neighbour_entries_limit", "threshold=\"3\"")
            ),
        ]
    }

    /// Of one node's pods; [`super::pods::Answer`] names them in this order.
    pub fn pods(&self, node: &str) -> [String; 10] {
        let own = format!("node={}", quoted(node));
        let count = |by: &str, metric: &str, more: &str| {
            let by = if by.is_empty() {
                POD.to_owned()
            } else {
                format!("{POD}, {by}")
            };
            let increase = self.increase(&by, metric, &format!("{own}{more}"));
            format!("topk({MAX_PODS}, {increase} > 0)")
        };
        [
            count("", "tracer_pod_dns_lookups_total", ""),
            count("cause", "tracer_pod_dns_failures_total", ""),
            count("result", "tracer_pod_connects_total", ""),
            count(
                "",
                "tracer_pod_neighbour_creates_total",
                ",result=\"table_full\"",
            ),
            format!(
                "topk({MAX_PODS}, sum by ({POD}) ({}) > 0)",
                self.select("tracer_pod_neighbour_entries", &own)
            ),
            count("", "tracer_pod_retransmits_total", ""),
            count("reason", "tracer_pod_drops_total", ""),
            count("port", "tracer_pod_udp_receive_drops_total", ""),
            format!(
                "topk({MAX_DESTINATIONS}, {} > 0)",
                self.increase(
                    &format!("{POD}, destination"),
                    "tracer_pod_dead_endpoint_attempts_total",
                    &own
                )
            ),
            format!(
                "topk({MAX_DESTINATIONS}, {})",
                self.select("tracer_dead_endpoint_info", &own)
            ),
        ]
    }

    /// Who had these destinations' addresses: as every agent remembers it, and as kube-state-metrics
    /// does where it is. Nothing to ask without an address.
    pub fn owners<'a>(&self, destinations: impl Iterator<Item = &'a str>) -> Option<[String; 2]> {
        let mut addresses: Vec<_> = destinations.filter_map(address).collect();
        addresses.sort();
        addresses.dedup();
        addresses.truncate(MAX_DESTINATIONS);
        let mut pattern = String::new();
        for address in &addresses {
            let bar = if pattern.is_empty() { "" } else { "|" };
            // Dots would match any letter; colons need no escape.
            let address = address.replace('.', "[.]");
            write!(pattern, "{bar}{address}").expect("a String takes every text");
        }
        (!pattern.is_empty()).then(|| {
            [
                "tracer_gone_pod_address_info{address",
                "kube_pod_info{pod_ip",
            ]
            .map(|start| {
                let (metric, label) = start.split_once('{').unwrap_or((start, ""));
                let series = self.select(metric, &format!("{label}=~\"{pattern}\""));
                format!("topk({MAX_PODS}, last_over_time({series}[{MEMORY}]))")
            })
        })
    }
}

/// The address of an `ip:port`; none of `(other)`.
pub(super) fn address(destination: &str) -> Option<String> {
    let socket: SocketAddr = destination.parse().ok()?;
    Some(socket.ip().to_string())
}

/// A string as PromQL wants it.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", escaped.replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matchers_are_in_every_selector() {
        let queries = Queries::new(Duration::from_millis(1500), "cluster=\"eu\"");
        let owners = queries.owners(["10.0.0.1:80", "(other)", "[fd00::1]:53"].into_iter());
        let all = queries.nodes().into_iter().chain(queries.pods("n\"1"));
        for query in all.chain(owners.clone().unwrap()) {
            let selectors = query.matches('{').count();
            assert_eq!(
                query.matches("cluster=\"eu\"").count(),
                selectors,
                "{query}"
            );
            assert!(!query.contains(",,") && !query.contains("{,"), "{query}");
        }
        assert!(owners.unwrap()[0].contains("address=~\"10[.]0[.]0[.]1|fd00::1\""));
        assert!(queries.nodes()[3].contains("[1500ms]"));
        assert!(queries.pods("n\"1")[0].contains("node=\"n\\\"1\""));
        assert!(queries.owners(std::iter::once("(other)")).is_none());
    }

    #[test]
    fn without_matchers_there_is_no_comma() {
        let queries = Queries::new(Duration::from_mins(5), "");
        assert!(queries.nodes()[3].contains("{result=\"table_full\"}[300s]"));
        assert!(queries.nodes()[5].contains("tracer_node_dns_lookups_total{}[300s]"));
    }
}
