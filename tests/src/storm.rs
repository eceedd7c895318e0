//! Failures by the hundred thousand, and what tracer has to say of them.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::metrics::Metrics;
use crate::netns::Pod;

/// Limits of the neighbour table that a burst overflows.
pub const LIMITS: [u64; 3] = [32, 64, 64];
/// Creations that were refused, of the node.
pub const NODE_CREATES: &str = "tracer_node_neighbour_creates_total";
/// The same by pod.
pub const POD_CREATES: &str = "tracer_pod_neighbour_creates_total";
/// Their labels.
pub const FULL: [(&str, &str); 2] = [("family", "ipv4"), ("result", "table_full")];
/// Nobody listens there.
pub const CLOSED: u16 = 9;

/// A counter of a pod.
pub fn of_pod(metrics: &Metrics, name: &str, pod: &Pod, more: &[(&str, &str)]) -> u64 {
    metrics.count(name, &[&pod.labels()[..], more].concat())
}

/// What a hook has to say of its details.
pub fn details(metrics: &Metrics, hook: &str) -> [u64; 3] {
    [
        "events_total",
        "events_lost_total",
        "events_suppressed_total",
    ]
    .map(|name| metrics.count(&format!("tracer_{name}"), &[("hook", hook)]))
}

/// Connects to a port where nobody listens; gives how many were refused.
pub fn refused(pod: &Pod, to: IpAddr, ports: impl Iterator<Item = u16> + Send) -> u64 {
    pod.netns.run(|| {
        let limit = Duration::from_secs(2);
        let connect = |port| TcpStream::connect_timeout(&SocketAddr::new(to, port), limit);
        ports
            .filter(|port| {
                let error = connect(*port).expect_err("nobody listens there");
                error.kind() == std::io::ErrorKind::ConnectionRefused
            })
            .count() as u64
    })
}
