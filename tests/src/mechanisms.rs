//! Tracer without what newer kernels have: what the tests of its mechanisms share.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::dns::packet::{QUERY, query};
use crate::dns::{A, Client};
use crate::doctor::Doctor;
use crate::point::POD_ENTRIES;
use crate::{Agent, Family, Metrics};

/// As long as the agent's, so that both judge alike.
pub const CLIENT: Client = Client {
    timeout: Duration::from_secs(1),
    linger: Duration::ZERO,
};

/// An agent that does without what `TRACER_WITHOUT` names.
pub fn agent_without(without: &str, arguments: &[&str]) -> Agent {
    let arguments = [&["--node", "lab", "--dns-timeout", "1s"], arguments].concat();
    let mut agent = Agent::launch(&["env", without], &arguments);
    agent.wait_ready();
    agent
}

/// A hook's state and reason by an agent's own word.
pub fn hook(agent: &Agent, name: &str) -> (String, String) {
    let hook = agent.hook(name);
    let text = |field: &str| hook[field].as_str().expect("it is text").to_owned();
    (text("state"), text("reason"))
}

/// Does tracer see sends that fail before there is a packet here? The doctor says it either way:
/// the mechanism, or what is not seen and why.
pub fn sees_sends(wrapper: &[&str]) -> bool {
    let doctor = Doctor::ask(wrapper, &[]);
    let dns = doctor.named("hooks", "dns");
    let text = |field: &str| dns[field].as_str().expect("it is text");
    assert_eq!(text("state"), "attached", "{dns}");
    let sees = text("mechanism").contains("fexit udp_sendmsg");
    let why = text("not_seen");
    assert_eq!(sees, why.is_empty(), "{dns}");
    let all = doctor.json["not_seen"].as_array().expect("it is a list");
    assert_eq!(sees, !all.iter().any(|thing| thing == why), "{all:?}");
    if !sees {
        let reason = why.split_once("no fexit here: ").expect("a reason").1;
        assert!(!reason.is_empty(), "{why}");
        eprintln!("not seen here: {reason}");
    }
    sees
}

/// Sends a query, and gives the error's number.
pub fn send(socket: &UdpSocket, id: u16, to: Option<SocketAddr>) -> Option<i32> {
    let bytes = query(id, QUERY, "drop-me.test", A);
    let sent = match to {
        Some(to) => socket.send_to(&bytes, to),
        None => socket.send(&bytes),
    };
    sent.err()
        .map(|error| error.raw_os_error().expect("the kernel's"))
}

/// A namespace's entries, by an agent's word.
pub fn live(metrics: &Metrics, labels: &[(&str, &str)], family: Family) -> usize {
    let family = ("family", family.label());
    metrics.count(POD_ENTRIES, &[labels, &[family]].concat()) as usize
}
