//! Every way in which a connection attempt ends, and what the client sees of it.

use std::net::SocketAddr;
use std::time::Duration;

use super::client::{Ended, Tally, run};
use super::kernel::Statistics;
use super::scene::{CLOSED, DROPPED, OPEN, PATIENCE, RESET, ROUTES, Scene, by_all_means, routed};
use super::truth::POD_CONNECTS;
use crate::neigh::Family;
use crate::netns::Pod;

/// All at once.
const FAST: u32 = 1000;

/// Destinations that fail, or not, in the same way: what they are, the result, and where.
type Way<'a> = (&'a str, &'a str, Vec<SocketAddr>);

/// Connects every way that the node has, by every means; panics where the client or the kernel did not see what it
/// should, and notes a fault for each failure that is not told. Gives what the client saw.
pub fn every_way(scene: &mut Scene, client: &Pod) -> Tally {
    let mut tally = Tally::default();
    let mut expect = |scene: &mut Scene, ways: &[Way<'_>], patience: Duration| {
        let all: Vec<SocketAddr> = ways.iter().flat_map(|(.., to)| to.clone()).collect();
        let ended = run(&client.netns, &by_all_means(&all, patience), FAST);
        for (what, result, to) in ways {
            let there: Vec<&Ended> = ended.iter().filter(|one| to.contains(&one.to)).collect();
            assert!(
                there.len() == by_all_means(to, patience).len()
                    && there.iter().all(|one| one.result == *result),
                "the lab failed, {what:?}: {there:?}"
            );
        }
        tally.join(&Tally::of(&ended));
        scene.expect_events(client, &ended);
    };
    let both = |port: u16| Family::ALL.map(|family| scene.port(family, port)).to_vec();
    let [open, closed, reset, silent] = [OPEN, CLOSED, RESET, DROPPED].map(both);
    let nobody = Family::ALL.map(|family| scene.nobody(family, 1)).to_vec();
    // On the pod's own segment: its own neighbour fails.
    let own = Family::ALL.map(|family| SocketAddr::new(client.neighbour(family, 2000), OPEN));
    for family in Family::ALL {
        let key = format!("{}/neigh/eth0/retrans_time_ms", family.label());
        client.netns.sysctl(&key, "100");
    }
    // All at once, for some take as long as a client waits.
    let mut ways: Vec<Way<'_>> = vec![
        ("an open port", "established", open),
        ("a closed port", "refused", closed),
        ("rejected with a reset", "refused", reset),
        ("dropped by the node", "timeout", silent),
        ("nobody there, behind the node", "unreachable", nobody),
        ("nobody there, in reach", "unreachable", own.to_vec()),
    ];
    // But for IPv4's routes that refuse: they say so five times to a client, then once a second (`ip_error`,
    // net/ipv4/route.c), so that a SYN may come in vain twice, and the third is sent after three seconds. Over IPv6 a
    // route of any kind speaks as the others do.
    let mut refusing: Vec<Way<'_>> = Vec::new();
    for (number, kind) in ROUTES {
        let [v4, v6] = Family::ALL.map(|family| vec![routed(family, number)]);
        if kind == "blackhole" {
            ways.push((kind, "timeout", [v4, v6].concat()));
        } else {
            ways.push((kind, "unreachable", v6));
            refusing.push((kind, "unreachable", v4));
        }
    }
    expect(scene, &ways, PATIENCE);
    assert!(scene.dropped() >= 5, "the lab failed");
    for way in refusing {
        expect(scene, &[way], PATIENCE * 2);
    }

    let kernel = Statistics::of(&client.netns);
    assert_eq!(kernel.active_opens, tally.attempts(), "the lab failed");
    // The server's side is no attempt.
    let metrics = scene.agent.metrics();
    let served = metrics.count(POD_CONNECTS, &scene.node.far.labels());
    assert_eq!(served, 0, "to be called is no attempt");
    tally
}
