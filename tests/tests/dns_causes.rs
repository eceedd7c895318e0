//! Hook `dns` with hook `drops`: what killed a lookup is named.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use tests::dns::packet::{QUERY, query};
use tests::dns::truth::{check_node, compare};
use tests::dns::{A, Client, Lookup, Server, Tally};
use tests::neigh::{FIRST_SILENT, burst, table_fulls};
use tests::netns::Pod;
use tests::wait::ensure;
use tests::{Agent, Family, Lab, Thresholds, eventually};

/// As long as the agent's, so that both judge alike.
const CLIENT: Client = Client {
    timeout: Duration::from_secs(1),
    linger: Duration::ZERO,
};

fn start_agent() -> Agent {
    Agent::start(&["--dns-timeout", "1s"])
}

/// Lookups of one pod that all end as `timeout`, for a cause to be named.
fn one_cause(cause: &str, reason: &str, prepare: impl Fn(&Pod), to: u16, expected: &[(&str, u64)]) {
    let lab = Lab::new();
    let pod = lab.pod("cause", 1, 2);
    prepare(&pod);
    let agent = start_agent();
    let mut events = agent.events();
    let mut lookups = Vec::new();
    for family in Family::ALL {
        for n in 0..4 {
            let mut lookup = Lookup::new(format!("ok-{n}.test"), A, pod.neighbour(family, to));
            lookup.connected = n % 2 == 1;
            lookups.push(lookup);
        }
    }
    let tally = CLIENT.run(&pod, lookups);
    assert_eq!(tally.outcome("timeout"), 8, "{tally:?}");
    let event = events.wait(Duration::from_secs(2), |event| {
        event.is("dns_failure", pod.netns.name()) && event.text("cause") == cause
    });
    let shown = event.text("drop_reason");
    // IPv6 frees what waited for a neighbour without a reason (ndisc_error_report): the cause is
    // told from the place.
    let unspecified = event.text("server").starts_with('[') && shown == "not_specified";
    assert!(
        shown == reason || (reason == "neigh_failed" && unspecified),
        "{}",
        event.json
    );
    eventually(Duration::from_secs(5), || {
        let metrics = agent.metrics();
        compare(&metrics, &pod, &tally, expected)?;
        check_node(&metrics)
    });
    agent.stop_cleanly();
}

/// Sets a parameter of the pod's neighbours.
fn set_neigh(pod: &Pod, key: &str, value: &str) {
    pod.netns.run(|| {
        for family in Family::ALL {
            let path = format!("/proc/sys/net/{}/neigh/eth0/{key}", family.label());
            std::fs::write(&path, value).unwrap_or_else(|e| panic!("cannot write to {path}: {e}"));
        }
    });
}

#[test]
fn a_closed_port_is_named() {
    let expected = [("port_unreachable", 8)];
    one_cause("port_unreachable", "no_socket", |_| {}, 1, &expected);
}

#[test]
fn a_server_that_is_not_there_is_named() {
    // Three solicitations in 0.3 s, so that the kernel gives up before the lookup does.
    let prepare = |pod: &Pod| set_neigh(pod, "retrans_time_ms", "100");
    let expected = [("neighbour_unresolved", 8)];
    one_cause(
        "neighbour_unresolved",
        "neigh_failed",
        prepare,
        FIRST_SILENT,
        &expected,
    );
}

#[test]
fn a_full_queue_of_a_neighbour_is_named() {
    // Room for one packet: each pushes out the one before, and the last dies with the neighbour.
    let prepare = |pod: &Pod| {
        set_neigh(pod, "retrans_time_ms", "100");
        set_neigh(pod, "unres_qlen_bytes", "1");
    };
    let expected = [("neighbour_queue_full", 6), ("neighbour_unresolved", 2)];
    one_cause(
        "neighbour_queue_full",
        "neigh_queuefull",
        prepare,
        FIRST_SILENT,
        &expected,
    );
}

#[test]
fn answers_that_a_full_socket_drops_are_no_answers() {
    let lab = Lab::new();
    let pod = lab.pod("deaf", 1, 1);
    let server = Server::start(&lab.hub, &[pod.hub(Family::V4)]);
    let agent = start_agent();
    let (from, to) = (pod.address(Family::V4), (pod.hub(Family::V4), 53));
    let asked: u16 = 32;
    let answered = pod.netns.run(|| {
        let socket = UdpSocket::bind((from, 0)).expect("pod has its address");
        // The kernel makes that its smallest, a few packets.
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 1).expect("buffer is set");
        for id in 0..asked {
            let bytes = query(id, QUERY, "ok.test", A);
            socket.send_to(&bytes, to).expect("query is sent");
        }
        eventually(Duration::from_secs(1), || {
            let sent = server.answered();
            ensure(sent == u64::from(asked), || format!("{sent} answers"))
        });
        // Only now does it read: what did not fit is lost.
        let wait = Duration::from_millis(200);
        socket.set_read_timeout(Some(wait)).expect("timeout is set");
        (0..asked)
            .take_while(|_| socket.recv(&mut [0; 1500]).is_ok())
            .count() as u64
    });
    let lost = u64::from(asked) - answered;
    assert!(
        answered > 0 && lost > 0,
        "the lab failed: {answered} answered, {lost} lost"
    );
    let tally = Tally {
        queries: u64::from(asked),
        outcomes: [("noerror", answered), ("timeout", lost)].into(),
        late: 0,
        unmatched: 0,
    };
    eventually(Duration::from_secs(5), || {
        let metrics = agent.metrics();
        compare(&metrics, &pod, &tally, &[("socket_buffer_full", lost)])?;
        check_node(&metrics)
    });
    agent.stop_cleanly();
}

/// Lookups while the pod cannot have a neighbour entry more.
fn table_full(family: Family) {
    let mut lab = Lab::new();
    let pod = lab.pod("full", 1, 40);
    let servers: Vec<IpAddr> = (1..=41)
        .filter(|n| *n != 2)
        .map(|n| pod.neighbour(family, n))
        .collect();
    let _server = Server::start(&lab.hub, &servers);
    let agent = start_agent();
    let mut events = agent.events();
    let known = pod.hub(family);
    let mut tally = CLIENT.run(&pod, vec![Lookup::new("ok-first.test", A, known)]);
    assert_eq!(tally.outcome("noerror"), 1, "{tally:?}");

    let fulls = table_fulls(family);
    let limits = Thresholds::set(lab.lock(), [32, 64, 64]);
    burst(&pod, family, FIRST_SILENT, 150);
    // To servers whose neighbour entry is still to be made, and to the one that is known.
    let mut lookups = Vec::new();
    for (n, server) in servers.iter().skip(1).enumerate() {
        let mut cold = Lookup::new(format!("ok-cold-{n}.test"), A, *server);
        cold.connected = n % 2 == 1;
        lookups.push(cold);
        lookups.push(Lookup::new(format!("ok-warm-{n}.test"), A, known));
    }
    let during = CLIENT.run(&pod, lookups);
    drop(limits);
    let grown = table_fulls(family) - fulls;
    let lost = during.outcome("timeout");
    assert!(
        grown > 0 && lost > 0,
        "the lab failed: table_fulls grew by {grown}, {lost} lost"
    );
    assert!(
        during.outcome("noerror") >= 39,
        "the known server answers: {during:?}"
    );
    tally.add(&during);

    let event = events.wait(Duration::from_secs(2), |event| {
        event.is("dns_failure", pod.netns.name()) && event.text("qname").starts_with("ok-cold")
    });
    let shown = &event.json;
    assert_eq!(shown["cause"], "neighbour_table_full", "{shown}");
    assert_eq!(shown["outcome"], "timeout", "{shown}");
    eventually(Duration::from_secs(5), || {
        let metrics = agent.metrics();
        compare(&metrics, &pod, &tally, &[("neighbour_table_full", lost)])?;
        check_node(&metrics)
    });
    agent.stop_cleanly();
}

#[test]
fn lookups_lost_to_a_full_ipv4_table_say_so() {
    table_full(Family::V4);
}

#[test]
fn lookups_lost_to_a_full_ipv6_table_say_so() {
    table_full(Family::V6);
}
