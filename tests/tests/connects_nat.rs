//! Hook `tcp`: attempts through a service's address, a masquerade, and rules that drop or reject.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tests::netns::{Netns, Pod};
use tests::nft::Rules;
use tests::router::Wiring;
use tests::tcp::scene::{OPEN, by_all_means};
use tests::tcp::truth::last_owner;
use tests::tcp::{Ended, Scene, Tally, run};
use tests::wait::ensure;
use tests::{Family, eventually};

const PATIENCE: Duration = Duration::from_millis(2500);

fn service(family: Family) -> SocketAddr {
    let address: IpAddr = match family {
        Family::V4 => [10, 96, 0, 10].into(),
        Family::V6 => "fd00:96::10".parse().expect("an address"),
    };
    SocketAddr::new(address, OPEN)
}

/// A chain that sends what goes to the service to these.
fn to(hook: &str, backends: [SocketAddr; 2]) -> String {
    let [v4, v6] = backends.map(|backend| backend.ip());
    let [s4, s6] = Family::ALL.map(|family| service(family).ip());
    format!(
        " chain service {{ type nat hook {hook} priority -100; \
         ip daddr {s4} tcp dport {OPEN} counter name hit dnat ip to {v4}:{}; \
         ip6 daddr {s6} tcp dport {OPEN} counter name hit dnat ip6 to [{v6}]:{}; }}\n",
        backends[0].port(),
        backends[1].port()
    )
}

/// A masquerade of what leaves by this device.
fn masquerade(device: &str) -> String {
    format!(
        " chain outward {{ type nat hook postrouting priority 100; oifname \"{device}\" masquerade \
         random; }}\n"
    )
}

/// Calls to the service, all of which must end like this; what the client saw is added up.
fn call(
    scene: &mut Scene,
    client: &Pod,
    what: &str,
    result: &str,
    tally: &mut Tally,
) -> Vec<Ended> {
    let services = Family::ALL.map(service);
    let ended = run(&client.netns, &by_all_means(&services, PATIENCE), 500);
    assert!(
        ended.iter().all(|one| one.result == result),
        "the lab failed, {what}: {ended:?}"
    );
    tally.join(&Tally::of(&ended));
    // The destination is what the client asked for, before any translation.
    scene.expect_events(client, &ended);
    ended
}

/// Through the translation `hook` of a namespace, with and without a masquerade.
fn through(wiring: Wiring, at_client: bool) {
    let (mut scene, [client]) = Scene::new(wiring, ["client"]);
    let mut tally = Tally::default();
    let (netns, hook) = if at_client {
        (Arc::clone(&client.netns), "output")
    } else {
        (Arc::clone(&scene.node.router), "prerouting")
    };
    let link = scene.node.far.link();
    let at = |port| Family::ALL.map(|family| SocketAddr::new(scene.node.far.address(family), port));
    let backends = [
        ("a live backend", at(OPEN), "established"),
        ("a closed one", at(tests::tcp::scene::CLOSED), "refused"),
        ("a silent one", at(tests::tcp::scene::DROPPED), "timeout"),
    ];
    for (what, backend, result) in backends {
        for masked in [false, true] {
            if masked && at_client {
                continue;
            }
            let chains = if masked {
                to(hook, backend) + &masquerade(&link)
            } else {
                to(hook, backend)
            };
            let rules = Rules::load(&netns, &chains);
            let what = format!("{what}, masquerade {masked}");
            call(&mut scene, &client, &what, result, &mut tally);
            assert!(rules.hits() >= 5, "the lab failed, {what}");
        }
    }
    scene.settle(&[(&client, &tally)]);
}

#[test]
fn a_service_that_the_node_translates() {
    through(Wiring::Routed, false);
}

#[test]
fn a_service_that_the_node_translates_behind_a_bridge() {
    through(Wiring::Bridged, false);
}

#[test]
fn a_service_that_the_client_itself_translates() {
    through(Wiring::Routed, true);
}

/// The backend's pod is gone and the node knows: whoever calls the service calls nobody. What the
/// clients get depends on the translation; that they are counted does not.
#[test]
fn a_service_whose_backend_is_gone() {
    for masked in [false, true] {
        let (scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
        let router = Arc::clone(&scene.node.router);
        let gone = Family::ALL.map(|family| scene.nobody(family, 5));
        let mut chains = to("prerouting", gone);
        if masked {
            chains += &masquerade(&scene.node.far.link());
        }
        let _rules = Rules::load(&router, &chains);
        let mut tally = Tally::default();
        for family in Family::ALL {
            let services = [service(family)];
            for _ in 0..2 {
                let ended = run(&client.netns, &by_all_means(&services, PATIENCE), 500);
                assert!(
                    ended.iter().all(|one| one.result != "established"),
                    "the lab failed: {ended:?}"
                );
                tally.join(&Tally::of(&ended));
            }
        }
        eprintln!("masquerade {masked}: {tally:?}");
        // Either the service's address stands for what is dead, or, where the node could see it, the
        // one behind.
        eventually(Duration::from_secs(5), || {
            let metrics = scene.agent.metrics();
            for (family, behind) in Family::ALL.into_iter().zip(gone) {
                let shown = [service(family), behind]
                    .map(|destination| last_owner(&metrics, &destination.to_string()));
                ensure(shown.iter().any(Option::is_some), || {
                    format!("neither {} nor {behind} is dead", service(family))
                })?;
            }
            Ok::<(), String>(())
        });
        let behind = last_owner(&scene.agent.metrics(), &gone[0].to_string());
        assert!(
            behind.is_some(),
            "IPv4: the node dropped it for its neighbour"
        );
        scene.settle(&[(&client, &tally)]);
    }
}

/// A translation that leaves no mark at the connection, as IPVS': it is told by the addresses.
#[test]
fn a_service_that_is_translated_behind_conntracks_back() {
    let (scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    let router = Arc::clone(&scene.node.router);
    let service = service(Family::V4);
    let gone = scene.nobody(Family::V4, 5);
    // Behind conntrack (-200), before nat (-100).
    let rules = Rules::load(
        &router,
        &format!(
            " chain rewrite {{ type filter hook prerouting priority -150; \
             ip daddr {} tcp dport {} counter name hit ip daddr set {}; }}\n \
             chain follow {{ type filter hook forward priority 0; ct state new counter; }}",
            service.ip(),
            service.port(),
            gone.ip()
        ),
    );
    let mut tally = Tally::default();
    for _ in 0..3 {
        let ended = run(&client.netns, &by_all_means(&[service], PATIENCE), 500);
        assert!(
            ended.iter().all(|one| one.result != "established"),
            "the lab failed: {ended:?}"
        );
        tally.join(&Tally::of(&ended));
    }
    assert!(rules.hits() >= 9, "the lab failed");
    let behind = SocketAddr::new(gone.ip(), service.port());
    eventually(Duration::from_secs(5), || {
        let shown = last_owner(&scene.agent.metrics(), &behind.to_string());
        ensure(shown.is_some(), || format!("{behind} is not dead"))
    });
    scene.settle(&[(&client, &tally)]);
}

/// Rules that drop and reject, wherever they are.
#[test]
fn what_a_rule_drops_is_a_timeout_and_what_it_rejects_is_what_the_client_hears() {
    let (mut scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    let (router, far) = (
        Arc::clone(&scene.node.router),
        Arc::clone(&scene.node.far.netns),
    );
    let open = Family::ALL.map(|family| scene.port(family, OPEN));
    let own = Arc::clone(&client.netns);
    let mut tally = Tally::default();
    let places: [(&Arc<Netns>, &str); 4] = [
        (&own, "output"),
        (&router, "forward"),
        (&far, "input"),
        // Answers.
        (&own, "input"),
    ];
    let verdicts = [
        ("drop", "timeout"),
        ("reject with tcp reset", "refused"),
        ("reject with icmpx port-unreachable", "refused"),
        ("reject with icmpx host-unreachable", "unreachable"),
        ("reject with icmpx admin-prohibited", "unreachable"),
    ];
    for (index, (netns, hook)) in places.into_iter().enumerate() {
        let port = if index == 3 { "sport" } else { "dport" };
        for (verdict, result) in verdicts {
            // To reject an answer speaks to the server, not to the client.
            if index == 3 && verdict != "drop" {
                continue;
            }
            let rules = Rules::load(
                netns,
                &format!(
                    " chain refuse {{ type filter hook {hook} priority 0; \
                     tcp {port} {OPEN} counter name hit {verdict}; }}\n"
                ),
            );
            let ended = run(&client.netns, &by_all_means(&open, PATIENCE), 500);
            assert!(rules.hits() >= 5, "the lab failed, {hook} {verdict}");
            assert!(
                ended.iter().all(|one| one.result == result),
                "the lab failed, {hook} {verdict}: {ended:?}"
            );
            tally.join(&Tally::of(&ended));
            scene.expect_events(&client, &ended);
        }
    }
    scene.settle(&[(&client, &tally)]);
}
