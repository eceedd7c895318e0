//! Hook `tcp`: destinations that answer nobody, who had them last, and when they leave.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tests::netns::Pod;
use tests::nft::Rules;
use tests::router::{Node, Wiring};
use tests::tcp::scene::{CLOSED, DROPPED, OPEN, PATIENCE, prepare};
use tests::tcp::truth::{DEAD, DEAD_INFO, dead_of, last_owner};
use tests::tcp::{Attempt, Manner, Means, Scene, Server, Tally, run};
use tests::wait::ensure;
use tests::{Agent, Family, Metrics, eventually};

const SOON: Duration = Duration::from_secs(5);
const UNTRACKED: &str = "tracer_node_connect_destinations_untracked_total";
const GONE: &str = "tracer_gone_pod_address_info";

/// Calls one after the other, which must end like this.
fn call(pod: &Pod, to: SocketAddr, means: Means, times: usize, result: &str) {
    for _ in 0..times {
        let patience = if result == "timeout" {
            Duration::from_millis(200)
        } else {
            PATIENCE
        };
        let ended = run(&pod.netns, &[Attempt::new(to, means, patience)], 1);
        assert_eq!(ended[0].result, result, "the lab failed: {ended:?}");
    }
}

/// Waits until all that these pods did has been counted: then a dead endpoint would show.
fn await_counted(agent: &Agent, pods: &[(&Pod, u64)]) {
    eventually(SOON, || {
        for (pod, attempts) in pods {
            let counted = agent
                .metrics()
                .count("tracer_pod_connects_total", &pod.labels());
            ensure(counted == *attempts, || {
                format!("{counted} of {attempts} counted")
            })?;
        }
        Ok::<(), String>(())
    });
}

fn await_dead(agent: &Agent, pod: &Pod, to: SocketAddr, attempts: u64) {
    let to = to.to_string();
    eventually(SOON, || {
        let metrics = agent.metrics();
        let shown = (
            dead_of(&metrics, pod.labels(), &to),
            last_owner(&metrics, &to),
        );
        ensure(shown.0 == Some(attempts) && shown.1.is_some(), || {
            format!("{to}: {shown:?}, not {attempts}")
        })
    });
}

#[test]
fn three_failures_in_a_row_make_a_destination_dead() {
    let (scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    let far = format!("(netns)/{}", scene.node.far.netns.name());
    let mut all = 0;
    for family in Family::ALL {
        let destinations = [
            (scene.port(family, CLOSED), "refused", far.as_str()),
            (scene.port(family, DROPPED), "timeout", &far),
            (scene.nobody(family, 1), "unreachable", ""),
        ];
        for (to, result, owner) in destinations {
            call(&client, to, Means::Polled, 2, result);
            all += 2;
            await_counted(&scene.agent, &[(&client, all)]);
            let shown = last_owner(&scene.agent.metrics(), &to.to_string());
            assert_eq!(shown, None, "two failures to {to}");
            call(&client, to, Means::Blocking, 1, result);
            await_dead(&scene.agent, &client, to, 3);
            all += 1;
            let shown = last_owner(&scene.agent.metrics(), &to.to_string());
            assert_eq!(shown.as_deref(), Some(owner), "who has {to}");
        }
    }
    // The same destination by a mapped address.
    let to = scene.port(Family::V4, CLOSED);
    call(&client, to, Means::Mapped, 2, "refused");
    await_dead(&scene.agent, &client, to, 5);
    assert_eq!(scene.dead().len(), 6);
    scene.agent.stop_cleanly();
}

/// A sidecar takes whatever its pod begins; that the pod is connected to it says nothing of who was asked.
#[test]
fn what_a_proxy_in_the_pod_answers_is_dead_all_the_same() {
    let (scene, [meshed, other]) = Scene::new(Wiring::Routed, ["meshed", "other"]);
    let rules = Rules::load(
        &meshed.netns,
        " chain sidecar { type nat hook output priority -100; tcp dport 90 counter name hit redirect to :15001; }",
    );
    let any: [SocketAddr; 2] =
        ["127.0.0.1:15001", "[::1]:15001"].map(|at| at.parse().expect("an address"));
    let _sidecar = Server::start(&meshed.netns, &any, Manner::Close);
    let dead = Family::ALL.map(|family| scene.port(family, 90));
    for to in dead {
        for _ in 0..3 {
            call(&other, to, Means::Polled, 1, "refused");
            call(&meshed, to, Means::Polled, 1, "established");
        }
    }
    assert!(rules.hits() >= 6, "the lab failed");
    for to in dead {
        await_dead(&scene.agent, &other, to, 3);
    }
    scene.agent.stop_cleanly();
}

#[test]
fn what_answers_in_between_is_not_dead() {
    let (scene, [client, other]) = Scene::new(Wiring::Bridged, ["client", "other"]);
    let to = scene.port(Family::V4, 90);
    let answer = || Server::start(&scene.node.far.netns, &[to], Manner::Close);
    for _ in 0..3 {
        call(&client, to, Means::Polled, 2, "refused");
        // Whoever of the node gets an answer.
        let server = answer();
        call(&other, to, Means::Polled, 1, "established");
        drop(server);
    }
    await_counted(&scene.agent, &[(&client, 6), (&other, 3)]);
    assert_eq!(scene.dead(), [], "it answered in between");

    // All pods of the node together make it dead, each with its own share.
    call(&other, to, Means::Polled, 2, "refused");
    call(&client, to, Means::Polled, 1, "refused");
    let text = to.to_string();
    eventually(SOON, || {
        let shown = last_owner(&scene.agent.metrics(), &text);
        ensure(shown.is_some(), || format!("{text} is not dead"))
    });
    scene.agent.stop_cleanly();
}

#[test]
fn a_destination_that_answers_again_leaves() {
    let (scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    let mut failed = 0;
    for family in Family::ALL {
        let to = scene.port(family, 90);
        let text = to.to_string();
        for round in 1..=2 {
            call(&client, to, Means::Polled, 4, "refused");
            failed += 4;
            eventually(SOON, || {
                let metrics = scene.agent.metrics();
                ensure(last_owner(&metrics, &text).is_some(), || {
                    format!("{text} is not dead in round {round}")
                })
            });
            let before = scene.agent.metrics().count(DEAD, &client.labels());
            assert_eq!(before, failed, "failed attempts to the dead");
            let server = Server::start(&scene.node.far.netns, &[to], Manner::Close);
            call(&client, to, Means::Polled, 1, "established");
            drop(server);
            eventually(SOON, || {
                let shown = last_owner(&scene.agent.metrics(), &text);
                ensure(shown.is_none(), || format!("{text} is still dead"))
            });
            let after = scene.agent.metrics().count(DEAD, &client.labels());
            assert_eq!(after, before, "a sum of counters moved");
        }
    }
    scene.agent.stop_cleanly();
}

/// Destinations that one client calls again and again, all in vain, and a busier one among them, which
/// must have a name. Gives how often it called and what then is shown of it.
fn call_many(destinations: u16) -> (u64, Metrics, String) {
    let (scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    let busy = scene.port(Family::V6, 1000);
    let attempts: Vec<Attempt> = (0..destinations)
        .map(|n| Attempt::new(scene.port(Family::V4, 1000 + n), Means::Polled, PATIENCE))
        .collect();
    let mut failed = 0;
    for _ in 0..4 {
        call(&client, busy, Means::Polled, 10, "refused");
        let ended = run(&client.netns, &attempts, u32::MAX);
        failed += 10 + Tally::of(&ended).count("refused");
    }
    assert_eq!(failed, 4 * (u64::from(destinations) + 10), "the lab failed");
    await_counted(&scene.agent, &[(&client, failed)]);
    let metrics = eventually(SOON, || {
        let metrics = scene.agent.metrics();
        let busiest = dead_of(&metrics, client.labels(), &busy.to_string());
        ensure(busiest == Some(40), || {
            format!("the busiest has {busiest:?} of 40")
        })?;
        let shown = metrics.count(DEAD, &client.labels());
        let untracked = metrics.count(UNTRACKED, &[]);
        ensure(shown + untracked == failed, || {
            format!("{shown} and {untracked} untracked of {failed}")
        })
        .map(|()| metrics)
    });
    let named = metrics.matching(DEAD, &client.labels()).count();
    let told = metrics.matching(DEAD_INFO, &[]).count();
    assert!(named <= 101 && told <= 100, "{named} series, {told} told");
    let other = dead_of(&metrics, client.labels(), "(other)");
    assert!(other >= Some(4 * 100), "the rest is {other:?}");
    scene.agent.stop_cleanly();
    (failed, metrics, client.netns.name().to_owned())
}

/// A hundred names at most; the pod's sum has all.
#[test]
fn many_dead_destinations_are_bounded_and_none_is_lost() {
    let (failed, metrics, pod) = call_many(220);
    assert_eq!(metrics.count(DEAD, &[("pod", &pod)]), failed);
    assert_eq!(metrics.count(UNTRACKED, &[]), 0);
}

/// One client has room for 256 new ones a minute; what is beyond is told.
#[test]
fn more_dead_destinations_than_are_followed_are_counted() {
    let (failed, metrics, pod) = call_many(1000);
    let followed = metrics.count(DEAD, &[("pod", &pod)]);
    assert!(followed >= 4 * 250, "{followed} of {failed}");
    assert!(metrics.count(UNTRACKED, &[]) > 0);
}

/// The pods that the source `file` knows, rewritten as an editor does it.
struct Pods {
    folder: TempDir,
    client: String,
}

impl Pods {
    fn of(client: &Pod) -> Self {
        let path = client.netns.path();
        let client = format!(
            "[[pod]]\nnamespace = \"shop\"\nname = \"client\"\nnetns = \"{}\"\n",
            path.display()
        );
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let pods = Self { folder, client };
        pods.write(&[]);
        pods
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("pods.toml")
    }

    fn argument(&self) -> String {
        format!("file:{}", self.path().display())
    }

    /// The client, and pods of these names with these addresses.
    fn write(&self, others: &[(&str, &[SocketAddr])]) {
        let mut text = self.client.clone();
        for (name, at) in others {
            let ips: Vec<String> = at.iter().map(|at| format!("\"{}\"", at.ip())).collect();
            let ips = ips.join(", ");
            write!(
                text,
                "[[pod]]\nnamespace = \"shop\"\nname = \"{name}\"\nips = [{ips}]\n"
            )
            .expect("text grows");
        }
        let new = self.folder.path().join("new");
        fs::write(&new, text).expect("file can be written");
        fs::rename(&new, self.path()).expect("file can be renamed");
    }
}

const CLIENT: [(&str, &str); 2] = [("namespace", "shop"), ("pod", "client")];

/// Waits until the agent knows so many pods of the file.
fn await_pods(agent: &Agent, pods: u64) {
    eventually(SOON, || {
        let known = agent
            .metrics()
            .count("tracer_node_pods", &[("source", "file")]);
        ensure(known == pods, || format!("{known} pods of {pods}"))
    });
}

fn await_owner(agent: &Agent, to: SocketAddr, owner: Option<&str>) {
    eventually(SOON, || {
        let shown = last_owner(&agent.metrics(), &to.to_string());
        ensure(shown.as_deref() == owner, || {
            format!("{to} is {shown:?}, not {owner:?}")
        })
    });
}

/// Seconds since 1970 of an RFC 3339 time in UTC, by `date`.
fn seconds(text: &str) -> u64 {
    let output = std::process::Command::new("date")
        .args(["--date", text, "+%s"])
        .output()
        .expect("date runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let parsed = said.trim().parse();
    parsed.unwrap_or_else(|e| panic!("no time: {text:?}: {e}"))
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.expect("it is later than 1970").as_secs()
}

#[test]
fn a_dead_address_names_its_last_owner_until_another_has_it() {
    let (node, [client]): (Node, [Pod; 1]) = prepare(Wiring::Routed, ["client"]);
    let pods = Pods::of(&client);
    let mut scene = Scene::begin(node, &["--pods", &pods.argument()]);
    let at = Family::ALL.map(|family| scene.nobody(family, 7));
    pods.write(&[("old", &at)]);
    await_pods(&scene.agent, 2);

    // While its pod is there: the address has an owner, though it does not answer.
    call(&client, at[0], Means::Polled, 1, "unreachable");
    pods.write(&[]);
    let went = now();
    await_pods(&scene.agent, 1);
    let mut failed = 1;
    for to in at {
        call(&client, to, Means::Polled, 4, "unreachable");
        failed += 4;
        await_owner(&scene.agent, to, Some("shop/old"));
        let address = to.ip().to_string();
        let labels = [
            ("namespace", "shop"),
            ("pod", "old"),
            ("address", address.as_str()),
        ];
        let gone = scene.agent.metrics().get(GONE, &labels);
        assert_eq!(gone, Some(1.0), "{address} is not told as gone");
        let event = scene.events.wait(SOON, |event| {
            event.is("connect_failure", "client")
                && event.text("destination") == to.to_string()
                && event.text("last_owner") == "shop/old"
                && !event.text("owner_gone_since").is_empty()
        });
        let since = seconds(event.text("owner_gone_since"));
        assert!(
            (went.saturating_sub(1)..=went + 2).contains(&since),
            "gone at {went}: {}",
            event.json
        );
        assert_eq!(event.json["pod"]["namespace"], "shop", "{}", event.json);
    }

    // Another pod has the address and answers, while calls go on. (The node sends what is for it to
    // one that is there: no namespace has the address, or it would have an owner from that.)
    let [v4, v6] = at.map(|to| to.ip());
    let [to4, to6] = Family::ALL.map(|family| scene.node.far.address(family));
    let answers = Rules::load(
        &scene.node.router,
        &format!(
            " chain answers {{ type nat hook prerouting priority -100; \
             ip daddr {v4} tcp dport {OPEN} counter name hit dnat ip to {to4}; \
             ip6 daddr {v6} tcp dport {OPEN} counter name hit dnat ip6 to {to6}; }}\n"
        ),
    );
    pods.write(&[("new", &at)]);
    await_pods(&scene.agent, 2);
    for to in at {
        eventually(SOON, || {
            let attempt = Attempt::new(to, Means::Polled, PATIENCE);
            let ended = run(&client.netns, &[attempt], 1);
            failed += u64::from(ended[0].result != "established");
            ensure(ended[0].result == "established", || format!("{ended:?}"))
        });
        await_owner(&scene.agent, to, None);
        let address = to.ip().to_string();
        let gone = scene
            .agent
            .metrics()
            .matching(GONE, &[("address", &address)])
            .count();
        assert_eq!(gone, 0, "{address} is owned");
    }

    // It goes as well, and is who had the address last.
    drop(answers);
    pods.write(&[]);
    await_pods(&scene.agent, 1);
    for to in at {
        eventually(Duration::from_secs(20), || {
            let attempt = Attempt::new(to, Means::Polled, PATIENCE);
            let ended = run(&client.netns, &[attempt], 1);
            assert_ne!(ended[0].result, "established", "the lab failed");
            failed += 1;
            let shown = last_owner(&scene.agent.metrics(), &to.to_string());
            ensure(shown.as_deref() == Some("shop/new"), || {
                format!("{shown:?}")
            })
        });
    }
    eventually(SOON, || {
        let sum = scene.agent.metrics().count(DEAD, &CLIENT);
        let all = scene
            .agent
            .metrics()
            .count("tracer_pod_connects_total", &CLIENT);
        // The last ones may have failed once or twice before they were dead again.
        ensure(sum <= failed && sum + 4 >= failed, || {
            format!("{sum} of {failed} failed attempts, of {all}")
        })
    });
    scene.agent.stop_cleanly();
}

/// A new owner is enough: what called the old one said nothing of the new one.
#[test]
fn an_address_that_is_owned_anew_leaves_before_anybody_calls_it() {
    let (node, [client]) = prepare(Wiring::Bridged, ["client"]);
    let pods = Pods::of(&client);
    let scene = Scene::begin(node, &["--pods", &pods.argument()]);
    let to = scene.nobody(Family::V4, 9);
    pods.write(&[("old", &[to])]);
    await_pods(&scene.agent, 2);
    pods.write(&[]);
    await_pods(&scene.agent, 1);
    call(&client, to, Means::Polled, 4, "unreachable");
    await_owner(&scene.agent, to, Some("shop/old"));
    let before = scene.agent.metrics().count(DEAD, &CLIENT);
    pods.write(&[("new", &[to])]);
    await_owner(&scene.agent, to, None);
    let after = scene.agent.metrics().count(DEAD, &CLIENT);
    assert!(
        after >= before,
        "a sum of counters fell from {before} to {after}"
    );
    scene.agent.stop_cleanly();
}

/// What failed before it was owned anew does not count against the new owner.
#[test]
fn a_new_owner_begins_with_a_clean_slate() {
    let (node, [client]) = prepare(Wiring::Routed, ["client"]);
    let pods = Pods::of(&client);
    let scene = Scene::begin(node, &["--pods", &pods.argument()]);
    let to = scene.nobody(Family::V6, 11);
    pods.write(&[("old", &[to])]);
    await_pods(&scene.agent, 2);
    pods.write(&[]);
    await_pods(&scene.agent, 1);
    call(&client, to, Means::Polled, 3, "unreachable");
    await_owner(&scene.agent, to, Some("shop/old"));
    pods.write(&[("new", &[to])]);
    await_owner(&scene.agent, to, None);
    // It is starting: two calls come too early.
    call(&client, to, Means::Polled, 2, "unreachable");
    eventually(SOON, || {
        let counted = scene
            .agent
            .metrics()
            .count("tracer_pod_connects_total", &CLIENT);
        ensure(counted == 5, || format!("{counted} of 5 counted"))
    });
    let shown = last_owner(&scene.agent.metrics(), &to.to_string());
    assert_eq!(shown, None, "two failures");
    scene.agent.stop_cleanly();
}
