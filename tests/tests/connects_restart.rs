//! Hook `tcp`: an agent that comes and goes in the middle of attempts and connections.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use tests::bpffs::BpfFs;
use tests::nft::Rules;
use tests::router::Wiring;
use tests::tcp::scene::{CLOSED, DROPPED, OPEN, PATIENCE, prepare};
use tests::tcp::server::reset;
use tests::tcp::truth::{RESETS, RETRANSMITS, check_node, compare};
use tests::tcp::{Attempt, Manner, Means, Server, Tally, kernel, run_here};
use tests::wait::ensure;
use tests::{Agent, Family, eventually};

const SOON: Duration = Duration::from_secs(5);

/// What began before the agent and ends while it is there is counted when it ends; what ended before
/// is not.
#[test]
fn an_agent_that_comes_late_counts_what_ends_from_then_on() {
    let (node, [client]) = prepare(Wiring::Routed, ["client"]);
    let far = node.far.clone();
    let at = |family, port| SocketAddr::new(far.address(family), port);
    let _silence = Rules::drop(&node.router, "forward", &format!("tcp dport {DROPPED}"));
    let held = Family::ALL.map(|family| at(family, OPEN));
    let server = Server::start(&far.netns, &held, Manner::Hold);
    // Established before.
    let streams: Vec<TcpStream> = client.netns.run(|| {
        held.map(|to| TcpStream::connect(to).expect("it answers"))
            .into()
    });
    let first = Agent::start(&[]);
    // Under way when the first is killed and the second comes.
    let attempts: Vec<Attempt> = (0..20)
        .map(|n| {
            let to = at(Family::ALL[n % 2], DROPPED);
            Attempt::new(to, Means::Polled, Duration::from_secs(6))
        })
        .collect();
    let late = client.netns.spawn(move || run_here(&attempts, 1000));
    eventually(SOON, || {
        let opened = kernel::Statistics::of(&client.netns).active_opens;
        ensure(opened == 22, || format!("the lab failed: {opened} opened"))
    });
    drop(first.kill());
    let agent = Agent::start(&[]);
    let ended = late.join().expect("the client ends");
    let mut tally = Tally::of(&ended);
    assert_eq!(tally.count("timeout"), 20, "the lab failed");
    let refused = Family::ALL.map(|family| {
        let attempt = Attempt::new(at(family, CLOSED), Means::Polled, PATIENCE);
        tests::tcp::run(&client.netns, &[attempt], 1)[0]
    });
    tally.join(&Tally::of(&refused));
    assert_eq!(tally.count("refused"), 2, "the lab failed");
    eventually(SOON, || {
        let metrics = agent.metrics();
        compare(&metrics, client.labels(), &tally)?;
        check_node(&metrics)
    });

    // The connections of before: one loses, both are reset.
    let before = kernel::Statistics::of(&client.netns);
    let loss = Rules::named(
        &node.router,
        "loss",
        &format!(
            " chain loss {{ type filter hook forward priority 0; tcp dport {OPEN} counter name hit drop; }}\n"
        ),
    );
    (&streams[0]).write_all(&[1; 100]).expect("it is open");
    eventually(SOON, || {
        let hits = loss.hits();
        ensure(hits >= 3, || format!("{hits} lost"))
    });
    drop(loss);
    server.take().into_iter().for_each(reset);
    eventually(SOON, || {
        let now = kernel::Statistics::of(&client.netns);
        let resets = now.established_resets - before.established_resets;
        ensure(resets == 2, || format!("the lab failed: {resets} resets"))?;
        let again = now.data_retransmitted() - before.data_retransmitted();
        let metrics = agent.metrics();
        let shown = [RESETS, RETRANSMITS].map(|name| metrics.count(name, &client.labels()));
        ensure(shown == [2, again] && again > 0, || {
            format!("resets and retransmissions are {shown:?}, not 2 and {again}")
        })
    });
    agent.stop_cleanly();
}

/// What an agent of other ports has left is no connection of these: the memory may be another socket's by now.
#[test]
fn connections_to_ports_that_are_watched_no_more_leave() {
    let (node, [client]) = prepare(Wiring::Routed, ["client"]);
    let mounted = BpfFs::mount();
    let state = mounted.join("tracer");
    let state = state.to_str().expect("path is text");
    let watched = |port: &str| {
        let ports = ["--silent-port", port, "--silent-after", "1s"];
        Agent::start(&[&ports[..], &["--state-dir", state]].concat())
    };
    let to = SocketAddr::new(node.far.address(Family::V4), 7001);
    let server = Server::start(&node.far.netns, &[to], Manner::Hold);
    let talking = |agent: &Agent| {
        agent
            .metrics()
            .count("tracer_bpf_map_entries", &[("map", "TALKING")])
    };
    let first = watched("7001");
    let stream = client
        .netns
        .run(|| TcpStream::connect(to).expect("it answers"));
    eventually(SOON, || {
        let there = talking(&first);
        ensure(there == 1, || format!("{there} are watched"))
    });
    first.stop_cleanly();
    let second = watched("7002");
    (&stream).write_all(&[1; 100]).expect("it is open");
    eventually(SOON, || {
        let left = talking(&second);
        ensure(left == 0, || format!("{left} are watched still"))
    });
    drop(stream);
    drop(server);
    second.stop_cleanly();
}
